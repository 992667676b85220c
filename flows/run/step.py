"""Steps and flows: Prefect's tasks and flows where Prefect runs them, and plain functions everywhere else.

Prefect is imported when the first flow starts, not before: its import and its server take seconds, and a verb that is
refused, or that has no server to report to, needs neither. Results of steps are found again by `Run.cached`, never by
Prefect's own cache: Prefect remembers that a task returned; we have to know that its files are still there and undamaged.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from flows.errors import InputError
from flows.orchestrator.reports import in_flow
from flows.run.launch import end_children
from flows.run.record import in_step
from flows.run.run import Run
from flows.settings import INSTALL_DASK, Settings
from flows.workspace import Workspace

if TYPE_CHECKING:
    from prefect import Task
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

P = ParamSpec("P")
R = TypeVar("R")


class Step(Generic[P, R]):
    """A function that is a Prefect task within a flow, and itself elsewhere."""

    def __init__(self, work: Callable[P, R], name: str) -> None:
        functools.update_wrapper(self, work)
        self.fn, self._name = _recorded(work, name), name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Result of the function, which Prefect shows as a task if a flow is running."""
        return self._task(*args, **kwargs) if in_flow() else self.fn(*args, **kwargs)

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> PrefectFuture[R]:
        """Starts the task on the task runner of the running flow."""
        return self._task.submit(*args, **kwargs)

    @functools.cached_property
    def _task(self) -> Task[P, R]:
        from prefect import Task
        from prefect.cache_policies import NO_CACHE

        return Task(self.fn, task_run_name=self._name, cache_policy=NO_CACHE, persist_result=False)


def _recorded(work: Callable[P, R], name: str) -> Callable[P, R]:
    """The function, which records its beginning and its end if one of its arguments is a run (flows.run.record)."""

    @functools.wraps(work)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        given = inspect.signature(work).bind(*args, **kwargs)
        given.apply_defaults()
        run = next((each for each in given.arguments.values() if isinstance(each, Run)), None)
        with in_step(run.folder, name.format(**given.arguments)) if run else nullcontext():
            return work(*args, **kwargs)

    return wrapped


def step(name: str) -> Callable[[Callable[P, R]], Step[P, R]]:
    """Decorator that makes a function a step. Prefect shows `name` with the parameters in braces filled in."""
    return lambda work: Step(work, name)


def as_flow(work: Callable[P, R], name: str, *, runner: TaskRunner[Any] | None = None) -> Callable[P, R]:
    """The function as a Prefect flow, whose steps are its tasks; it needs a server (flows.orchestrator.server).

    runner: where steps run that are submitted; by default in threads.
    """
    from prefect import flow

    return flow(name=name, validate_parameters=False, task_runner=runner)(work)


@contextmanager
def parallel_tasks(workspace: Workspace, *, num_parallel: int, reads: Path | None = None) -> Iterator[TaskRunner[Any]]:
    """The task runner for independent steps: `num_parallel` threads, or the workers of the cluster of CLEANSHELF_DASK.

    reads: a path that the steps read besides the workspace.

    Raises:
        InputError: Dask is not installed, or the cluster cannot be used (flows.run.cluster).
        WorldError: the cluster ended meanwhile.
    """
    from prefect.task_runners import ThreadPoolTaskRunner

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
