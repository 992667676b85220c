"""Conversations with a server, written once for sync and async clients.

A conversation is a generator. It yields each call to make; the reply is sent into it, or the error is thrown into it.
`drive` makes the calls, `drive_async` awaits them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.errors import ServingError

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A method of a tritonclient client, sync or async, with its arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Pause:
    """Request to wait for some time."""

    seconds: float


Steps = Generator[Call | Pause, Any, T]


def drive(steps: Steps[T], act: Callable[[Call | Pause], Any]) -> T:
    """Result of a conversation whose calls and pauses are carried out by `act`."""
    try:
        step = next(steps)
        while True:
            try:
                reply = act(step)
            except ServingError as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


async def drive_async(steps: Steps[T], act: Callable[[Call | Pause], Awaitable[Any]]) -> T:
    """Same as `drive`, with an `act` that is awaited."""
    try:
        step = next(steps)
        while True:
            try:
                reply = await act(step)
            except ServingError as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()
