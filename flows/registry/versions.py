"""The model registry: annotated git tags in GTO's format, and the lineage of each version on a side ref.

`products@v3.0.0` registers version 3; `products#prod#7` is the seventh promotion. Tags are only added: a rollback is
one more promotion, of an earlier version. Any tool that knows GTO can read the registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flows.errors import CorruptObject, UnknownVersion
from flows.workspace.ledger import Ledger
from serving.repository.lineage import EARLIER, LINEAGE, canonical

REF = "refs/models/main"
MODEL = "products"
REGISTERED = re.compile(rf"{MODEL}@v(\d+)\.0\.0")
ENTRY = re.compile(rf"{MODEL} v(\d+)")  # the message of a commit
PROMOTED = re.compile(rf"{MODEL}#prod#(\d+)")


@dataclass(frozen=True)
class ModelEntry:
    """One line of the registry."""

    version: int
    serving: bool
    run: str | None
    data_version: str | None
    metrics: Mapping[str, Any]
    lineage: Mapping[str, Any]


@dataclass(frozen=True)
class ModelVersions:
    """The models of one workspace, numbered from 1."""

    ledger: Ledger

    def register(self, lineage: Mapping[str, Any]) -> None:
        """Registers a version with its lineage, once. The tag is written last, so a killed call can be repeated."""
        version = lineage["version"]
        if version not in self.versions():
            name = f"{MODEL} v{version}"
            sha = self.ledger.commit(REF, {LINEAGE: canonical(lineage), EARLIER: None}, message=name)
            self.ledger.tag(tag_of(version), sha, name)

    def promote(self, version: int) -> None:
        """Makes `version` the current model.

        Raises:
            UnknownVersion: there is no such version.
        """
        sha = self._sha(version)
        number = max(self._promotions(), default=0) + 1
        self.ledger.tag(f"{MODEL}#prod#{number}", sha, f"{MODEL} v{version} serves")

    def current(self) -> int | None:
        """The current model: the version that was promoted last, or None."""
        return next(self._history(), None)

    def promoted(self) -> set[int]:
        """The current model and all versions that were current before."""
        return set(self._history())

    def previous(self) -> int:
        """The version that was current before the present one.

        Raises:
            UnknownVersion: there was none.
        """
        history = list(self._history())
        for version in history:
            if version != history[0]:
                return version
        promoted = f"was promoted before {history[0]}" if history else "has been promoted yet"
        raise UnknownVersion(f"no model version {promoted}; {self._existing()}")

    def lineage(self, version: int) -> dict[str, Any]:
        """The lineage of `version`.

        Raises:
            UnknownVersion: there is no such version.
        """
        return dict(json.loads(self.text(self._sha(version))))

    def text(self, sha: str) -> bytes:
        """The lineage file that was registered in the commit `sha`.

        Raises:
            UnknownVersion: the commit has none.
        """
        earlier = self.ledger.read_many([(sha, EARLIER)])[0]
        return earlier or self.ledger.read(sha, LINEAGE)

    def log(self) -> list[ModelEntry]:
        """All versions, newest first."""
        serving = self.current()
        return [self._entry(version, serving=serving) for version in sorted(self.versions(), reverse=True)]

    def versions(self) -> list[int]:
        """All version numbers that have a tag, in no order."""
        return self._numbers(REGISTERED, f"{MODEL}@*")

    def entries(self) -> list[tuple[int, str]]:
        """Version and sha of every commit on the side ref, newest first."""
        found = ((ENTRY.fullmatch(commit.message), commit.sha) for commit in self.ledger.log(REF))
        return [(int(match[1]), sha) for match, sha in found if match]

    def _entry(self, version: int, *, serving: int | None) -> ModelEntry:
        lineage = self.lineage(version)
        return ModelEntry(
            version=version,
            serving=version == serving,
            run=lineage.get("run"),
            data_version=lineage.get("data_version"),
            metrics=lineage.get("metrics", {}),
            lineage=lineage,
        )

    def _history(self) -> Iterator[int]:
        """The promoted versions, newest first."""
        tagged = {self.ledger.tip(f"refs/tags/{tag_of(version)}"): version for version in self.versions()}
        versions = tagged | {sha: version for version, sha in self.entries()}
        for number in sorted(self._promotions(), reverse=True):
            tag = f"refs/tags/{MODEL}#prod#{number}"
            sha = self.ledger.tip(tag)
            if sha not in versions:
                way_out = "`cleanshelf data pull --refs REMOTE` fetches it from a git remote that has it"
                raise CorruptObject(f"{tag} points to a version that is not in {REF}; {way_out}")
            yield versions[sha]

    def _promotions(self) -> list[int]:
        return self._numbers(PROMOTED, f"{MODEL}#prod#*")

    def _numbers(self, pattern: re.Pattern[str], glob: str) -> list[int]:
        found = (pattern.fullmatch(name) for name in self.ledger.tags(glob))
        return [int(match[1]) for match in found if match]

    def _sha(self, version: int) -> str:
        sha = self.ledger.tip(f"refs/tags/{tag_of(version)}")
        if sha is None:
            raise UnknownVersion(f"there is no model version {version}; {self._existing()}")
        return sha

    def _existing(self) -> str:
        newest = ", ".join(map(str, sorted(self.versions(), reverse=True)[:8]))
        return f"there are: {newest}" if newest else "there are none yet; run `cleanshelf retrain` first"


def tag_of(version: int) -> str:
    """Name of the git tag that registers a version."""
    return f"{MODEL}@v{version}.0.0"


def named(version: int | None) -> str:
    """Name of a version, or of no version, in a message."""
    return "no model" if version is None else f"model version {version}"
