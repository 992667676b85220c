"""From photos to ranked products over the wire: `Recognizer`, and `AsyncRecognizer` for asyncio.

Both ask as serving.client.session says; they differ in who makes the calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import aclosing, closing, suppress
from functools import cached_property
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

from pixels import BadPhoto
from serving.access import Access
from serving.client.batches import Answered, Numbered, all_good, batches, merged
from serving.client.conversation import Call, Pause, Steps, T, drive, drive_async
from serving.client.ordering import Progress, in_order, in_order_async
from serving.client.photos import Photo
from serving.client.recognition import Recognition
from serving.client.session import Session, Transport
from serving.wire import connect, connect_async, errors_named

TIMEOUT_S = 10.0
PATIENCE_S = 1.0
IN_FLIGHT = 8
Labels = Callable[[int], Sequence[str]]


class _Client:
    """What both kinds of client are told, and the conversation that follows from it."""

    def __init__(
        self,
        server: Access | str,
        *,
        model: str = "products",
        labels: Labels | None = None,
        transport: Transport = "uint8",
        timeout_s: float = TIMEOUT_S,
        patience_s: float = PATIENCE_S,
        in_flight: int = IN_FLIGHT,
        wire: Transport | None = None,
    ) -> None:
        """A client of one model at one server.

        Args:
            server: host:port of its gRPC, or an Access with tokens and TLS.
            labels: the labels of a model version, called once for each version met; None: the server tells them.
            transport: how photos travel to the server. "uint8": pixels, decoded and resized by the client; "encoded": the
                file as it is, for slow networks; "shared memory": pixels, through memory of the machine that client and
                server share.
            timeout_s: deadline of a request (at most the server's largest batch of photos) with all its tries.
            patience_s: how long a server or model that is away is asked again; a full queue is, until the deadline.
            in_flight: batches that `stream` processes in parallel, each decoded in its own thread.
            wire: `transport` under its name of the previous release; overrides it.
        """
        self.in_flight = in_flight
        self._access = Access.of(server)
        self._session = Session(
            self._access.url, model, transport if wire is None else wire, timeout_s, patience_s, labels
        )


class Recognizer(_Client):
    """Recognises photos at a Triton endpoint; a context manager that closes its connection. Threads may share one.

    A photo is a path, the bytes of a file, an (H, W, 3) uint8 RGB array or a Pillow image, of any size.
    """

    @cached_property
    def _client(self) -> Any:
        return connect(self._access)

    @cached_property
    def _streams(self) -> WeakSet[Generator[Answered, None, None]]:
        return WeakSet()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the streams that were not read to their end, give back shared memory, close the connection."""
        for stream in list(self._streams):
            with suppress(ValueError):  # another thread reads it now, and will be told
                stream.close()
        self._drive(self._session.end())
        self._client.close()

    def recognise(self, photos: Sequence[Photo], *, embedding: bool = False) -> list[Recognition]:
        """One answer per photo, in order; `embedding` asks for the (512,) vectors too.

        Raises:
            BadPhoto: the first photo that is not one; the others were asked in vain.
            ServingError: what the server or the way to it did.
        """
        served = self._drive(self._session.learn())
        if len(photos) <= served.batch:
            return all_good(self._answer(list(enumerate(photos)), embedding))
        with closing(self.stream(photos, embedding=embedding)) as answers:
            return all_good(answers)

    def stream(
        self, photos: Iterable[Photo], *, embedding: bool = False, progress: Progress | None = None
    ) -> Generator[Answered, None, None]:
        """One answer per photo, in order, as they come; a BadPhoto in the place of a photo that is not one.

        Reads `photos` only as far as answers are taken, and `2 * in_flight` batches ahead. `progress` is told how many
        are done.

        Raises:
            ServingError: what the server or the way to it did; the answers before it have been given.
        """
        served = self._drive(self._session.learn())
        todo = batches(photos, served.batch)
        answers = in_order(
            lambda batch: self._answer(batch, embedding), todo, in_flight=self.in_flight, progress=progress
        )
        self._streams.add(answers)
        return answers

    def _answer(self, batch: Numbered, embedding: bool) -> list[Answered]:
        prepared = self._session.prepare(batch)
        good = [each for each in prepared if not isinstance(each, BadPhoto)]
        return merged(batch, prepared, self._drive(self._session.ask(good, embedding=embedding)) if good else [])

    def _drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._act)

    def _act(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        with errors_named(self._session.url):
            return getattr(self._client, step.name)(**step.arguments)


class AsyncRecognizer(_Client):
    """`Recognizer` for asyncio, with the same arguments: `async with`, `await recognise`, `async for ... in stream`.

    Photos are decoded in threads, so that the loop stays free. Belongs to the loop in which it is first used.
    """

    @cached_property
    def _client(self) -> Any:
        return connect_async(self._access)

    @cached_property
    def _streams(self) -> WeakSet[AsyncGenerator[Answered, None]]:
        return WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """As Recognizer.close."""
        for stream in list(self._streams):
            with suppress(RuntimeError):  # another task reads it now, and will be told
                await stream.aclose()
        await self._drive(self._session.end())
        await self._client.close()

    async def recognise(self, photos: Sequence[Photo], *, embedding: bool = False) -> list[Recognition]:
        """As Recognizer.recognise."""
        served = await self._drive(self._session.learn())
        if len(photos) <= served.batch:
            return all_good(await self._answer(list(enumerate(photos)), embedding))
        async with aclosing(self.stream(photos, embedding=embedding)) as answers:
            return all_good([each async for each in answers])

    def stream(
        self, photos: Iterable[Photo], *, embedding: bool = False, progress: Progress | None = None
    ) -> AsyncGenerator[Answered, None]:
        """As Recognizer.stream; reads `in_flight` batches ahead."""
        answers = self._stream(photos, embedding, progress)
        self._streams.add(answers)
        return answers

    async def _stream(
        self, photos: Iterable[Photo], embedding: bool, progress: Progress | None
    ) -> AsyncGenerator[Answered, None]:
        served = await self._drive(self._session.learn())
        todo = batches(photos, served.batch)
        found = in_order_async(
            lambda batch: self._answer(batch, embedding), todo, in_flight=self.in_flight, progress=progress
        )
        async with aclosing(found):
            async for each in found:
                yield each

    async def _answer(self, batch: Numbered, embedding: bool) -> list[Answered]:
        prepared = await asyncio.to_thread(self._session.prepare, batch)
        good = [each for each in prepared if not isinstance(each, BadPhoto)]
        return merged(batch, prepared, await self._drive(self._session.ask(good, embedding=embedding)) if good else [])

    async def _drive(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._act)

    async def _act(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        with errors_named(self._session.url):
            return await getattr(self._client, step.name)(**step.arguments)
