"""Near-duplicates among different photos and among copies of one photo, from which the two limits follow.

Different photos: all pairs between the splits of the Grocery Store photos (other visits to the shop), and all pairs of its
packshots, different products of one brand on white. Copies: a photo of the test split and itself in another encoding,
size, crop or brightness. A pair is taken for one photo if its fingerprints are within NEAR and the photos within LIMIT.

    python benchmarks/near_duplicates.py --data grocery
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from figure import figure, header
from numpy.typing import NDArray
from PIL import Image

from flows.data.fingerprints import NEAR
from flows.delivery.near import LIMIT
from flows.sample.draw import draw
from flows.sample.families import assortment
from pixels import decode
from pixels.fingerprint import BYTES, fingerprint
from pixels.overlay import difference, thumbnail

CLAIM = "no different photos are taken for one, and no re-encoded or resized photo passes for another"
EVERY = 5  # test photos that are copied
CLOSEST = 50  # pairs of different photos that are laid over each other


def main() -> None:
    """Runs the command line."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument(
        "--data", type=Path, help="folder with manifest.parquet (path, split) and iconic/; without: drawn products"
    )
    folder = asked.parse_args().data
    header(CLAIM)
    views(shop(folder) if folder else drawn())


def shop(folder: Path) -> list[Image.Image]:
    """Prints the figures of different photos, and returns some test photos."""
    rows = pq.read_table(folder / "manifest.parquet", columns=["path", "split"]).to_pydict()
    fingerprints = np.stack([fingerprint(decode((folder / path).read_bytes())) for path in rows["path"]])
    split = np.array(rows["split"])
    for name in ("val", "test"):
        apart(
            f"{name} against train photos",
            distances(fingerprints[split == name], fingerprints[split == "train"]).ravel(),
        )
    within("packshots", [decode(path.read_bytes()) for path in sorted((folder / "iconic").rglob("*.jpg"))])
    return [decode((folder / path).read_bytes()) for path in np.array(rows["path"])[split == "test"][::EVERY]]


def drawn() -> list[Image.Image]:
    """Prints the figures of drawn products, and returns the drawings."""
    random = np.random.default_rng(0)
    photos = [draw(sku, random) for sku in assortment() for _ in range(5)]
    within("drawn products", photos)
    return photos


def within(name: str, photos: list[Image.Image]) -> None:
    """Prints figures of all pairs within one set of photos, and the smallest difference of those that look most similar."""
    fingerprints = np.stack([fingerprint(photo) for photo in photos])
    one, other = np.triu_indices(len(fingerprints), 1)
    distance = distances(fingerprints, fingerprints)[one, other]
    apart(name, distance)
    closest = np.argsort(distance)[:CLOSEST].tolist()
    smallest = min(difference(*map(seen, (photos[one[pair]], photos[other[pair]]))) for pair in closest)
    figure(f"{name}: smallest difference of the {CLOSEST} closest pairs", round(smallest, 2), target=f"> {LIMIT:g}",
           met=smallest > LIMIT, baseline=None)  # fmt: skip


def apart(name: str, distance: NDArray[np.float32]) -> None:
    """Prints the distance of the closest pair of different photos, and the number of candidates."""
    false = int((distance <= NEAR).sum())
    figure(f"{name}: candidates, of {len(distance)}", false, target="== 0", met=false == 0,
           baseline=f"closest {distance.min():.1f}, threshold {NEAR:g}")  # fmt: skip


def views(photos: list[Image.Image]) -> None:
    """Prints the share of photos that are recognised as near-duplicates, for each kind of copy."""
    made = {
        "JPEG quality 50": lambda photo: encoded(photo, 50),
        "JPEG quality 20": lambda photo: encoded(photo, 20),
        "half the size": lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
        "cropped by 2% on each side": lambda photo: cropped(photo, 0.02),
        "cropped by 5% on each side": lambda photo: cropped(photo, 0.05),
        "10% brighter": lambda photo: photo.point(lambda value: min(255, int(1.1 * value))),
    }
    wanted = {
        "JPEG quality 50": 1.0,
        "JPEG quality 20": 1.0,
        "half the size": 1.0,
        "cropped by 2% on each side": 0.9,
    }
    for name, view in made.items():
        share = float(np.mean([is_near(photo, view(photo)) for photo in photos]))
        target = wanted.get(name)
        figure(f"known again, {name}", round(share, 3), target="none set" if target is None else f">= {target:g}",
               met=target is None or share >= target, baseline=None)  # fmt: skip


def is_near(photo: Image.Image, copy: Image.Image) -> bool:
    """True if ingestion takes both for one photo, under one label."""
    distance = distances(*(fingerprint(image)[None] for image in (photo, copy)))
    return bool(distance <= NEAR) and difference(seen(photo), seen(copy)) <= LIMIT


def seen(photo: Image.Image) -> Image.Image:
    """The thumbnail of a photo."""
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    return thumbnail(buffer.getvalue())


def distances(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, M) root mean square differences."""
    a, b = ours.astype(np.float32), theirs.astype(np.float32)
    return np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0) / BYTES)


def encoded(photo: Image.Image, quality: int) -> Image.Image:
    """A photo after encoding as JPEG and decoding."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue())


def cropped(photo: Image.Image, share: float) -> Image.Image:
    """A photo without a share of its margin."""
    x, y = int(photo.width * share), int(photo.height * share)
    return photo.crop((x, y, photo.width - x, photo.height - y))


if __name__ == "__main__":
    main()
