"""Pretend GPUs, for machines that have none: the list that flows would get from CUDA."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

from flows.run.gpus import Gpu


def pretend(count: int, *, run: str = uuid4().hex) -> Callable[[], tuple[Gpu, ...]]:
    """The function `visible_gpus` of a machine with `count` GPUs, whose UUIDs no other test run has."""
    return lambda: tuple(Gpu(str(number), f"{run}-{number}", "pretend GPU") for number in range(count))
