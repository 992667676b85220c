"""Claim: with better encoders, and several of them, products that are new on the shelf are told from known ones.

    python benchmarks/unknown_encoders.py --data grocery-noisy --photos grocery224 --weights FOLDER

As unknown.py, for one head on each of --encoders at --side px, one view, and for all of them as one ensemble: known photos are
the test photos of four fifths of the classes, unknown ones those of the others, and animals. Temperatures and the score are
what models.export.calibrate chooses on validation photos, and on classes that it strikes out of training itself. Two more
scores and all sums of two stand beside them (struck/scores.py), and the best of all of these by the same photos. Features are
kept in --cache. Without --data: drawn clusters; no targets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import unknown
from figure import figure, header
from noisy.features import BATCH
from numpy.typing import NDArray
from struck.scores import EVERY, NAMES, Guide, struck_pairs, with_sums
from tail.sets import FeatureSet
from torch import Tensor

import pixels
from models.errors import ManifestError, WeightsMismatch
from models.evaluation.bootstrap import auroc
from models.export.calibrate import Chosen, accept, in_tiles, without
from models.export.ood import DISCRIMINANT, SCORES, Calibration, MemberOutput, discriminants, score_of
from models.export.struck import Shown, separations
from models.export.temperature import fit_temperatures, label_probabilities
from models.networks.network import build_network
from models.recipe.config import Member

ENCODERS = {
    "mobilenetv2_100": "mobilenetv2_100_qat.safetensors",
    "tf_efficientnet_lite0": "tf_efficientnet_lite0.safetensors",
    "tf_efficientnet_lite2": "tf_efficientnet_lite2.safetensors",
}
TARGETS = {"AUROC, held-out classes": 80, "known accepted at 5% false accepts": 40, "AUROC, animals": 99.5}
CHOSEN, ANY, ALL = "chosen", "chosen of all and sums of two", "all"
Figures = Mapping[
    str, tuple[float, float, float]
]  # by score: AUROC and share at 5 % of classes held out, AUROC of animals


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if data or weights are refused."""
    args = parser().parse_args(words)
    torch.set_num_threads(1)
    header("with better encoders, and several of them, products that are new on the shelf are told from known ones")
    try:
        stalls = read_stalls(args) if args.data else {"drawn": unknown.drawn_stall()}
    except (ManifestError, WeightsMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    found: dict[str, list[Figures]] = {name: [] for name in [*stalls, *([ALL] if len(stalls) > 1 else [])]}
    for seed in args.seeds:
        parts = {name: unknown.without_classes(stall, seed=seed) for name, stall in stalls.items()}
        heads = {
            name: unknown.head(shelf.photos, unknown.HEADS["cross-entropy"], seed=seed)
            for name, (shelf, _) in parts.items()
        }
        for name, seeds in found.items():
            used = list(stalls) if name == ALL else [name]
            seeds.append(ask([heads[each] for each in used], [parts[each][0] for each in used],
                             [stalls[each].photos.views[:, parts[each][1]] for each in used]))  # fmt: skip
            print(f"seed {seed}, {name}: {seeds[-1][CHOSEN]}", flush=True)
    report(found, has_target=args.data is not None)
    return 0


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with manifests; without: drawn clusters")
    made.add_argument("--photos", type=Path, help="folder with the products' photos at --side px; default: --data")
    made.add_argument("--manifest", default="outofset10", help="products and other pictures")
    made.add_argument("--products", default="sym40", help="a manifest of the products alone")
    made.add_argument("--weights", type=Path, default=Path(), help="folder of the encoders' weights")
    made.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    made.add_argument("--side", type=int, default=224, help="px")
    made.add_argument("--cache", type=Path, default=Path(__file__).resolve().parents[1] / "build" / "features")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of classes held out, weights and order")
    return made


def read_stalls(args: argparse.Namespace) -> dict[str, unknown.Stall]:
    """The same photos seen by each encoder.

    Raises:
        ManifestError: one of the two manifests does not exist. WeightsMismatch: weights are missing.
    """
    for name in (args.manifest, args.products):
        if not (args.data / f"{name}.parquet").is_file():
            raise ManifestError(f"--data: {args.data / name}.parquet does not exist; give a folder of manifests")
    table = pq.read_table(args.data / f"{args.manifest}.parquet", columns=["path", "label", "split"])
    paths, labels, split = (np.array(table[name].to_pylist()) for name in ("path", "label", "split"))
    product = np.isin(
        paths, pq.read_table(args.data / f"{args.products}.parquet", columns=["path"])["path"].to_pylist()
    )
    target = np.searchsorted(np.unique(labels[product]), labels[product])
    stalls = {}
    for encoder in args.encoders:
        views, other, tiles = features(args, encoder, paths, product, split)
        photos = FeatureSet(name=encoder, views=views, target=target, true=None, split=split[product],
                            num_classes=int(target.max()) + 1)  # fmt: skip
        stalls[encoder] = unknown.Stall(photos, other, tiles)
    return stalls


def features(
    args: argparse.Namespace, encoder: str, paths: NDArray[np.str_], product: NDArray[np.bool_], split: NDArray[np.str_]
) -> tuple[Tensor, Tensor, Tensor]:
    """(2, n, d) features of products, other pictures and validation photos in tiles; both views are the photo as it is."""
    file = args.cache / f"unknown-{encoder}-{args.side}.npz"
    if not file.exists():
        args.cache.mkdir(parents=True, exist_ok=True)
        photos = args.photos or args.data
        seen = [squares(photos, paths[product], args.side), squares(args.data, paths[~product], args.side),
                in_tiles(squares(photos, paths[product & (split == "val")], args.side))]  # fmt: skip
        extra = {"args": {"pad_type": "same"}} if encoder.startswith("mobilenet") else {}
        member = Member(backbone=encoder, size=args.side, weights=str(args.weights / ENCODERS[encoder]), mean=(0.5,) * 3,
                        std=(0.5,) * 3, **extra)  # fmt: skip
        network = build_network(member, num_classes=2).eval()
        with torch.inference_mode():
            found = [torch.cat([network.features(each.permute(0, 3, 1, 2).float() / 255) for each in part.split(BATCH)]).numpy()
                     for part in seen]  # fmt: skip
        with file.with_suffix(".part").open("wb") as part:
            np.savez(part, products=found[0], other=found[1], tiles=found[2])
        file.with_suffix(".part").replace(file)
    with np.load(file) as kept:
        products, other, tiles = (
            torch.from_numpy(kept[name]).expand(2, -1, -1) for name in ("products", "other", "tiles")
        )
    return products, other, tiles


def squares(folder: Path, paths: NDArray[np.str_], side: int) -> Tensor:
    """(n, side, side, 3) uint8 photos."""
    return torch.from_numpy(
        np.stack([pixels.to_square(pixels.decode((folder / path).read_bytes()), side) for path in paths])
    )


def ask(heads: Sequence[unknown.Head], shelves: Sequence[unknown.Stall], held_out: Sequence[Tensor]) -> Figures:
    """Figures of an ensemble of heads, each on its own encoder, by score; CHOSEN: of the score that calibration chooses."""
    photos = shelves[0].photos
    weights, split = (
        torch.full((len(heads), 1, 1), 1 / len(heads)),
        {name: photos.rows(name) for name in ("train", "val", "test")},
    )
    labels = torch.from_numpy(photos.target[split["val"]])
    rows = [unknown.fitted(head, shelf.photos) for head, shelf in zip(heads, shelves, strict=True)]

    def outputs(views: Sequence[Tensor], temperature: Sequence[float]) -> list[MemberOutput]:
        return [
            unknown.output(head, view, temperature=t)[0]
            for head, view, t in zip(heads, views, temperature, strict=True)
        ]

    def scores(seen: Sequence[MemberOutput], label: Tensor | None = None) -> NDArray[np.float64]:
        mean = (weights * torch.stack([each.logits.softmax(2).mean(0) for each in seen])).sum(0)
        table = discriminants(rows, seen, weights)
        table = table if label is None else table.scatter(1, label[:, None], -torch.inf)
        columns = [score_of(name, seen, mean, weights) for name in SCORES if name != DISCRIMINANT]
        return torch.cat([*columns, table.amax(1, keepdim=True)], 1).double().detach().numpy()

    def seen(name: str) -> list[Tensor]:
        return [shelf.photos.views[:, split[name]] for shelf in shelves]

    plain = outputs(seen("val"), [1.0] * len(heads))
    temperature, sure = fit_temperatures(label_probabilities(plain, labels).numpy(), weights.flatten().double().numpy(),
                                         num_classes=photos.num_classes)  # fmt: skip
    val = outputs(seen("val"), temperature)
    known, masked = scores(val), scores(without(val, labels), labels)
    tiles = scores(outputs([shelf.tiles for shelf in shelves], temperature))
    shown = [
        Shown([shelf.photos.views[0, split[name]] for shelf in shelves], photos.target[split[name]])
        for name in ("train", "val")
    ]
    struck = separations(*shown, weights, temperature)
    chosen = accept(
        Chosen(Calibration(temperature), len(labels), sure), known, masked, tiles, share=unknown.SHARE, struck=struck
    )
    guide = Guide(heads, shown[0], weights, temperature)

    def all_scores(views: Sequence[Tensor]) -> NDArray[np.float64]:
        return np.column_stack([scores(outputs(views, temperature)), guide.scores([each[0] for each in views])])

    base = all_scores(seen("val"))
    test, new, other, tiled = (
        with_sums(all_scores(views), base)
        for views in (seen("test"), held_out, [each.other for each in shelves], [each.tiles for each in shelves])
    )
    figures = {name: (auroc(test[:, i], new[:, i]), float((test[:, i] > np.quantile(new[:, i], 1 - unknown.FALSE)).mean()),
                      auroc(test[:, i], other[:, i])) for i, name in enumerate(NAMES)}  # fmt: skip
    best = best_of(struck_pairs(*shown, weights, temperature), with_sums(base, base), tiled)
    print(
        f"  of all: {best}; separation: "
        + ", ".join(f"{name} {each.without_class:.3f} {each.in_tiles:.3f}" for name, each in chosen.separation.items())
    )
    return figures | {CHOSEN: figures[chosen.calibration.score], ANY: figures[best]}


def best_of(
    struck: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    known: NDArray[np.float64],
    tiles: NDArray[np.float64],
) -> str:
    """The one of NAMES that best separates known photos from struck classes and from tiles, by the mean of both AUROCs."""
    of_classes = np.mean([[auroc(*pair) for pair in zip(seen.T, gone.T, strict=True)] for seen, gone in struck], axis=0)
    in_tiles = np.array([auroc(*pair) for pair in zip(known.T, tiles.T, strict=True)])
    return NAMES[int((of_classes + in_tiles).argmax())]


def report(found: Mapping[str, Sequence[Figures]], *, has_target: bool) -> None:
    """Prints the table in %, mean and standard deviation over the seeds, and the figures of the last row."""
    print("\n| encoders | score | " + " | ".join(TARGETS) + " |\n|---|---|" + "--:|" * len(TARGETS))
    for encoder, seeds in found.items():
        for score in (*EVERY, CHOSEN, ANY):
            cells = [unknown.cell(values) for values in zip(*(each[score] for each in seeds), strict=True)]
            print(f"| {encoder} | {score} | {' | '.join(cells)} |", flush=True)
    for number, (what, target) in enumerate(TARGETS.items()):
        value = 100 * statistics.mean(each[CHOSEN][number] for each in found[list(found)[-1]])
        figure(f"{what}, %, {list(found)[-1]}, mean of {len(found[list(found)[-1]])} seeds", round(value, 2),
               target=f">= {target}" if has_target else "none", met=not has_target or value >= target, baseline=None)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
