"""A stage of a flow: a Prefect task whose result is found again by `Run.stage`, never by Prefect's own cache.

Prefect remembers that a task returned; we need to know that its files are still there and unharmed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture

stage = partial(task, cache_policy=NO_CACHE, persist_result=False)


def together(futures: Sequence[PrefectFuture[Path]]) -> list[Path]:
    """The results of stages that run side by side, once all of them ended."""
    for future in futures:
        future.wait()
    return [future.result() for future in futures]
