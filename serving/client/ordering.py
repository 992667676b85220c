"""Work on many batches at once, with the results in the order of the input.

A batch is taken from the caller's iterable only when there is room for it. A slow server, or a slow reader of the
answers, therefore slows down the reading of photos instead of filling the memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Progress = Callable[[int], None]  # called after each batch with the number of results so far
B = TypeVar("B")
T = TypeVar("T")


def in_order(
    work: Callable[[B], list[T]], todo: Iterable[B], *, in_flight: int, progress: Progress | None = None
) -> Generator[T, None, None]:
    """Yields the results of `work` for each batch; runs up to `in_flight` batches in parallel threads.

    While one batch is slow, as many more may wait behind it, finished or not yet started. If `work` raises for a batch,
    the error is raised at the position of that batch.
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
    work: Callable[[B], Awaitable[list[T]]],
    todo: Iterable[B],
    *,
    in_flight: int,
    progress: Progress | None = None,
) -> AsyncGenerator[T, None]:
    """Same as `in_order` with tasks of the running loop; at most `in_flight` batches are started but not yet yielded."""
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
