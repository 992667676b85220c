"""Stages on the workers of a Dask cluster, which may be other machines that see the same workspace.

A task cannot be stopped from outside its worker, so each ends its own children once nobody waits for it (flows.run.launch).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import dask
from distributed import Client, KilledWorker, LocalCluster
from distributed.security import Security
from prefect.settings import PREFECT_API_URL
from prefect_dask import DaskTaskRunner

from flows.errors import InputError, WorldError
from flows.run.run import code_hash
from flows.workspace import Workspace

LOCAL = "local"
CONNECT_TIMEOUT_S = 5.0
# Of each process. Dask's default is one thread for arithmetic, which the trainings that it starts would inherit.
# Lines come to the log of the flow.
ENVIRONMENT = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "DASK_LOGGING__DISTRIBUTED": "critical"}


@contextmanager
def on_dask(workspace: Workspace, where: str, *, num_parallel: int, reads: Path) -> Iterator[DaskTaskRunner]:
    """The task runner on the scheduler at the address `where`, or on so many processes of this machine that end with the block.

    What the workers log comes here. Prefect's API has to be set, as the workers report to it.

    Raises:
        InputError: nobody answers there, it has no workers, or one of them cannot work for this workspace.
        WorldError: workers kept dying, or the scheduler ended.
    """
    with ExitStack() as stack:
        security = None
        if where == LOCAL:
            cluster = stack.enter_context(_local(workspace, num_parallel))
            where, security = cluster.scheduler_address, cluster.security
        client = stack.enter_context(_connected(where, security))
        _check(client, where, [workspace.root / ".dvc" / "config", reads])
        client.forward_logging("cleanshelf", level=logging.INFO)
        try:
            yield DaskTaskRunner(address=where, client_kwargs={"security": security})
        except KilledWorker as error:
            raise WorldError(f"CLEANSHELF_DASK: {error.last_worker.address} and others died at one stage; "
                             "see their logs, then run the same command again") from None  # fmt: skip
        except CancelledError:
            raise WorldError(f"CLEANSHELF_DASK: the scheduler at {where} ended; start it and run it again") from None


@contextmanager
def _local(workspace: Workspace, num_parallel: int) -> Iterator[LocalCluster]:
    """Processes of this machine, on loopback, behind keys made for them alone: whoever reaches a worker can have it run code."""
    folder = workspace.state / "dask"
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters of it is told in our words
    with dask.config.set({"distributed.nanny.pre-spawn-environ": ENVIRONMENT}), LocalCluster(
        n_workers=num_parallel, threads_per_worker=1, memory_limit=None, host="127.0.0.1", protocol="tls", security=True,
        dashboard_address="127.0.0.1:0", local_directory=str(folder), 
    ) as cluster:  # fmt: skip
        yield cluster


@contextmanager
def _connected(where: str, security: Security | None) -> Iterator[Client]:
    try:
        client = Client(where, security=security, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"CLEANSHELF_DASK: no Dask scheduler answers at {where!r} ({str(error).splitlines()[0]}); "
            f"name one such as tcp://HOST:8786, or {LOCAL!r}"
        ) from None
    with client:
        yield client


def _check(client: Client, where: str, seen: list[Path]) -> None:
    lacks = client.run(
        missing, [path.absolute() for path in seen], code_hash(), PREFECT_API_URL.value(), on_error="return"
    )
    if not lacks:
        raise InputError(
            f"CLEANSHELF_DASK: the scheduler at {where} has no workers; start some with `dask worker {where}`"
        )
    for worker, lack in lacks.items():
        if lack:
            raise InputError(f"CLEANSHELF_DASK: worker {worker} cannot be used: {lack}")


def missing(seen: list[Path], code: str, api: str) -> str:
    """What the worker that runs this lacks: the source of that hash, the files that must be seen, the API; "" is nothing."""
    logging.getLogger("cleanshelf").setLevel(logging.INFO)
    if code_hash() != code:
        return "its source of models is another one; give it the same and restart it"
    if unseen := [str(path) for path in seen if not path.exists()]:
        return f"it does not see {unseen[0]}; mount it there"
    try:
        urlopen(f"{api}/health", timeout=CONNECT_TIMEOUT_S).close()
    except OSError:
        return f"it does not reach Prefect's API at {api}; set PREFECT_API_URL to a server that all machines reach"
    return ""
