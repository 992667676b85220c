"""DVC's cache and remote in a workspace. The only module that knows DVC.

DVC runs in this process and not as a command: it then dies with us on a kill (an orphaned `dvc push` would go on writing
under a repair), gives typed errors, and tells where its cache and remote lie, which the verification needs.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dvc.config import NoRemoteError
from dvc.exceptions import DvcException
from dvc.fs import LocalFileSystem
from dvc.lock import LockError
from dvc.repo import Repo

from flows.data.objects import HashCache, Objects, Remote
from flows.errors import MissingFromRemote, WorkspaceBusy, WorldError
from flows.workspace import Workspace


@dataclass(frozen=True)
class DvcRemote:
    """What DVC does for one workspace: it says where the objects lie, and pushes them."""

    workspace: Workspace

    @contextmanager
    def objects(self, *, anew: bool = False) -> Iterator[Objects]:
        """DVC's cache and remote, one process at a time, so that two never heal the same object.

        Args:
            anew: forget which shards were read before, so that every byte is read again.
        """
        self.workspace.state.mkdir(exist_ok=True)
        with (self.workspace.state / "objects.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            cache, remote = self._places
            memory = self.workspace.state / "seen.json"
            yield Objects(cache, remote, HashCache(memory) if anew else HashCache.load(memory))

    @cached_property
    def _places(self) -> tuple[Path, Remote]:
        with self._repo() as repo:
            try:
                odb = repo.cloud.get_remote_odb()
            except NoRemoteError:
                raise MissingFromRemote(
                    f"{self.workspace.root}/.dvc/config names no default remote; run `cleanshelf init` there"
                ) from None
            return Path(repo.cache.local.path), Remote(odb.fs, odb.path)

    def push(self) -> None:
        """`dvc push` of what data.dvc names."""
        with self._repo() as repo:
            _patiently(lambda: repo.push([str(self.workspace.pointer)]))

    @contextmanager
    def _repo(self) -> Iterator[Repo]:
        # DVC keeps a cache for all users under /var/tmp unless told otherwise. Git is the ledger's business: DVC is
        # told that there is none, lest it print advice or edit .gitignore. Its own log goes to stdout, and to stderr with
        # tracebacks; what fails is told once, by us.
        for name in ("dvc", "dvc_objects", "dvc_data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        core = {"site_cache_dir": str(self.workspace.state / "dvc"), "no_scm": True}
        with Repo(str(self.workspace.root), config={"core": core}) as repo:
            yield repo


def folder_remote(folder: Path) -> Remote:
    """A folder of objects as a remote."""
    return Remote(LocalFileSystem(), str(folder))


def _patiently(call: Callable[[], Any]) -> None:
    """Run a DVC call again while somebody else's `dvc` holds its lock, five times of about 3 seconds each."""
    for attempt in range(5):
        try:
            call()
            return
        except LockError:
            if attempt == 4:
                raise WorkspaceBusy(
                    "another dvc command holds the workspace; wait for it to end, then run it again"
                ) from None
            time.sleep(0.2)
        except DvcException as error:
            raise WorldError(f"DVC failed: {error}") from error
