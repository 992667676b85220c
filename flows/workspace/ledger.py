"""History on git side refs.

A ledger entry is a git commit on a ref of its own, written with git's plumbing and a temporary index: the user's HEAD,
index and work tree are never read or touched, so automation can record while somebody has half a commit staged.
"""

from __future__ import annotations

import errno
import getpass
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flows.errors import UnknownVersion, WorkspaceBusy, WorldError

# Set by git itself inside hooks and aliases; they would send our commands to another repository.
LEAKING = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
)
# Git leaves loose objects unsynced by default, and a tag must not outlive its commit. A git that lives holds the lock of a
# ref for milliseconds; after a second it is nobody's.
SETTINGS = ("-c", "core.fsync=all", "-c", "core.filesRefLockTimeout=1000")
LOCKED = re.compile(rb"Unable to create '(.+/refs/.+\.lock)': File exists")
SHARED = tuple(f"{refs}:{refs}" for refs in ("refs/data/*", "refs/models/*", "refs/tags/data/*", "refs/tags/products*"))
IDENTITY = {
    "GIT_AUTHOR_NAME": "CleanShelf",
    "GIT_AUTHOR_EMAIL": "cleanshelf@localhost",
    "GIT_COMMITTER_NAME": "CleanShelf",
    "GIT_COMMITTER_EMAIL": "cleanshelf@localhost",
}


@dataclass(frozen=True)
class Commit:
    """One entry: its git sha, when it was made (ISO 8601), and its message."""

    sha: str
    time: str
    message: str


@dataclass(frozen=True)
class Ledger:
    """Append-only records in the git repository whose top level is `root`."""

    root: Path

    def commit(self, ref: str, files: Mapping[str, bytes | None], *, message: str) -> str:
        """Add a commit to `ref` that changes `files` (path to content, None: it goes) and keeps the rest; its sha.

        Raises:
            WorkspaceBusy: the ref moved meanwhile; nothing was recorded.
        """
        tip = self.tip(ref)
        with tempfile.TemporaryDirectory(prefix="cleanshelf-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            if tip:
                self._git("read-tree", tip, env=index)
            for path, content in files.items():
                if content is None:
                    self._git("update-index", "--force-remove", path, env=index)
                    continue
                blob = self._git("hash-object", "-w", "--stdin", given=content)
                self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=index)
            tree = self._git("write-tree", env=index)
        parent = ["-p", tip] if tip else []
        sha = self._git("commit-tree", tree, *parent, "-F", "-", given=message.encode())
        # The empty old value means "must not exist yet": compare-and-swap in either case.
        moved = self._run("update-ref", "-m", "cleanshelf", ref, sha, tip or "")
        if moved.returncode:
            raise WorkspaceBusy(f"{ref} in {self.root} was moved by another process; run the command again")
        return sha

    def tag(self, name: str, sha: str, message: str) -> None:
        """Put the annotated tag `name` on `sha`. An existing tag stays as it is: tags are append-only."""
        if not self.tags(name):
            self._git("tag", "-a", "--no-sign", "--cleanup=verbatim", "-F", "-", name, sha, given=message.encode())

    def tags(self, pattern: str) -> list[str]:
        """Names of the tags that match git's glob `pattern`, sorted."""
        return sorted(self._git("tag", "--list", pattern).split())

    def tip(self, ref: str) -> str | None:
        """The sha at which `ref` stands, or None."""
        found = self._run("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        return found.stdout.decode().strip() or None

    def log(self, ref: str) -> list[Commit]:
        """The commits of `ref`, newest first; empty when it does not exist."""
        tip = self.tip(ref)
        if tip is None:
            return []
        text = self._git("log", "--first-parent", "-z", "--format=%H%n%cI%n%B", tip)
        rows = (row.split("\n", 2) for row in text.split("\0") if row)
        return [Commit(sha=sha, time=time, message=message.strip()) for sha, time, message in rows]

    def read(self, sha: str, path: str) -> bytes:
        """The content of `path` at `sha` (any name git knows).

        Raises:
            UnknownVersion: there is no such commit or no such file in it.
        """
        content = self.read_many([(sha, path)])[0]
        if content is None:
            raise UnknownVersion(f"{self.root} has no {path} at {sha}; see `git tag` for what there is")
        return content

    def read_many(self, places: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """The contents of many (sha, path) with one git process; None for each that is not there."""
        asked = "".join(f"{sha}:{path}\n" for sha, path in places).encode()
        answer = self._checked(self._run("cat-file", "--batch", given=asked)).stdout
        contents: list[bytes | None] = []
        at = 0
        for _ in places:
            head, at = answer[at : answer.index(b"\n", at)], answer.index(b"\n", at) + 1
            if head.endswith(b" missing"):
                contents.append(None)
                continue
            size = int(head.rsplit(b" ", 1)[1])
            contents.append(answer[at : at + size])
            at += size + 1
        return contents

    def push(self, remote: str) -> None:
        """Send the histories and tags of data and models to another git repository; nothing there is overwritten.

        Raises:
            WorldError: it cannot be reached, or has another history.
        """
        self._git("push", "--atomic", "--quiet", remote, *SHARED)

    def fetch(self, remote: str) -> None:
        """Take the histories and tags of data and models from another git repository; nothing here is overwritten.

        Raises:
            WorldError: it cannot be reached, or has another history.
        """
        self._git("fetch", "--atomic", "--quiet", "--no-tags", remote, *SHARED)

    def user(self) -> str:
        """Who runs this, as `Name <address>` where git knows one, else by the login."""
        name, address = (self._run("config", key).stdout.decode().strip() for key in ("user.name", "user.email"))
        return f"{name or getpass.getuser()} <{address}>" if address else name or getpass.getuser()

    def _git(self, *args: str, given: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        return self._checked(self._run(*args, given=given, env=env)).stdout.decode().rstrip("\n")

    def _checked(self, done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[bytes]:
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
            if os.strerror(errno.ENOSPC) in said:  # git is the one writer whose full disk shows as text
                raise OSError(errno.ENOSPC, said)
            raise WorldError(
                f"git {done.args[3 + len(SETTINGS)]} failed in {self.root}: {said}; see that git works there, then retry"
            )
        return done

    def _run(
        self, *args: str, given: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        command = ["git", "-C", str(self.root), *SETTINGS, *args]
        variables = self._environment() | dict(env or {})
        done = subprocess.run(command, input=given, env=variables, capture_output=True, check=False)
        if done.returncode and (
            held := LOCKED.search(done.stderr)
        ):  # a killed git left it; the ref would be stuck for ever
            (self.root / os.fsdecode(held[1])).unlink(missing_ok=True)
            done = subprocess.run(command, input=given, env=variables, capture_output=True, check=False)
        return done

    def _environment(self) -> dict[str, str]:
        """Ours without what leaks from hooks, with an identity where the user has none."""
        return ({} if self._has_identity else IDENTITY) | _kept() | {"LC_ALL": "C"}

    @cached_property
    def _has_identity(self) -> bool:
        command = ["git", "-C", str(self.root), "config", "user.email"]
        return bool(subprocess.run(command, env=_kept(), capture_output=True, check=False).stdout.strip())


def _kept() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in LEAKING}
