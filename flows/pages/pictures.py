"""Photos as JPEGs that every browser shows, in three sizes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response

from flows.pages.access import Looks
from flows.pages.site import TheSite
from flows.review.pictures import as_jpeg
from models.data.manifest import read_photo

router = APIRouter(tags=["photos"])
KEPT = 2048  # pictures in memory, 10 kB each at 256 px
FOR_GOOD = "private, max-age=31536000, immutable"  # an id is a hash of the photo, so its picture never changes

Size = Literal["96", "256", "1024"]  # texts, as an address has them: numbers would match none


@router.get("/photos/{version}/{photo}/{size}", response_class=Response)
def picture(request: Request, site: TheSite, person: Looks, version: str, photo: str, size: Size) -> Response:
    """A photo of a data version as a JPEG, upright, with at most `size` pixels on its longer side."""
    if request.headers.get("if-none-match") == f'"{photo}-{size}"':
        return Response(status_code=304)
    photos = site.photos(version)
    row = photos.row(photo)
    jpeg = _kept(photos.folder, photos.shard[row], int(photos.offset[row]), int(photos.size[row]), int(size))
    return Response(jpeg, media_type="image/jpeg", headers={"cache-control": FOR_GOOD, "etag": f'"{photo}-{size}"'})


@functools.lru_cache(KEPT)
def _kept(folder: Path, shard: str, offset: int, size: int, side: int) -> bytes:
    return as_jpeg(read_photo(folder, shard, offset, size), side)
