"""Photos as JPEGs that every browser shows, in three sizes."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response

from flows.pages.access import Looks
from flows.pages.site import TheSite
from models.data.manifest import read_photo
from pixels import decode

router = APIRouter(tags=["photos"])
KEPT = 2048  # pictures in memory, 10 kB each at 256 px
FOR_GOOD = "private, max-age=31536000, immutable"  # an id is a hash of the photo, so its picture never changes

Size = Literal["96", "256", "1024"]  # texts, as an address has them: numbers would match none


class Jpeg(Response):
    """A picture."""

    media_type = "image/jpeg"


@router.get("/photos/{version}/{photo}/{size}", response_class=Jpeg, responses={304: {"description": "not changed"}})
def picture(request: Request, site: TheSite, person: Looks, version: str, photo: str, size: Size) -> Response:
    """A photo of a data version as a JPEG, upright, with at most `size` pixels on its longer side."""
    photos = site.photos(version)
    row = photos.row(photo)
    headers = {"cache-control": FOR_GOOD, "etag": f'"{photo}-{size}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    jpeg = _kept(photos.folder, photos.shard[row], int(photos.offset[row]), int(photos.size[row]), int(size))
    return Jpeg(jpeg, headers=headers)


@functools.lru_cache(KEPT)
def _kept(folder: Path, shard: str, offset: int, size: int, side: int) -> bytes:
    return as_jpeg(read_photo(folder, shard, offset, size), side)


def as_jpeg(photo: bytes, side: int) -> bytes:
    """A photo as a JPEG of at most `side` pixels on its longer side.

    Raises:
        BadPhoto: it cannot be decoded.
    """
    image = decode(photo, is_accepted=True)
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
