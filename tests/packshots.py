"""Drawn packshots: products of one brand on a plain background, which differ in a word or in a colour only.

`python -m tests.packshots` ingests 36 deliveries of them and prints how many photos near-duplicates leave out.
"""

from __future__ import annotations

import io
import statistics
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flows.data.fingerprints import Fingerprints, candidates
from flows.data.near import NAME, read_pairs
from flows.delivery.build import build_version
from models.data.manifest import read_manifest

WORDS = ("Alma", "Brio", "Cora", "Dune", "Elan", "Faro", "Gala", "Hera", "Iris", "Juno")
BODY, INK, PAPER = (60, 110, 160), (20, 20, 20), (240, 236, 220)
OUTLINES = {
    "bottle": [(0.43, 0.08), (0.57, 0.08), (0.57, 0.24), (0.66, 0.3), (0.66, 0.92), (0.34, 0.92), (0.34, 0.3), (0.43, 0.24)],
    "box": [(0.25, 0.15), (0.75, 0.15), (0.75, 0.88), (0.25, 0.88)],
    "garment": [(0.3, 0.15), (0.7, 0.15), (0.95, 0.35), (0.85, 0.45), (0.72, 0.38), (0.72, 0.9), (0.28, 0.9), (0.28, 0.38),
                (0.15, 0.45), (0.05, 0.35)],
}  # fmt: skip


def packshot(
    kind: str, number: int, *, by: str = "word", background: str = "white", seed: int = 0, sway: float = 0.02
) -> Image.Image:
    """Product `number` (0 to 9) of a kind; siblings differ `by` word or colour.

    Photos of one product differ with the seed: size and place by `sway` of the side, tilt by that in rad.
    """
    random, side = np.random.default_rng([seed, number]), 300
    size, tilt, shift = 1 + random.uniform(-sway, sway), random.uniform(-sway, sway), random.uniform(-sway, sway, 2)
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]) * size
    image, body = Image.new("RGBA", (side, side), (0, 0, 0, 0)), BODY
    if by == "colour":
        body = (60 + 7 * number % 40, 110 + 13 * number % 50, 160 + 17 * number % 60)
    pen = ImageDraw.Draw(image)
    points = (np.array(OUTLINES[kind]) - 0.5) @ turn.T + 0.5 + shift
    pen.polygon([tuple(point) for point in (points * side).tolist()], fill=body)
    word = Image.new("RGBA", (side // 2, side // 8), PAPER if kind == "bottle" else body)
    word = word.crop((0, 0, round(0.26 * side), word.height))
    ImageDraw.Draw(word).text(
        (4, 4), WORDS[number if by == "word" else 0], fill=INK, font=ImageFont.load_default(0.08 * side)
    )
    word = word.rotate(-np.rad2deg(tilt), expand=True, resample=Image.Resampling.BILINEAR)
    corner = (np.array([0.37, 0.45]) - 0.5) @ turn.T + 0.5 + shift
    image.alpha_composite(word, tuple((corner * side).astype(int).tolist()))
    if background == "transparent":
        return image
    behind = Image.fromarray(_background(background, side)).convert("RGBA")
    behind.alpha_composite(image)
    return behind.convert("RGB")


def _background(name: str, side: int) -> np.ndarray:
    rows = {"white": (255, 255), "grey": (214, 214), "gradient": (255, 190)}[name]
    column = np.linspace(*rows, side).astype(np.uint8)
    return np.broadcast_to(column[:, None, None], (side, side, 3)).copy()


def encoded(image: Image.Image, *, quality: int = 90) -> bytes:
    """The picture as JPEG, or as PNG if it is transparent."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if image.mode == "RGBA" else "JPEG", quality=quality)
    return buffer.getvalue()


def deliver_packshots(folder: Path, kind: str, *, products: int = 10, photos: int = 8, **looks: Any) -> Path:
    """Writes a folder per product with the given number of photos, and returns `folder`."""
    for number in range(products):
        (folder / WORDS[number]).mkdir(parents=True, exist_ok=True)
        for seed in range(photos):
            image = packshot(kind, number, seed=seed, **looks)
            suffix = "png" if image.mode == "RGBA" else "jpg"
            (folder / WORDS[number] / f"{seed}.{suffix}").write_bytes(encoded(image))
    return folder


def main() -> None:
    """Prints the photos of each delivery that are left out, by fingerprints alone and with the second proof."""
    alone, left_out, across = [], [], 0
    for kind, background, sway in product(OUTLINES, ("white", "grey", "gradient", "transparent"), (0.005, 0.02, 0.05)):
        by = "colour" if background == "grey" else "word"
        with TemporaryDirectory() as folder:
            source = deliver_packshots(Path(folder) / "source", kind, by=by, background=background, sway=sway)
            version = Path(folder) / "version"
            report = build_version(source, base=None, out=version, val_share=0.0, test_share=0.25)
            alone.append(num_candidates(version))
            left_out.append(report.near)
            across += num_across(version)
    for name, counts in (("fingerprints alone", alone), ("with the second proof", left_out)):
        spread = f"{min(counts)} to {max(counts)}, median {statistics.median(counts):g}"
        print(f"left out of the 60 photos that are not test photos, {name}: {spread}")
    print(f"pairs under different labels: {across}")


def num_candidates(version: Path) -> int:
    """The number of photos outside the test split whose fingerprints are near one in it."""
    manifest, known = read_manifest(version), Fingerprints.read(version)
    test = manifest.split[manifest.rows_of(known.id.astype(str))] == "test"
    return len(np.unique(candidates(known.fingerprint[~test], known.fingerprint[test]).row))


def num_across(version: Path) -> int:
    """The number of recorded pairs of photos with different labels."""
    manifest, pairs = read_manifest(version), read_pairs(version / NAME)
    labels = [manifest.label[manifest.rows_of(pairs[column].to_pylist())] for column in ("id", "near")]
    return int((labels[0] != labels[1]).sum())


if __name__ == "__main__":
    main()
