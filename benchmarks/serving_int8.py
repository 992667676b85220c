"""Claim: on a CPU the int8 graph answers 1.8 times as fast as the float32 graph, and recognises as much.

    python benchmarks/serving_int8.py --data grocery --weights mobilenetv2_100_qat.safetensors

A head is trained on the features of a frozen MobileNetV2 (160 px, and mirrored), and exported; the int8 graph is made from that
file and calibrated on 128 training photos. Top-1 is measured on the test photos; the method for int8 was chosen with figures of
this set in view (docs/inside/log.md). Speed: both graphs are asked in turn in one run, one thread each; the figure is the median
of --rounds in that thread's CPU time, for a single photo and for a batch of eight. --profile prints where the time goes.

Without --data: drawn photos and a small network with random weights, in seconds; no targets.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import torch
from figure import figure, header
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import pixels
from models.errors import ManifestError, WeightsMismatch
from models.export.graph import DeployGraph
from models.export.int8 import has_vnni, write_int8
from models.export.onnx_file import write_onnx
from models.export.timing import time_each
from models.export.variants import CALIBRATION_PHOTOS
from models.networks.network import Network, build_network
from models.recipe.config import Export, Member
from models.training.train import Trained

SIZE, EPOCHS, BATCH = 160, 25, 256
SPEEDUP, FALL = 1.8, 0.5  # times, points


@dataclass(frozen=True)
class Shelf:
    """Photos (N, S, S, 3) uint8 with their classes and splits, and the network."""

    photos: NDArray[np.uint8]
    target: NDArray[np.int64]
    split: NDArray[np.str_]
    member: Member
    has_target: bool = True

    def of(self, split: str) -> NDArray[np.uint8]:
        """Photos of a split."""
        return self.photos[self.split == split]


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; exit code 0, or 2 if data or weights are refused."""
    args = parser().parse_args(words)
    torch.set_num_threads(1)
    header(f"int8 answers {SPEEDUP} times as fast as float32 on a CPU, within {FALL} points of top-1")
    try:
        shelf = read_shelf(args.data, weights=args.weights) if args.data else drawn_shelf()
        trained = train_head(shelf)
    except (ManifestError, WeightsMismatch) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"vector neural instructions: {'yes' if has_vnni() else 'no, weights have 7 bits'}")
    with tempfile.TemporaryDirectory() as folder:
        for crops in args.crops:
            compare(shelf, trained, Path(folder), crops=crops, args=args)
    return 0


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, help="folder with manifest.parquet and photos; without: drawn photos")
    made.add_argument(
        "--weights", type=Path, default=Path("mobilenetv2_100.safetensors"), help="weights of mobilenetv2_100"
    )
    made.add_argument("--crops", type=int, nargs="+", default=[1], help="views of a photo: 1, 2, 5 or 10")
    made.add_argument("--rounds", type=int, default=30, help="rounds of timing")
    made.add_argument("--profile", action="store_true", help="print the time of each operator")
    return made


def compare(shelf: Shelf, trained: Trained, folder: Path, *, crops: int, args: argparse.Namespace) -> None:
    """Makes both graphs, asks and times them."""
    exact, small = folder / f"fp32-{crops}.onnx", folder / f"int8-{crops}.onnx"
    side = shelf.photos.shape[1]
    graph = DeployGraph([trained], settings=Export(input_size=side, crops=crops))
    write_onnx(graph, exact, input_size=side, metadata={})
    drawn = np.random.default_rng(0).permutation(np.flatnonzero(shelf.split == "train"))[:CALIBRATION_PHOTOS]
    write_int8(exact, small, photos=shelf.photos[drawn])
    views = f"{crops} crop{'s' if crops > 1 else ''}"
    accuracies(shelf, exact, small, views)
    for batch in (1, 8):
        fp32_ms, int8_ms = time_each((exact, small), batch=batch, rounds=args.rounds)
        print(f"{views}, batch {batch}: float32 {fp32_ms:.2f}, int8 {int8_ms:.2f} ms per photo")
        claim(shelf, f"speed of int8 over float32, {views}, batch {batch}, times", fp32_ms / int8_ms, SPEEDUP, 1.0)
    if args.profile:
        profile(exact, small, shelf.of("test")[:8], folder)


