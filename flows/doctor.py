"""Checks that everything CleanShelf needs is there: one line per part, with the fix if something is missing."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flows.data.versions import DataVersions
from flows.endpoint.server import access
from flows.errors import WorldError
from flows.registry.repository import repository
from flows.run.gpus import VISIBLE, has_driver, visible_gpus
from flows.settings import INSTALL_DASK, Settings
from flows.workspace import Workspace
from serving.server.control import Endpoint
from serving.server.environment import inspect
from serving.server.shared_room import PLACE, require_shared_memory
from serving.server.watch_lock import watcher

PARTS = ("torch", "timm", "onnx", "onnxruntime-gpu", "tritonclient", "dvc", "prefect", "fastapi")
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Check:
    """The state of one part, with what was found or what to do."""

    part: str
    ok: bool
    detail: str


def examine(workspace: Workspace | None) -> list[Check]:
    """All checks, of which none changes anything; the workspace is skipped if None."""
    settings = Settings()
    return [*_machine(), *_packages(settings), _triton(settings), *_workspace(workspace, settings)]


def _machine() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check(
        "python",
        sys.version_info >= (3, 11),
        f"{version}" if sys.version_info >= (3, 11) else f"{version}; install 3.11 or later",
    )
    yield Check("git", bool(shutil.which("git")), shutil.which("git") or "not found; install git")
    yield _check("gpu", gpus)


def gpus() -> str:
    """The GPUs that trainings use, with their models, or where training runs without one.

    Raises:
        WorldError: there is a driver, but torch can use no GPU, and none was hidden from it.
    """
    if found := visible_gpus():
        return f"{len(found)} that torch can use: " + ", ".join(f"{gpu.name} ({gpu.model})" for gpu in found)
    if has_driver() and VISIBLE not in os.environ:
        raise WorldError("a driver is installed, but torch can use no GPU; install a driver for torch's CUDA, "
                         f"or hide it with {VISIBLE}=")  # fmt: skip
    return f"none; training runs on {os.cpu_count()} CPU cores"


def _packages(settings: Settings) -> Iterator[Check]:
    wanted = dict.fromkeys(PARTS, "run `make setup`") | ({"prefect-dask": INSTALL_DASK} if settings.dask else {})
    for name, way_out in wanted.items():
        try:
            yield Check(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, False, f"not installed; {way_out}")


def _triton(settings: Settings) -> Check:
    return _check("triton environment", lambda: f"python {inspect(settings.triton_env).python}, complete")


def _workspace(workspace: Workspace | None, settings: Settings) -> Iterator[Check]:
    if workspace is None:
        yield Check("workspace", True, "none here; create one with `cleanshelf init`")
        return
    versions = DataVersions(workspace)

    def data() -> str:
        versions.check_clean()
        selected = versions.selected()
        problems = versions.verify(selected) if selected else []
        if problems:
            raise ValueError("; ".join(map(str, problems)))
        return f"version {selected[:12]}, every hash matches" if selected else "no data yet; run `cleanshelf ingest`"

    yield _check("data", data)
    yield _check("shared memory", lambda: _shared_memory(workspace, settings))
    yield _check("endpoint", lambda: _endpoint(workspace, settings))
    yield _check("watchdog", lambda: _watchdog(workspace))


def _endpoint(workspace: Workspace, settings: Settings) -> str:
    """State of the endpoint, once it has answered a golden photo: a dead model may still be reported as ready."""
    found = access(workspace, settings)
    if found is None:
        return "not running; start it with `cleanshelf serve`"
    versions = repository(workspace, settings)
    with Endpoint(found, answer_timeout_s=ANSWER_TIMEOUT_S) as control:
        active = control.active()
        for version in versions.configured():
            control.golden_check(versions, version, at_most=1)
    return f"gRPC at {found.url}, " + (f"model version {active[0]} answers" if active else "no model yet")


def _shared_memory(workspace: Workspace, settings: Settings) -> str:
    """Shared memory that is free and that a local server would take; none is needed while one runs, or by trainings."""
    if access(workspace, settings) is None:
        require_shared_memory(repository(workspace, settings), passes_bytes=True)
    return f"{shutil.disk_usage(PLACE).free / 1e6:.0f} MB free in {PLACE}"


def _watchdog(workspace: Workspace) -> str:
    pid = watcher(workspace.state)
    return f"pid {pid}" if pid else "none; `cleanshelf watch` restarts an endpoint that dies"


def _check(part: str, inspect: Callable[[], str]) -> Check:
    try:
        return Check(part, True, inspect())
    except (ValueError, RuntimeError) as error:
        return Check(part, False, str(error))
