"""A conversation with a server, apart from who makes its calls.

It is a generator that yields each call it wants made and is sent the reply, or thrown the error. `drive` makes the calls,
`drive_async` awaits them, so that a protocol is written once for both.
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
    """Time to let pass."""

    seconds: float


Steps = Generator[Call | Pause, Any, T]


def drive(steps: Steps[T], act: Callable[[Call | Pause], Any]) -> T:
    """The outcome of a conversation whose calls `act` makes."""
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
        return end.value
    finally:
        steps.close()


async def drive_async(steps: Steps[T], act: Callable[[Call | Pause], Awaitable[Any]]) -> T:
    """The same where `act` is to be awaited."""
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
        return end.value
    finally:
        steps.close()
