"""`dvc push`, several objects at a time, for remotes on other machines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo

from flows.data.dvc_store import WorkspaceConfig, valid_configuration
from flows.errors import WorkspaceBusy, WorldError
from flows.workspace import Workspace


def push(workspace: Workspace) -> None:
    """Pushes the version that data.dvc names.

    Raises:
        WorkspaceBusy, WorldError, InputError
    """
    # DVC's own log is silenced, as our errors report a failure once.
    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Only the ledger uses git: without `no_scm`, DVC would print advice and edit .gitignore.
    with (
        valid_configuration(workspace),
        _WorkspaceRepo(str(workspace.root), config={"core": {"no_scm": True}}) as repo,
    ):
        _while_locked(lambda: repo.push([str(workspace.pointer)]))


class _WorkspaceRepo(Repo):
    """DVC in a workspace, which keeps its index there too. DVC's own place depends on the user's name, which may be unknown."""

    @cached_property
    def config(self) -> Config:
        """The configuration of the workspace."""
        return WorkspaceConfig(self.dvc_dir, local_dvc_dir=self.local_dvc_dir, fs=self.fs, config=self._config)

    @cached_property
    def site_cache_dir(self) -> str:
        """Folder of the index of pushed objects."""
        return str(Path(self.root_dir) / "state" / "dvc")


def _while_locked(call: Callable[[], Any]) -> None:
    """Repeats a DVC call while another `dvc` holds the lock: five times, about 3 seconds each."""
    for attempt in range(5):
        try:
            call()
            return
        except LockError:
            if attempt == 4:
                raise WorkspaceBusy(
                    "another dvc command holds the lock of the workspace; wait for it to end, then run it again"
                ) from None
            time.sleep(0.2)
        except DvcException as error:
            raise WorldError(f"DVC failed: {error}") from error
