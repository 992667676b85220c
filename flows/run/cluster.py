"""Steps on the workers of a Dask cluster, which may be other machines with access to the same workspace.

A task cannot be stopped from outside its worker, so each ends its own children once its result is no longer wanted
(flows.run.launch).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask
from distributed import Client, KilledWorker, LocalCluster
from distributed.security import Security
from prefect.settings import PREFECT_API_URL
from prefect_dask import DaskTaskRunner

from contract.environment import process_variables
from flows.errors import InputError, WorldError
from flows.orchestrator.events import answers
from flows.run.run import code_hash
from flows.settings import LOCAL
from flows.workspace import Workspace

CONNECT_TIMEOUT_S = 5.0
# Environment of each process. It replaces Dask's own, which allows one thread for arithmetic, also to the trainings that
# the process starts. Log lines are forwarded to the flow.
LOGGING = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL", "DASK_LOGGING__DISTRIBUTED": "critical"}


@contextmanager
def on_dask(workspace: Workspace, address: str, *, num_parallel: int, reads: Path) -> Iterator[DaskTaskRunner]:
    """The task runner on the Dask scheduler at this address.

    If `address` is "local", it runs on `num_parallel` processes of this machine, which end with the block. Log lines of the
    workers are forwarded here. Prefect's API URL has to be set, because the workers report to it.

    Raises:
        InputError: no scheduler answers there, it has no workers, or one of them cannot work for this workspace.
        WorldError: workers kept dying, or the scheduler ended.
    """
    with ExitStack() as stack:
        security = None
        if address == LOCAL:
            cluster = stack.enter_context(_local(workspace, num_parallel))
            address, security = cluster.scheduler_address, cluster.security
        client = stack.enter_context(_connected(address, security))
        _check(client, address, [workspace.root / ".dvc" / "config", reads])
        client.forward_logging("cleanshelf", level=logging.INFO)
        try:
            yield DaskTaskRunner(address=address, client_kwargs={"security": security})
        except KilledWorker as error:
            raise WorldError(f"CLEANSHELF_DASK: {error.last_worker.address} and others died at the same step; "
                             "see their logs, then run the same command again") from None  # fmt: skip
        except CancelledError:
            raise WorldError(
                f"CLEANSHELF_DASK: the scheduler at {address} ended; start it and run the same command again"
            ) from None


@contextmanager
def _local(workspace: Workspace, num_parallel: int) -> Iterator[LocalCluster]:
    """A cluster of processes of this machine, on loopback and with TLS keys of its own: a worker runs any code it is sent."""
    folder = workspace.state / "dask"
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # our own messages say what matters
    with dask.config.set({"distributed.nanny.pre-spawn-environ": process_variables(**LOGGING)}), LocalCluster(
        n_workers=num_parallel, threads_per_worker=1, memory_limit=None, host="127.0.0.1", protocol="tls", security=True,
        dashboard_address="127.0.0.1:0", local_directory=str(folder), 
    ) as cluster:  # fmt: skip
        yield cluster


@contextmanager
def _connected(address: str, security: Security | None) -> Iterator[Client]:
    try:
        client = Client(address, security=security, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"CLEANSHELF_DASK: no Dask scheduler answers at {address!r} ({str(error).splitlines()[0]}); "
            f"name one such as tcp://HOST:8786, or {LOCAL!r}"
        ) from None
    with client:
        yield client


def _check(client: Client, address: str, files: list[Path]) -> None:
    problems = client.run(
        why_unusable, [path.absolute() for path in files], code_hash(), PREFECT_API_URL.value(), on_error="return"
    )
    if not problems:
        raise InputError(
            f"CLEANSHELF_DASK: the scheduler at {address} has no workers; start some with `dask worker {address}`"
        )
    for worker, problem in problems.items():
        if problem:
            raise InputError(f"CLEANSHELF_DASK: worker {worker} cannot be used: {problem}")


def why_unusable(files: list[Path], code: str, api: str) -> str:
    """The reason why the worker that runs this cannot be used, "" if it can.

    Args:
        files: the files that it has to see.
        code: the code_hash that its source has to have.
        api: the URL of Prefect's API that it has to reach.
    """
    logging.getLogger("cleanshelf").setLevel(logging.INFO)
    if code_hash() != code:
        return "its CleanShelf source differs; install the same version and restart it"
    if unseen := [str(path) for path in files if not path.exists()]:
        return f"it does not see {unseen[0]}; mount it there"
    if not answers(api):
        return f"it cannot reach Prefect's API at {api}; set PREFECT_API_URL to a server that all machines reach"
    return ""
