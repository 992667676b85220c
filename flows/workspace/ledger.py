"""History on git side refs.

An entry of the ledger is a git commit on a ref of its own, written by git's plumbing commands with a temporary index.
The user's HEAD, index and work tree are neither read nor changed, so entries can be recorded while a user has changes
staged.
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

# Git sets these inside hooks and aliases; they would direct our commands to another repository.
LEAKING = frozenset(
    f"GIT_{name}"
    for name in (
        *("DIR", "WORK_TREE", "IMPLICIT_WORK_TREE", "COMMON_DIR", "NAMESPACE", "PREFIX", "INTERNAL_SUPER_PREFIX"),
        *("INDEX_FILE", "OBJECT_DIRECTORY", "ALTERNATE_OBJECT_DIRECTORIES", "QUARANTINE_PATH", "SHALLOW_FILE"),
        *("GRAFT_FILE", "REPLACE_REF_BASE", "NO_REPLACE_OBJECTS", "DEFAULT_HASH", "DEFAULT_REF_FORMAT"),
    )
)
# They precede the user's own configuration. Hooks, background processes and signatures are for the user's own commits; a
# fetch that prunes would delete entries that were not pushed yet. By default git does not fsync loose objects, but a tag
# must not outlive its commit. A running git holds the lock of a ref for milliseconds; a lock that is a second old was left
# by a killed one.
OURS = {
    "core.fsync": "all",
    "core.filesRefLockTimeout": "1000",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.splitIndex": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.prune": "false",
    "push.gpgSign": "false",
    "push.followTags": "false",
    "tag.gpgSign": "false",
    "tag.forceSignAnnotated": "false",
    "log.showSignature": "false",
    "column.ui": "never",
    "i18n.commitEncoding": "UTF-8",
    "i18n.logOutputEncoding": "UTF-8",
    "init.defaultObjectFormat": "sha1",
    "init.defaultRefFormat": "files",
}
SETTINGS = tuple(part for key, value in OURS.items() for part in ("-c", f"{key}={value}"))
LOCKED = re.compile(rb"Unable to create '(.+/refs/.+\.lock)': File exists")
SHARED = tuple(f"{refs}:{refs}" for refs in ("refs/data/*", "refs/models/*", "refs/tags/data/*", "refs/tags/products*"))
IDENTITY = {"NAME": ("user.name", "CleanShelf"), "EMAIL": ("user.email", "cleanshelf@localhost")}


@dataclass(frozen=True)
class Commit:
    """An entry: its git sha, time (ISO 8601) and message."""

    sha: str
    time: str
    message: str


@dataclass(frozen=True)
class Ledger:
    """Append-only records in the git repository whose top level is `root`."""

    root: Path

    def commit(self, ref: str, files: Mapping[str, bytes | None], *, message: str) -> str:
        """Adds a commit to `ref` that changes `files` (path to content; None removes the file) and keeps the rest.

        Returns its sha.

        Raises:
            WorkspaceBusy: another process moved the ref; nothing was recorded.
        """
        tip = self.tip(ref)
        sha = self.record(files, message=message, after=tip)
        # Compare-and-swap: an empty old value means that the ref must not exist yet.
        moved = self._run("update-ref", "-m", "cleanshelf", ref, sha, tip or "")
        if moved.returncode:
            raise WorkspaceBusy(f"{ref} in {self.root} was moved by another process; run the command again")
        return sha

    def record(self, files: Mapping[str, bytes | None], *, message: str, after: str | None = None) -> str:
        """Writes a commit that changes `files` of the commit `after` and keeps the rest; no ref names it. Returns its sha."""
        with tempfile.TemporaryDirectory(prefix="cleanshelf-index-") as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            if after:
                self._git("read-tree", after, env=index)
            for path, content in files.items():
                if content is None:
                    self._git("update-index", "--force-remove", path, env=index)
                    continue
                blob = self._git("hash-object", "-w", "--stdin", given=content)
                self._git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=index)
            tree = self._git("write-tree", env=index)
        parent = ["-p", after] if after else []
        return self._git("commit-tree", tree, *parent, "-F", "-", given=message.encode())

    def tag(self, name: str, sha: str, message: str) -> None:
        """Puts the annotated tag `name` on `sha`. An existing tag stays as it is, as tags are append-only."""
        if not self.tags(name):
            self._git("tag", "-a", "--no-sign", "--cleanup=verbatim", "-F", "-", name, sha, given=message.encode())

    def tags(self, pattern: str) -> list[str]:
        """Names of the tags that match git's glob `pattern`, sorted."""
        return sorted(self._git("tag", "--list", pattern).split())

    def tip(self, ref: str) -> str | None:
        """Sha of the commit that `ref` names; None if there is none."""
        found = self._run("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
        return found.stdout.decode().strip() or None

    def log(self, ref: str) -> list[Commit]:
        """Commits of `ref`, newest first; empty if it does not exist."""
        tip = self.tip(ref)
        if tip is None:
            return []
        return self._commits("--first-parent", tip)

    def tagged(self, pattern: str) -> list[Commit]:
        """Commits that the tags matching git's glob `pattern` name, newest first."""
        return self._commits("--ignore-missing", "--no-walk", f"--tags={pattern}") if self.tags(pattern) else []

    def _commits(self, *which: str) -> list[Commit]:
        text = self._git("log", "-z", "--format=%H%n%cI%n%B", *which)
        rows = (row.split("\n", 2) for row in text.split("\0") if row)
        return [Commit(sha=sha, time=time, message=message.strip()) for sha, time, message in rows]

    def read(self, sha: str, path: str) -> bytes:
        """Content of `path` at `sha` (any name that git resolves).

        Raises:
            UnknownVersion: there is no such commit, or no such file in it.
        """
        content = self.read_many([(sha, path)])[0]
        if content is None:
            raise UnknownVersion(f"{self.root} has no {path} at {sha}; `git tag` lists the versions")
        return content

    def read_many(self, files: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Contents of many (sha, path), read by one git process; None for each that does not exist."""
        names = "".join(f"{sha}:{path}\n" for sha, path in files).encode()
        output = self._checked(self._run("cat-file", "--batch", given=names)).stdout
        contents: list[bytes | None] = []
        start = 0
        for _ in files:
            end = output.index(b"\n", start)
            head, start = output[start:end], end + 1
            if head.endswith(b" missing"):
                contents.append(None)
                continue
            size = int(head.rsplit(b" ", 1)[1])
            contents.append(output[start : start + size])
            start += size + 1
        return contents

    def push(self, remote: str) -> None:
        """Sends the histories and tags of data and models to another git repository; nothing there is overwritten.

        Raises:
            WorldError: it cannot be reached, or its history has diverged.
        """
        self._git("push", "--atomic", "--quiet", remote, *SHARED)

    def fetch(self, remote: str) -> None:
        """Fetches the histories and tags of data and models from another git repository; nothing here is overwritten.

        Raises:
            WorldError: it cannot be reached, or its history has diverged.
        """
        kept = ("--no-tags", "--no-prune", "--no-write-fetch-head")  # whatever the remote's own configuration says
        self._git("fetch", "--atomic", "--quiet", *kept, remote, *SHARED)

    def user(self) -> str:
        """Name of the user, as `Name <address>` if git knows one, else the login name, else the number."""
        name, address = (self._configured.get(key, "") for key in ("user.name", "user.email"))
        name = name or _login_name()
        return f"{name} <{address}>" if address else name

    def _git(self, *args: str, given: bytes = b"", env: Mapping[str, str] | None = None) -> str:
        return self._checked(self._run(*args, given=given, env=env)).stdout.decode().rstrip("\n")

    def _checked(self, done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[bytes]:
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().replace("\n", "; ")
            if os.strerror(errno.ENOSPC) in reason:  # a subprocess reports a full disk only as text
                raise OSError(errno.ENOSPC, reason)
            raise WorldError(
                f"git {done.args[3 + len(SETTINGS)]} failed in {self.root}: {reason}; check git there, then retry"
            )
        return done

    def _run(
        self, *args: str, given: bytes = b"", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        variables = self._identity | dict(env or {})
        done = run_git(self.root, *args, given=given, env=variables)
        if done.returncode and (lock := LOCKED.search(done.stderr)):
            # A killed git left this lock; no later command could move the ref.
            (self.root / os.fsdecode(lock[1])).unlink(missing_ok=True)
            done = run_git(self.root, *args, given=given, env=variables)
        return done

    @cached_property
    def _identity(self) -> dict[str, str]:
        """Variables with the name and the address that git lacks: it can make them up only from an entry in passwd."""
        roles = ("AUTHOR", "COMMITTER")
        lacking = {part: text for part, (key, text) in IDENTITY.items() if not self._configured.get(key)}
        names = {f"GIT_{role}_{part}": text for role in roles for part, text in lacking.items()}
        return {name: os.environ.get(name) or text for name, text in names.items()}

    @cached_property
    def _configured(self) -> dict[str, str]:
        """The user's name and address as git is configured."""
        found = run_git(self.root, "config", "-z", "--get-regexp", r"^user\.(name|email)$").stdout.decode(
            errors="replace"
        )
        rows = (row.partition("\n") for row in found.split("\0") if row)
        return {key: value.strip() for key, _, value in rows}


def run_git(
    root: Path, *args: str, given: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs git in the folder `root`, with our settings and without the variables of hooks; any exit code is returned.

    Raises:
        WorldError: git is not installed.
    """
    variables = {key: value for key, value in os.environ.items() if key not in LEAKING} | {"LC_ALL": "C"}
    command = ["git", "-C", str(root), *SETTINGS, *args]
    try:
        return subprocess.run(command, input=given, env=variables | dict(env or {}), capture_output=True, check=False)
    except FileNotFoundError:
        raise WorldError("git is not installed; install it, then run the command again") from None


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd
        return f"user {os.getuid()}"
