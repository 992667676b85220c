"""Small pictures of the photos that a report shows, kept beside it as pictures.json: data URIs by photo id.

A report is written again when its model is published, and a purge takes its photos out: both need the pictures, and
neither reads a data version for them.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from durable import overwrite
from flows.report.run_report import Report
from models.data.manifest import read_photo
from models.errors import ManifestError
from pixels import BadPhoto, decode_shrunk

PICTURES = "pictures.json"
SIDE = 96  # pixels of the longer side
QUALITY = 80  # of the JPEG
COLUMNS = ("photo", "example", "compare")  # of figures: ids of photos
PLACE = ("id", "shard", "offset", "size")


def shown_photos(report: Report) -> list[str]:
    """Ids of the photos that the report shows, each once."""
    rows = [*report.look_at, *(row for figure in report.figures for row in figure.rows)]
    named = [row[column] for row in rows for column in COLUMNS if row.get(column)]
    return list(dict.fromkeys([*named, *(answer.photo for answer in report.seen)]))


def read_pictures(folder: Path) -> dict[str, str]:
    """The pictures of a run; none if it has no file of them, or a damaged one."""
    try:
        return dict(json.loads((folder / PICTURES).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def write_pictures(folder: Path, pictures: Mapping[str, str]) -> None:
    """Replaces the pictures of a run."""
    overwrite(folder / PICTURES, json.dumps(pictures, indent=0).encode())


def take_pictures(data: Path, photos: Sequence[str]) -> dict[str, str]:
    """Pictures of the photos of a data version; photos that were purged, or cannot be read, are left out."""
    index = pq.read_table(data / "index.parquet", columns=list(PLACE), filters=pc.field("id").isin(list(photos)))
    taken: dict[str, str] = {}
    for photo, shard, offset, size in zip(*(index[name].to_pylist() for name in PLACE), strict=True):
        try:
            taken[photo] = picture(read_photo(data, shard, offset, size))
        except (BadPhoto, ManifestError):
            continue
    return taken


def picture(photo: bytes) -> str:
    """The photo as a small JPEG in a data URI, with its proportions.

    Raises:
        BadPhoto: as for `pixels.decode_shrunk`.
    """
    square, (width, height) = decode_shrunk(photo, SIDE)
    scale = SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    file = io.BytesIO()
    square.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
