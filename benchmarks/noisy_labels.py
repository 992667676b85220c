"""Accuracy under wrong labels: any method, any noise, beside the published figures.

    python benchmarks/noisy_labels.py --data CIFAR --methods ce gce nce+agce 'nce+mae:alpha=1,beta=1' \\
        --noise symmetric:0.4 human:worst --seeds 0 1 2 --protocol small

--data is a folder of CIFAR-10 (photos as JPEG in cifar10_jpeg.parquet, human labels in manifest.parquet) or of Fashion-MNIST
(images_uint8.npz, manifest.parquet); benchmarks/noisy/photos.py lists the columns. Without it the benchmark draws shapes and
runs on them for a minute.

Protocols, in benchmarks/noisy/protocol.py:
    small       a small network on 10,000 photos from random weights: about a minute a run on one CPU thread
    features    a head on frozen MobileNetV2 features (--weights), computed once beside --out: half a minute a run
    full        the sources' own, for a GPU; --parallel runs share the card. Not yet measured on one.

Each finished run is a line of --out, and is not repeated: a killed command that is started again continues. Cross-entropy is
always among the methods, as the baseline.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from figure import figure, header
from noisy.drawn import drawn_set
from noisy.features import cached_features
from noisy.photos import PhotoSet, read_photo_set
from noisy.protocol import PROTOCOLS, Protocol
from noisy.published import as_published
from noisy.results import Cell, Result, Run, append_result, cells, read_results, table
from noisy.spec import KINDS, Method, parse_method, parse_noise
from noisy.workshop import Material, perform

from models.errors import ConfigError, ModelError
from models.losses import build_loss
from models.networks.network import best_device

CLAIM = "trained on wrong labels, robust losses give more correct answers than cross-entropy"
OUT = Path(__file__).resolve().parents[1] / "build" / "noisy_labels.jsonl"
NO_DATA = "no --data: running on drawn shapes, without published figures; --data DIR takes CIFAR-10 or Fashion-MNIST"


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if the command or the data is refused."""
    args = parser().parse_args(words)
    header(CLAIM)
    try:
        measure(args)
    except ModelError as error:
        if not isinstance(error, ValueError):
            raise
        print(error, file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder of CIFAR-10 or Fashion-MNIST; without: drawn shapes")
    made.add_argument("--methods", nargs="+", default=["ce", "gce", "agce"], metavar="NAME[:KEY=VALUE,...]",
                      help="losses with their parameters; lr, weight_decay and l1 are of the training")  # fmt: skip
    made.add_argument("--noise", nargs="+", default=["symmetric:0.4"], help=KINDS)
    made.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="seeds of weights and order; the noise is always the same"
    )
    made.add_argument("--protocol", choices=PROTOCOLS, default="small")
    made.add_argument("--weights", type=Path, help="MobileNetV2 weights for the protocol features")
    made.add_argument("--parallel", type=int, default=1, metavar="K", help="runs at a time, each in its own process")
    made.add_argument("--epochs", type=int, help="epochs instead of the protocol's, for trying out")
    made.add_argument("--photos", type=int, help="training photos, instead of the protocol's; 0: all")
    made.add_argument("--out", type=Path, help=f"JSON lines of finished runs; with --data {OUT.parent.name}/{OUT.name}")
    return made


def measure(args: argparse.Namespace) -> None:
    """Performs the runs that are not done yet, then prints table and figures.

    Raises:
        ModelError: a run cannot be done; raised before anything is trained.
    """
    whole = read_photo_set(args.data) if args.data else drawn_set()
    protocol = chosen_protocol(args)
    photos = whole.subset(num_train=protocol.num_train, num_test=protocol.num_test)
    runs = planned(args, protocol, photos)
    out = args.out or (OUT if args.data else None)
    results = read_results(out) if out else {}
    todo = [run for run in runs if run.key not in results]
    if not args.data:
        print(NO_DATA)
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done before; one is {protocol.epochs} epochs "
          f"of {len(photos.label)} photos", flush=True)  # fmt: skip
    if todo:
        made = material(args, protocol, photos, cache=(out or OUT).parent)
        for number, (run, result) in enumerate(perform(todo, made, parallel=args.parallel), start=1):
            results[run.key] = result
            if out:
                append_result(out, result)
            print(progress(run, result, number=number, of=len(todo)), flush=True)
    report(cells(runs, results), protocol, photos, seeds=len(set(args.seeds)))


