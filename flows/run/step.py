"""Steps of a flow: Prefect tasks whose results `Run.cached` finds again, never Prefect's own cache.

Prefect remembers that a task returned; we have to know that its files are still there and undamaged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.errors import InputError
from flows.run.launch import end_children
from flows.settings import INSTALL_DASK, Settings
from flows.workspace import Workspace

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Decorator that makes a function a step. Prefect shows `name` with the parameters in braces filled in."""

    def make(work: Callable[P, R]) -> Task[P, R]:
        return Task(work, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)

    return make


@contextmanager
def parallel_tasks(workspace: Workspace, *, num_parallel: int, reads: Path | None = None) -> Iterator[TaskRunner[Any]]:
    """The task runner for independent steps: `num_parallel` threads, or the workers of the cluster of CLEANSHELF_DASK.

    reads: a path that the steps read besides the workspace.

    Raises:
        InputError: Dask is not installed, or the cluster cannot be used (flows.run.cluster).
        WorldError: the cluster ended meanwhile.
    """
    where = Settings().dask
    if not where:
        yield ThreadPoolTaskRunner(max_workers=num_parallel)
        return
    try:
        from flows.run.cluster import on_dask
    except ModuleNotFoundError as error:
        raise InputError(f"CLEANSHELF_DASK is set and {error.name} is not installed; {INSTALL_DASK}") from None
    with on_dask(workspace, where, num_parallel=num_parallel, reads=reads or workspace.root) as runner:
        yield runner


def together(futures: Sequence[PrefectFuture[R]]) -> list[R]:
    """The results of steps that run side by side, once all of them have ended."""
    try:
        for future in futures:
            future.wait()
    except BaseException:  # Ctrl-C reaches this thread only, which would wait for the children of the others
        end_children()
        raise
    return [future.result() for future in futures]
