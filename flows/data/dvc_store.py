"""DVC's cache and remote in a workspace. Only this module and flows.data.dvc_push import DVC.

DVC runs in this process instead of as a command. It then dies with the process on a kill, whereas an orphaned `dvc
push` would go on writing during a repair. It also raises typed errors, and says where its cache and remote lie, which
the verification needs. Those are read from its configuration: an import of DVC's repository takes as long as most verbs.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dvc.config import Config, ConfigError
from dvc.fs import LocalFileSystem, get_cloud_fs

from flows.data.objects import HashCache, Objects
from flows.data.remote import Remote
from flows.errors import InputError, MissingFromRemote
from flows.workspace import REMOTE, Workspace

OBJECTS = ("files", "md5")  # folder of the objects, in a cache and in a remote


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
        folder = self.workspace.root / ".dvc"
        with valid_configuration(self.workspace):
            config = WorkspaceConfig(str(folder))
            if not config["core"].get("remote"):
                raise MissingFromRemote(
                    f"{self.workspace.root}/.dvc/config names no default remote; run `cleanshelf init` there"
                )
            local, cache = config["cache"].get("local"), config["cache"].get("dir", str(folder / "cache"))
            where = {"name": local} if local else {"url": cache}
            return Path(get_cloud_fs(config, **where)[2], *OBJECTS), _remote(config)

    def push(self) -> None:
        """Runs `dvc push` for the version that data.dvc names."""
        from flows.data.dvc_push import push

        push(self.workspace)


def _remote(config: Config) -> Remote:
    kind, settings, path = get_cloud_fs(config, name=config["core"]["remote"])
    if settings.get("worktree") or settings.get("version_aware"):
        raise ConfigError("the remote keeps versions of its own (worktree, version_aware), which hides objects")
    fs = kind(**settings)
    return Remote(fs, str(fs.join(path, *OBJECTS)))


@contextmanager
def valid_configuration(workspace: Workspace) -> Iterator[None]:
    """Raises InputError if DVC finds a fault in its configuration."""
    try:
        yield
    except ConfigError as error:
        raise InputError(
            f"{workspace.root}: DVC's configuration is not valid ({error}); correct .dvc/config, "
            ".dvc/config.local, or the user's own (`dvc config --global --list`)"
        ) from None


class WorkspaceConfig(Config):
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


def folder_remote(folder: Path) -> Remote:
    """Remote whose objects lie in a local folder."""
    return Remote(LocalFileSystem(), str(folder))
