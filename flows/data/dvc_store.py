"""DVC's cache and remote in a workspace. No other module imports DVC.

DVC runs in this process instead of as a command. It then dies with the process on a kill, whereas an orphaned `dvc
push` would go on writing during a repair. It also raises typed errors, and says where its cache and remote lie, which
the verification needs.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dvc.config import Config, ConfigError, NoRemoteError
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.lock import LockError
from dvc.repo import Repo

from flows.data.objects import HashCache, Objects
from flows.data.remote import Remote
from flows.errors import InputError, MissingFromRemote, WorkspaceBusy, WorldError
from flows.workspace import REMOTE, Workspace


@dataclass(frozen=True)
class DvcRemote:
    """DVC in one workspace: says where the objects lie, and pushes them."""

    workspace: Workspace

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other process heals an object or changes a version, and keeps them out. Not re-entrant."""
        self.workspace.state.mkdir(exist_ok=True)
        with (self.workspace.state / "objects.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def objects(self, *, reread: bool = False) -> Iterator[Objects]:
        """DVC's cache and remote, `locked` for this process.

        Args:
            reread: forget which shards were read before, so that every byte is read again.
        """
        with self.locked():
            cache, remote = self._cache_and_remote
            path = self.workspace.state / "seen.json"
            yield Objects(cache, remote, HashCache(path) if reread else HashCache.load(path))

    @cached_property
    def _cache_and_remote(self) -> tuple[Path, Remote]:
        with self._repo() as repo:
            try:
                odb = repo.cloud.get_remote_odb()
            except NoRemoteError:
                raise MissingFromRemote(
                    f"{self.workspace.root}/.dvc/config names no default remote; run `cleanshelf init` there"
                ) from None
            return Path(repo.cache.local.path), Remote(odb.fs, odb.path)

    def push(self) -> None:
        """Runs `dvc push` for the version that data.dvc names."""
        with self._repo() as repo:
            _while_locked(lambda: repo.push([str(self.workspace.pointer)]))

    @contextmanager
    def _repo(self) -> Iterator[Repo]:
        # Only the ledger uses git: without `no_scm`, DVC would print advice and edit .gitignore. DVC's own log is
        # silenced, as our errors report a failure once.
        for name in ("dvc", "dvc_objects", "dvc_data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            with _WorkspaceRepo(str(self.workspace.root), config={"core": {"no_scm": True}}) as repo:
                yield repo
        except ConfigError as error:
            raise InputError(
                f"{self.workspace.root}: DVC's configuration is not valid ({error}); correct .dvc/config, "
                ".dvc/config.local, or the user's own (`dvc config --global --list`)"
            ) from None


class _WorkspaceConfig(Config):
    """Configuration of DVC in a workspace. Only remotes are taken from the user's and the system's configuration.

    A cache that these name is shared by all projects of the user, and their other settings may change what we store.
    """

    def load_one(self, level: str) -> dict[str, Any]:
        """The configuration of one level: system, global, repo or local."""
        if level not in self.SYSTEM_LEVELS:
            return dict(super().load_one(level))
        with suppress(PermissionError):  # HOME may belong to another user
            remotes = dict(super().load_one(level)["remote"])
            remotes.pop(REMOTE, None)  # its settings would be mixed with those of the workspace's own remote
            return {"remote": remotes}
        return {}


class _WorkspaceRepo(Repo):
    """DVC in a workspace, which keeps its index there too. DVC's own place depends on the user's name, which may be unknown."""

    @cached_property
    def config(self) -> Config:
        """The configuration of the workspace."""
        return _WorkspaceConfig(self.dvc_dir, local_dvc_dir=self.local_dvc_dir, fs=self.fs, config=self._config)

    @cached_property
    def site_cache_dir(self) -> str:
        """Folder of the index of pushed objects."""
        return str(Path(self.root_dir) / "state" / "dvc")


def folder_remote(folder: Path) -> Remote:
    """Remote whose objects lie in a local folder."""
    return Remote(LocalFileSystem(), str(folder))


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
