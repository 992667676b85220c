"""The workspace, a folder with all data and models of one product catalogue, and its locks."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import IO

from durable import overwrite
from flows.errors import WorkspaceBusy, WorkspaceMissing, WorldError
from flows.workspace.ledger import run_git

DATA_LOCK = "data"  # name of the lock of everything that changes data versions
POLL_S = 0.1
IGNORED = ("/data", "/versions", "/runs", "/repository", "/remote", "/state")
# The files that `dvc init` and `dvc remote add` would write. `dvc init` itself refuses a partial .dvc, and stages files
# in the user's git index.
REMOTE = "local"  # name of the default remote
CACHE = "    dir = cache\n"  # here, also if the user's own configuration names a cache for all projects
CACHE_SECTION = re.compile(r"^[ \t]*\[cache\].*\n?", re.MULTILINE | re.IGNORECASE)
DVC_CONFIG = f"""\
[core]
    analytics = false
    check_update = false
    autostage = false
    remote = {REMOTE}
[cache]
{CACHE}\
    type = "reflink,hardlink,symlink,copy"
['remote "{REMOTE}"']
    url = ../remote
"""
DVC_FILES = {
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "# DVC leaves out what matches these patterns.\n",
    ".dvc/config": DVC_CONFIG,
}


@dataclass(frozen=True)
class Workspace:
    """Paths of one workspace; see docs/inside/architecture.md."""

    root: Path

    @property
    def data(self) -> Path:
        """Files of the selected data version."""
        return self.root / "data"

    @property
    def pointer(self) -> Path:
        """DVC's file data.dvc, which names the selected data version."""
        return self.root / "data.dvc"

    @property
    def versions(self) -> Path:
        """Copies of data versions, which runs read."""
        return self.root / "versions"

    @property
    def runs(self) -> Path:
        """One folder per retraining."""
        return self.root / "runs"

    @property
    def maps(self) -> Path:
        """Maps of data versions; a purge deletes them."""
        return self.runs / "maps"

    @property
    def repository(self) -> Path:
        """The Triton model repository."""
        return self.root / "repository"

    @property
    def state(self) -> Path:
        """Locks, staging folders, logs and the home of Prefect."""
        return self.root / "state"

    @property
    def remote(self) -> Path:
        """The default local DVC remote."""
        return self.root / "remote"

    @classmethod
    def init(cls, root: Path) -> Workspace:
        """Makes the workspace `root`, or completes a partial one; existing files are kept.

        Raises:
            WorldError: git is missing, or refuses to make a repository there.
        """
        made = cls(root.absolute())
        made.root.mkdir(parents=True, exist_ok=True)
        if not (made.root / ".git").exists() or not _is_top_level(made.root):
            _git_init(made.root)
        for name in ("versions", "runs", "repository", "state", "remote", ".dvc/tmp", "state/staging"):
            (made.root / name).mkdir(parents=True, exist_ok=True)
        _ignore(made.root / ".gitignore")
        for name, text in DVC_FILES.items():  # the config comes last, as it marks the workspace as complete
            path = made.root / name
            if not path.exists() or not path.read_bytes().strip():
                overwrite(path, text.encode())
        made.pin_cache()
        return made

    def pin_cache(self) -> None:
        """Names the cache in .dvc/config, unless it is named there. Earlier releases left it to the user's configuration."""
        path = self.root / ".dvc" / "config"
        text = path.read_text(encoding="utf-8")
        if not _names_cache(text):
            text, found = CACHE_SECTION.subn(f"[cache]\n{CACHE}", text, count=1)
            overwrite(path, (text if found else f"{text}\n[cache]\n{CACHE}").encode())

    def holds(self, path: Path) -> bool:
        """True if the file or folder really lies in the workspace, symbolic links resolved."""
        return path.resolve().is_relative_to(self.root.resolve())

    @classmethod
    def find(cls, path: Path) -> Workspace:
        """The workspace at `path`, or the nearest one above it.

        Raises:
            WorkspaceMissing: there is none.
        """
        for folder in (path.absolute(), *path.absolute().parents):
            if (folder / ".dvc" / "config").is_file() and (folder / "state").is_dir() and (folder / ".git").exists():
                return cls(folder)
        raise WorkspaceMissing(
            f"no workspace at {path} or above it; make one with `cleanshelf init -w {quote(str(path))}`"
        )

    @contextmanager
    def lock(self, verb: str, *, name: str = "lock", wait_s: float = 0.0) -> Iterator[None]:
        """Takes a lock for `verb`; the kernel frees it when the process ends in any way. Not re-entrant.

        Args:
            name: "lock" for a run, of which there is one at a time; DATA_LOCK for a change of the data versions, which may
                come in during a run; "serving" for a switch of the endpoint.
            wait_s: how long to wait for another process that holds the lock.

        Raises:
            WorkspaceBusy: another process holds the lock; the message names its verb and its number.
        """
        self.state.mkdir(exist_ok=True)
        deadline = time.monotonic() + wait_s
        # Python's files are closed on exec, so a child process never keeps the lock.
        with (self.state / name).open("a+") as file:
            while not _taken(file):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "another process"
                    raise WorkspaceBusy(f"{self.root} is busy: {holder} holds it; wait for it to end, or stop it")
                time.sleep(POLL_S)
            file.truncate(0)
            file.write(f"`{verb}` (process {os.getpid()})\n")
            file.flush()
            yield
            file.truncate(0)

    @contextmanager
    def idle(self, verb: str) -> Iterator[None]:
        """Takes the locks of runs and of the data versions, for a change that neither may see half done.

        Raises:
            WorkspaceBusy: another process holds one of them.
        """
        with self.lock(verb), self.lock(verb, name=DATA_LOCK):
            yield


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _names_cache(config: str) -> bool:
    """True if the section [cache] of a DVC configuration has the key `dir`."""
    section = ""
    for line in map(str.strip, config.splitlines()):
        section = line.lower() if line.startswith("[") else section
        if section.startswith("[cache]") and line.partition("=")[0].strip().lower() == "dir":
            return True
    return False


def _ignore(path: Path) -> None:
    """Adds missing lines to .gitignore; the user's own lines stay."""
    present = path.read_text(encoding="utf-8") if path.exists() else ""
    missing = [line for line in IGNORED if line not in present.splitlines()]
    if missing:
        gap = "\n" if present and not present.endswith("\n") else ""
        overwrite(path, (present + gap + "\n".join(missing) + "\n").encode())


def _is_top_level(root: Path) -> bool:
    found = run_git(root, "rev-parse", "--show-toplevel")
    return found.returncode == 0 and Path(os.fsdecode(found.stdout.removesuffix(b"\n"))) == root.resolve()


def _git_init(root: Path) -> None:
    done = run_git(root, "init", "--quiet", "--template=")  # the user's template may hold hooks
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
        raise WorldError(f"git cannot make a repository in {root}: {reason}")
