"""Photos as JPEGs that every browser shows, in three sizes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from fastapi import APIRouter, Request, Response

from flows.errors import UnknownPhoto
from flows.pages.access import Looks
from flows.pages.site import TheSite
from flows.review.pictures import as_jpeg
from models.data.manifest import read_photo

router = APIRouter(tags=["photos"])
KEPT = 2048  # pictures in memory, 10 kB each at 256 px
FOR_A_DAY = "private, max-age=86400"  # a picture never changes, but a purged photo has to leave browsers too

Size = Literal["96", "256", "1024"]  # texts, as an address has them: numbers would match none


class Jpeg(Response):
    """A picture."""

    media_type = "image/jpeg"


@router.get("/photos/{version}/{photo}/{size}", response_class=Jpeg, responses={304: {"description": "not changed"}})
def picture(request: Request, site: TheSite, person: Looks, version: str, photo: str, size: Size) -> Response:
    """A photo of a data version as a JPEG, upright, with at most `size` pixels on its longer side."""
    photos = site.photos(version)
    row = photos.row(photo)
    shard = photos.shard[row]
    if not (photos.folder / "shards" / f"{shard}.tar").exists():  # purged since the table was read
        raise UnknownPhoto(f"photo {photo} is not stored in version {photos.version[:12]} any more; reload the page")
    headers = {"cache-control": FOR_A_DAY, "etag": f'"{photo}-{size}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    jpeg = _kept(photos.folder, shard, int(photos.offset[row]), int(photos.size[row]), int(size))
    return Jpeg(jpeg, headers=headers)


@functools.lru_cache(KEPT)
def _kept(folder: Path, shard: str, offset: int, size: int, side: int) -> bytes:
    return as_jpeg(read_photo(folder, shard, offset, size), side)
