"""Many photos: a bounded number of batches under way, and the answers in the order of the photos.

Nothing is taken from the caller's iterable before there is room for it, so that a slow server, or a slow reader of the
answers, slows down the reading of photos in place of filling the memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from pixels import BadPhoto
from serving.client.photos import Photo, faults_named
from serving.client.recognition import Recognition

Answered = Recognition | BadPhoto
Numbered = list[tuple[int, Photo]]
Progress = Callable[[int], None]  # told how many photos are done, after each batch
T = TypeVar("T")


def batches(photos: Iterable[Photo], size: int) -> Iterator[Numbered]:
    """The photos with their numbers from 0, `size` at a time."""
    numbered = iter(enumerate(photos))
    while batch := list(islice(numbered, size)):
        yield batch


def prepared(batch: Numbered, make: Callable[..., Any], *, size: int) -> list[Any]:
    """`make(photo, number=..., size=...)` of each photo, or the BadPhoto that it raises."""
    found: list[Any] = []
    for number, photo in batch:
        try:
            found.append(make(photo, number=number, size=size))
        except BadPhoto as error:
            found.append(error)
    return found


def merged(batch: Numbered, sent: list[Any], answers: Iterable[Answered]) -> list[Answered]:
    """The answers in the places of those that were sent; a photo that the server calls bad gets its name."""
    found = iter(answers)
    return [
        each if isinstance(each, BadPhoto) else _named(next(found), number, photo)
        for (number, photo), each in zip(batch, sent, strict=True)
    ]


def all_good(answers: Iterable[Answered]) -> list[Recognition]:
    """The answers.

    Raises:
        BadPhoto: the first of them.
    """
    found: list[Recognition] = []
    for answer in answers:
        if isinstance(answer, BadPhoto):
            raise answer
        found.append(answer)
    return found


def _named(answer: Answered, number: int, photo: Photo) -> Answered:
    if isinstance(answer, Recognition):
        return answer
    try:
        with faults_named(photo, number):
            raise answer
    except BadPhoto as error:
        return error


def in_order(
    work: Callable[[Numbered], list[T]], todo: Iterable[Numbered], *, in_flight: int, progress: Progress | None = None
) -> Generator[T, None, None]:
    """What `work` makes of each batch, up to `in_flight` of them at a time in threads of their own.

    As many again may wait, done or not begun, behind one that is slow. An error of `work` comes where its batch would.
    """
    pending: deque[Future[list[T]]] = deque()
    todo, done = iter(todo), 0
    with ThreadPoolExecutor(in_flight, thread_name_prefix="recognise") as threads:
        try:
            while True:
                for batch in islice(todo, 2 * in_flight - len(pending)):
                    pending.append(threads.submit(work, batch))
                if not pending:
                    return
                found = pending.popleft().result()
                yield from found
                done += len(found)
                if progress:
                    progress(done)
        finally:
            for future in pending:
                future.cancel()


async def in_order_async(
    work: Callable[[Numbered], Awaitable[list[T]]],
    todo: Iterable[Numbered],
    *,
    in_flight: int,
    progress: Progress | None = None,
) -> AsyncGenerator[T, None]:
    """The same with tasks of the running loop; up to `in_flight` batches are begun and not yet handed out."""
    pending: deque[asyncio.Task[list[T]]] = deque()
    todo, done = iter(todo), 0
    try:
        while True:
            for batch in islice(todo, in_flight - len(pending)):
                pending.append(asyncio.ensure_future(work(batch)))
            if not pending:
                return
            found = await pending.popleft()
            for each in found:
                yield each
            done += len(found)
            if progress:
                progress(done)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