def chosen_protocol(args: argparse.Namespace) -> Protocol:
    """Protocol with the changes that the command line makes to it."""
    protocol = PROTOCOLS[args.protocol]
    for key, value, least in (("epochs", args.epochs, 1), ("num_train", args.photos, 0)):
        if value is not None:
            if value < least:
                raise ConfigError(f"--{'photos' if least == 0 else 'epochs'}: {value} is below {least}; give more")
            protocol = replace(protocol, **{key: value})
    if args.parallel < 1:
        raise ConfigError(f"--parallel: {args.parallel} is below 1; give the number of runs at a time")
    if protocol.network != "head":
        return protocol
    if not (args.weights and args.weights.is_file()):
        raise ConfigError(
            f"--weights: {args.weights} is not a file; the protocol features needs weights of timm's mobilenetv2_100; "
            "give one, or take --protocol small"
        )
    return replace(protocol, weights=hashlib.sha256(args.weights.read_bytes()).hexdigest())


def planned(args: argparse.Namespace, protocol: Protocol, photos: PhotoSet) -> list[Run]:
    """Runs of every method under every noise with every seed; cross-entropy first. Each is tried out as far as that is quick."""
    methods = [parse_method(text) for text in args.methods]
    if not any(method == Method("ce") for method in methods):
        methods.insert(0, Method("ce"))
    for method in methods:
        build_loss(method.loss, num_classes=len(photos.classes), **method.params)
    noises = [parse_noise(text) for text in args.noise]
    for noise in noises:
        noise.given_labels(photos)
    if len(photos.label) < 2 * len(photos.classes):
        raise ConfigError(f"--photos: {len(photos.label)} are too few for {len(photos.classes)} classes; give more")
    found = [Run(data=photos.name, protocol=protocol, method=as_published(method, noise), noise=noise, seed=seed)
             for noise in noises for method in methods for seed in args.seeds]  # fmt: skip
    return list({run.key: run for run in found}.values())


def material(args: argparse.Namespace, protocol: Protocol, photos: PhotoSet, *, cache: Path) -> Material:
    """Photos, or their features."""
    if protocol.network != "head":
        return Material(photos, photos.photos, photos.test_photos)
    train, test = (
        cached_features(part, weights=args.weights, photo_px=protocol.photo_px, cache=cache, device=best_device())
        for part in (photos.photos, photos.test_photos)
    )
    return Material(photos, train, test)


def progress(run: Run, result: Result, *, number: int, of: int) -> str:
    """One line about a finished run."""
    memorised = "" if result.memorised is None else f", gives back {result.memorised:.0f} % of the wrong labels"
    return (f"{number} of {of}: {run.noise} {run.method} seed {run.seed}: {result.accuracy:.2f} % right{memorised}, "
            f"{result.seconds:.0f} s")  # fmt: skip


def report(made: Sequence[Cell], protocol: Protocol, photos: PhotoSet, *, seeds: int) -> None:
    """Prints the table, then a figure for each of its cells."""
    print(f"\n{table(made, protocol, seeds=seeds)}\n", flush=True)
    baseline = {str(cell.noise): cell.mean for cell in made if cell.method == Method("ce")}
    for cell in made:
        ce = baseline[str(cell.noise)]
        target, met = judged(cell, protocol, ce=ce, chance=100 / len(photos.classes))
        name = f"{photos.name} {cell.noise}, {cell.method}, protocol {protocol.name}, accuracy %"
        figure(name, round(cell.mean, 2), target=target, met=met, baseline=round(ce, 2))


def judged(cell: Cell, protocol: Protocol, *, ce: float, chance: float) -> tuple[float | str, bool]:
    """Target of a cell, and True if it is met.

    The target is the published figure within its deviation if the protocol is the sources' own; otherwise more than
    cross-entropy, which itself has to beat chance.
    """
    if protocol.is_full and cell.published:
        least = cell.published.mean - (0.0 if math.isnan(cell.published.deviation) else cell.published.deviation)
        return cell.published.mean, cell.mean >= least
    if cell.method == Method("ce"):
        return f"> {chance:.2f} (chance)", cell.mean > chance
    in_full = f"; published in full {cell.published.mean:.2f}" if cell.published else ""
    return f"> {ce:.2f} (ce){in_full}", cell.mean > ce


if __name__ == "__main__":
    sys.exit(main())
