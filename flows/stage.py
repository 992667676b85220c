"""A stage of a flow: a Prefect task whose result is found again by `Run.stage`, never by Prefect's own cache.

Prefect remembers that a task returned; we need to know that its files are still there and unharmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

from flows.launch import end_children

P = ParamSpec("P")
R = TypeVar("R")


def stage(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Decorator; the name is shown for each run, with parameters in braces filled in."""

    def make(work: Callable[P, R]) -> Task[P, R]:
        return Task(work, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)

    return make


def together(futures: Sequence[PrefectFuture[Path]]) -> list[Path]:
    """The results of stages that run side by side, once all of them ended."""
    try:
        for future in futures:
            future.wait()
    except BaseException:  # Ctrl-C reaches this thread alone, which would stay until the children of the others end
        end_children()
        raise
    return [future.result() for future in futures]
