"""Claim: more photos of the same kind are not called a drift. Verdicts on changed photos are reported.

    python benchmarks/drift.py --workspace DIR

DIR is a workspace with a current model. Its test photos are halved at random, again and again: one half is the reference, the
other the recent traffic, in which nothing changed. Then the photos of the other half are changed. Without --workspace: drawn
answers. The baseline of an index is what chance alone may make of it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from figure import figure, header
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from flows.data.versions import DataVersions
from flows.drift import Traffic, compare, recognise
from flows.registry.history import model_lineage
from flows.registry.repository import repository
from flows.workspace import Workspace
from models.data.manifest import read_manifest

HALVINGS = 1000
MOST = 2000  # photos that the model is asked about
CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "15% darker": lambda photo: ImageEnhance.Brightness(photo).enhance(0.85),
    "50% darker": lambda photo: ImageEnhance.Brightness(photo).enhance(0.5),
    "blurred by 1 px": lambda photo: photo.filter(ImageFilter.GaussianBlur(1)),
    "blurred by 3 px": lambda photo: photo.filter(ImageFilter.GaussianBlur(3)),
}


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description="How often a drift is found where there is none, and where there is one."
    )
    parser.add_argument("--workspace", type=Path, help="a workspace with a current model")
    args = parser.parse_args()
    header("out of 1,000 times that nothing changed, at most 5 are called a drift")
    if args.workspace is None:
        return false_alarms(drawn(MOST))
    graph, photos = test_photos(Workspace.find(args.workspace))
    asked = recognise(graph, photos)
    false_alarms(asked)
    one, other = halves(len(photos), seed=0)
    for name, change in CHANGES.items():
        found = compare(pick(asked, one), recognise(graph, [changed(photos[row], change) for row in other]))
        for shift in found.shifts:
            figure(f"{name}: index of {shift.measure} ({shift.verdict})", round(shift.index, 3), target="told", met=True,
                   baseline=round(shift.noise, 3))  # fmt: skip


def false_alarms(asked: Traffic) -> None:
    """Figure of how often two halves of the same answers are called different."""
    found = [
        compare(*(pick(asked, half) for half in halves(len(asked), seed=seed))).verdict for seed in range(HALVINGS)
    ]
    alarms = HALVINGS - found.count("stable")
    figure(f"called watch or drifted, of {HALVINGS} halvings of {len(asked)} answers", alarms, target="<= 5", met=alarms <= 5,
           baseline=None)  # fmt: skip


def halves(count: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two random halves of `count` photos."""
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


def pick(asked: Traffic, rows: NDArray[np.int64]) -> Traffic:
    """Answers in these rows."""
    return Traffic([asked.label[row] for row in rows], asked.probability[rows], asked.score[rows])


def test_photos(workspace: Workspace) -> tuple[Path, list[bytes]]:
    """File of the current model, and test photos of the data version that it was judged by, in random order."""
    lineage = model_lineage(workspace)
    manifest = read_manifest(DataVersions(workspace).materialise(lineage["data_version"]))
    rows = np.random.default_rng(0).permutation(np.flatnonzero((manifest.split == "test") & manifest.kept))[:MOST]
    return repository(workspace).path(lineage["version"]) / "model.onnx", [
        manifest.read_photo(int(row)) for row in rows
    ]


def changed(photo: bytes, change: Callable[[Image.Image], Image.Image]) -> bytes:
    """A photo after a change, as PNG."""
    file = io.BytesIO()
    change(Image.open(io.BytesIO(photo)).convert("RGB")).save(file, "PNG")
    return file.getvalue()


def drawn(count: int) -> Traffic:
    """Answers of no model: beta-distributed, like confident ones."""
    rng = np.random.default_rng(0)
    return Traffic(
        [str(label) for label in rng.integers(50, size=count)], *(rng.beta(5, 2, (2, count)).astype(np.float32))
    )


if __name__ == "__main__":
    main()
