"""Batches of photos: what is sent of each photo, and which answer belongs to which photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import islice
from typing import Any

from contract import BULK, LIVE, REQUEST_PHOTOS
from pixels import BadPhoto
from serving.client.photos import Photo, bad_photo
from serving.client.recognition import Recognition

Answered = Recognition | BadPhoto
Numbered = list[tuple[int, Photo]]


def batches(photos: Iterable[Photo], size: int) -> Iterator[Numbered]:
    """Yields the photos with their numbers from 0, `size` at a time."""
    numbered = iter(enumerate(photos))
    while batch := list(islice(numbered, size)):
        yield batch


def priority_of(photos: Iterable[Photo]) -> int:
    """LIVE for as many photos as one request may hold; BULK for more, or for a stream of unknown length."""
    return LIVE if isinstance(photos, Sized) and len(photos) <= REQUEST_PHOTOS else BULK


def prepared(batch: Numbered, make: Callable[..., Any], *, size: int) -> list[Any]:
    """Result of `make(photo, number=..., size=...)` for each photo, or the BadPhoto that it raised."""
    found: list[Any] = []
    for number, photo in batch:
        try:
            found.append(make(photo, number=number, size=size))
        except BadPhoto as error:
            found.append(error)
    return found


def merged(batch: Numbered, sent: list[Any], answers: Iterable[Answered]) -> list[Answered]:
    """One answer per photo of the batch: the BadPhoto of `prepared`, or the next of the answers to those sent.

    A BadPhoto that comes from the server is replaced by one that names the photo.
    """
    found = iter(answers)
    return [
        each if isinstance(each, BadPhoto) else _named(next(found), number, photo)
        for (number, photo), each in zip(batch, sent, strict=True)
    ]


def all_good(answers: Iterable[Answered]) -> list[Recognition]:
    """The answers as a list.

    Raises:
        BadPhoto: the first one among the answers; its `answers` are all of them.
    """
    found = list(answers)
    bad = next((answer for answer in found if isinstance(answer, BadPhoto)), None)
    if bad is not None:
        bad.answers = found
        raise bad
    return [answer for answer in found if not isinstance(answer, BadPhoto)]


def _named(answer: Answered, number: int, photo: Photo) -> Answered:
    return bad_photo(photo, number, str(answer)) if isinstance(answer, BadPhoto) else answer
