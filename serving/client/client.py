"""Clients that send photos to a Triton endpoint: `Recognizer`, and `AsyncRecognizer` for asyncio.

Both follow the conversations of serving.client.session; they differ in how they make the calls.
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
from serving.client.batches import Answered, Numbered, all_good, batches, merged, priority_of
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
    """Arguments and session that both clients share."""

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
        """Prepares a client of one model at one server; nothing is sent yet.

        Args:
            server: host:port of its gRPC, or an Access with tokens and TLS.
            labels: returns the labels of a model version, called once per version; None: the server provides them.
            transport: how photos travel to the server. "uint8": pixels, decoded and resized by the client; "encoded": the
                file as it is, for slow networks; "shared memory": pixels, through memory of the machine that client and
                server share.
            timeout_s: deadline of a request (at most the server's largest batch of photos), including all attempts.
            patience_s: time for which a server or model that is away is asked again; a full queue, until the deadline.
            in_flight: batches that `stream` processes in parallel, each decoded in its own thread.
            wire: `transport` under its name of the previous release; overrides it.
        """
        self.in_flight = in_flight
        self._access = Access.of(server)
        self._session = Session(
            self._access.url, model, transport if wire is None else wire, timeout_s, patience_s, labels
        )


class Recognizer(_Client):
    """Client that recognises photos at a Triton endpoint; a context manager that closes the connection.

    A photo is a path, the bytes of a file, an (H, W, 3) uint8 RGB array or a Pillow image, of any size. Threads may share
    one client.
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
        """Ends unfinished streams, releases shared memory and closes the connection."""
        for stream in list(self._streams):
            with suppress(ValueError):  # another thread reads it now, and will get the error
                stream.close()
        self._drive(self._session.end())
        self._client.close()

    def recognise(self, photos: Sequence[Photo], *, embedding: bool = False) -> list[Recognition]:
        """One answer per photo, in order; with `embedding`, also the (512,) vectors.

        Up to eight photos are live and overtake bulk at the server.

        Raises:
            BadPhoto: the first bad photo; its `answers` are those to all photos, as `stream` yields them.
            ServingError: an error of the server or of the connection.
        """
        served = self._drive(self._session.learn())
        if len(photos) <= served.batch:
            return all_good(self._answer(list(enumerate(photos)), embedding, priority_of(photos)))
        with closing(self.stream(photos, embedding=embedding)) as answers:
            return all_good(answers)

    def stream(
        self, photos: Iterable[Photo], *, embedding: bool = False, progress: Progress | None = None
    ) -> Generator[Answered, None, None]:
        """Yields one answer per photo, in order; for a bad photo, a BadPhoto.

        All is bulk, which live requests overtake at the server, unless `photos` is a sequence of up to eight. Reads
        `photos` at most `2 * in_flight` batches ahead of the answers taken. Calls `progress` with the number of answers so
        far.

        Raises:
            ServingError: an error of the server or of the connection, after all earlier answers.
        """
        served = self._drive(self._session.learn())
        todo, priority = batches(photos, served.batch), priority_of(photos)
        answers = in_order(
            lambda batch: self._answer(batch, embedding, priority), todo, in_flight=self.in_flight, progress=progress
        )
        self._streams.add(answers)
        return answers

    def _answer(self, batch: Numbered, embedding: bool, priority: int) -> list[Answered]:
        prepared = self._session.prepare(batch)
        good = [each for each in prepared if not isinstance(each, BadPhoto)]
        asked = self._session.ask(good, embedding=embedding, priority=priority)
        return merged(batch, prepared, self._drive(asked))

    def _drive(self, steps: Steps[T]) -> T:
        return drive(steps, self._act)

    def _act(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        with errors_named(self._session.url):
            return getattr(self._client, step.name)(**step.arguments)


class AsyncRecognizer(_Client):
    """Recognizer for asyncio, with the same arguments: `async with`, `await recognise`, `async for ... in stream`.

    Photos are decoded in threads, so the loop is not blocked. A client belongs to the loop in which it is first used.
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
        """Same as Recognizer.close."""
        for stream in list(self._streams):
            with suppress(RuntimeError):  # another task reads it now, and will get the error
                await stream.aclose()
        await self._drive(self._session.end())
        await self._client.close()

    async def recognise(self, photos: Sequence[Photo], *, embedding: bool = False) -> list[Recognition]:
        """Same as Recognizer.recognise."""
        served = await self._drive(self._session.learn())
        if len(photos) <= served.batch:
            return all_good(await self._answer(list(enumerate(photos)), embedding, priority_of(photos)))
        async with aclosing(self.stream(photos, embedding=embedding)) as answers:
            return all_good([each async for each in answers])

    def stream(
        self, photos: Iterable[Photo], *, embedding: bool = False, progress: Progress | None = None
    ) -> AsyncGenerator[Answered, None]:
        """Same as Recognizer.stream, but reads at most `in_flight` batches ahead."""
        answers = self._stream(photos, embedding, progress)
        self._streams.add(answers)
        return answers

    async def _stream(
        self, photos: Iterable[Photo], embedding: bool, progress: Progress | None
    ) -> AsyncGenerator[Answered, None]:
        served = await self._drive(self._session.learn())
        todo, priority = batches(photos, served.batch), priority_of(photos)
        found = in_order_async(
            lambda batch: self._answer(batch, embedding, priority), todo, in_flight=self.in_flight, progress=progress
        )
        async with aclosing(found):
            async for each in found:
                yield each

    async def _answer(self, batch: Numbered, embedding: bool, priority: int) -> list[Answered]:
        prepared = await asyncio.to_thread(self._session.prepare, batch)
        good = [each for each in prepared if not isinstance(each, BadPhoto)]
        asked = self._session.ask(good, embedding=embedding, priority=priority)
        return merged(batch, prepared, await self._drive(asked))

    async def _drive(self, steps: Steps[T]) -> T:
        return await drive_async(steps, self._act)

    async def _act(self, step: Call | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        with errors_named(self._session.url):
            return await getattr(self._client, step.name)(**step.arguments)