def accuracies(shelf: Shelf, exact: Path, small: Path, views: str) -> None:
    """Accuracies on validation photos, by which a variant is offered, and on test photos."""
    for split in ("val", "test"):
        target = shelf.target[shelf.split == split]
        before, after = (best(path, shelf.of(split)) for path in (exact, small))
        one, other = (100 * float(np.mean(ids == target)) for ids in (before, after))
        same = float(np.mean(before == after))
        print(
            f"{views}, {split}: {len(target)} photos, top-1 {one:.2f} -> {other:.2f} %, the same answer to {same:.1%}"
        )
        if split == "test":
            claim(shelf, f"top-1 of int8 less that of float32, {views}, points", other - one, -FALL, round(one, 2))


def claim(shelf: Shelf, name: str, value: float, target: float, baseline: float) -> None:
    """Prints a figure; drawn photos have no target."""
    bound, met = (f">= {target:g}", value >= target) if shelf.has_target else ("", True)
    figure(name, round(value, 2), target=bound, met=met, baseline=baseline)


def best(path: Path, photos: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N,) the class that a graph ranks first."""
    session = onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])
    parts = [photos[start : start + 8] for start in range(0, len(photos), 8)]
    return np.concatenate([session.run(["ids"], {"image": part})[0][:, 0] for part in parts])


def profile(exact: Path, small: Path, photos: NDArray[np.uint8], folder: Path) -> None:
    """Prints milliseconds per photo of each operator, by ONNX Runtime's own profile."""
    for path in (exact, small):
        options = _options()
        options.enable_profiling, options.profile_file_prefix = True, str(folder / path.stem)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        rounds = 20
        for _ in range(rounds):
            session.run(["ids"], {"image": photos})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        spent: Counter[str] = Counter()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"] / 1000 / rounds / len(photos)
        total = sum(spent.values())
        shares = ", ".join(f"{name} {ms:.3f} ({ms / total:.0%})" for name, ms in spent.most_common(7))
        print(f"profile of {path.stem}, ms per photo: {total:.3f}; {shares}")


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def train_head(shelf: Shelf) -> Trained:
    """Head trained with AdamW 1e-3 and a cosine to 0 on features of the training photos and their mirror images."""
    torch.manual_seed(0)
    num_classes = int(shelf.target.max()) + 1
    network = build_network(shelf.member, num_classes=num_classes).eval()
    views = torch.stack([features(network, shelf.of("train"), mirrored=mirrored) for mirrored in (False, True)])
    target = torch.from_numpy(shelf.target[shelf.split == "train"])
    head = network.head.train()
    optimiser = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-2)
    steps = max(1, len(target) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS * steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(target))[: steps * BATCH].chunk(steps):
            view = torch.randint(0, 2, (len(rows),))
            loss = functional.cross_entropy(head(views[view, rows]).logits, target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return Trained(network.eval(), shelf.member, [str(number) for number in range(num_classes)], 0.0)


@torch.inference_mode()
def features(network: Network, photos: NDArray[np.uint8], *, mirrored: bool) -> Tensor:
    """Features (N, d)."""
    found = []
    for part in torch.from_numpy(photos).split(64):
        pixels_of = part.permute(0, 3, 1, 2).float() / 255
        found.append(network.features(pixels_of.flip(3) if mirrored else pixels_of))
    return torch.cat(found).clone()


def read_shelf(folder: Path, *, weights: Path) -> Shelf:
    """Shelf with the photos of folder/manifest.parquet with its columns path, label and split.

    Raises:
        ManifestError: no such manifest.
    """
    path = folder / "manifest.parquet"
    if not path.is_file():
        raise ManifestError(f"--data: {path} does not exist; give a folder with a manifest and its photos")
    table = pq.read_table(path, columns=["path", "label", "split"])
    files, labels, split = (np.array(table[column].to_pylist()) for column in ("path", "label", "split"))
    squares = [pixels.to_square(pixels.decode((folder / file).read_bytes()), SIZE) for file in files]
    member = Member(backbone="mobilenetv2_100", size=SIZE, weights=str(weights), args={"pad_type": "same"},
                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip
    return Shelf(np.stack(squares), np.unique(labels, return_inverse=True)[1], split, member)


def drawn_shelf(side: int = 32) -> Shelf:
    """Shelf of squares in eight colours under noise, and a network with random weights."""
    random = np.random.default_rng(0)
    target = np.tile(np.arange(8), 40)
    colours = random.integers(0, 256, (8, 1, 1, 3))
    photos = np.clip(colours[target] + random.integers(-60, 60, (len(target), side, side, 3)), 0, 255).astype(np.uint8)
    split = np.array(["train", "train", "val", "test"])[np.arange(len(target)) // 80]
    return Shelf(photos, target, split, Member(backbone="test_resnet", size=side), has_target=False)


if __name__ == "__main__":
    sys.exit(main())
