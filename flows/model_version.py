"""The model registry: annotated git tags in GTO's format, records on a side ref.

`products@v3.0.0` registers version 3, `products#prod#7` is the seventh time that a version was put to work. Both only
ever grow: a rollback is one more assignment. Any tool that knows GTO reads the same registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flows.errors import UnknownVersion
from flows.ledger import Ledger

REF = "refs/models/main"
MODEL = "products"
REGISTERED = re.compile(rf"{MODEL}@v(\d+)\.0\.0")
ASSIGNED = re.compile(rf"{MODEL}#prod#(\d+)")


@dataclass(frozen=True)
class ModelEntry:
    """One line of the registry; `record` is all that was said of the model when it was registered."""

    version: int
    serving: bool
    run: str | None
    data_version: str | None
    metrics: Mapping[str, Any]
    record: Mapping[str, Any]


@dataclass(frozen=True)
class ModelVersions:
    """The models of one workspace, numbered from 1."""

    ledger: Ledger

    def register(self, record: Mapping[str, Any]) -> int:
        """Keep `record` (JSON values) under the next number and give that. A number is never used twice."""
        version = max(self._registered(), default=0) + 1
        text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
        sha = self.ledger.commit(REF, {"record.json": text.encode()}, message=f"{MODEL} v{version}")
        self.ledger.tag(_tag(version), sha, f"{MODEL} v{version}")
        return version

    def assign(self, version: int) -> None:
        """Say that `version` serves from now on.

        Raises:
            UnknownVersion: no such version.
        """
        sha = self._sha(version)
        number = max(self._assigned(), default=0) + 1
        self.ledger.tag(f"{MODEL}#prod#{number}", sha, f"{MODEL} v{version} serves")

    def serving(self) -> int | None:
        """The version that was assigned last, or None."""
        return next(iter(self._history()), None)

    def served(self) -> set[int]:
        """The versions that serve or did."""
        return set(self._history())

    def previous(self) -> int:
        """The version that served before the present one.

        Raises:
            UnknownVersion: none did.
        """
        history = self._history()
        for version in history:
            if version != history[0]:
                return version
        raise UnknownVersion(f"no model version served before {self.serving() or 'this'}; {self._there()}")

    def record(self, version: int) -> dict[str, Any]:
        """What was registered as `version`.

        Raises:
            UnknownVersion: no such version.
        """
        return dict(json.loads(self.ledger.read(self._sha(version), "record.json")))

    def log(self) -> list[ModelEntry]:
        """All versions, newest first."""
        serving = self.serving()
        return [self._entry(version, serving=serving) for version in sorted(self._registered(), reverse=True)]

    def _entry(self, version: int, *, serving: int | None) -> ModelEntry:
        record = self.record(version)
        return ModelEntry(
            version=version,
            serving=version == serving,
            run=record.get("run"),
            data_version=record.get("data_version"),
            metrics=record.get("metrics", {}),
            record=record,
        )

    def _history(self) -> list[int]:
        """The assigned versions, newest first."""
        versions = {self.ledger.tip(f"refs/tags/{_tag(version)}"): version for version in self._registered()}
        numbers = sorted(self._assigned(), reverse=True)
        return [versions[self.ledger.tip(f"refs/tags/{MODEL}#prod#{number}")] for number in numbers]

    def _registered(self) -> list[int]:
        return self._numbers(REGISTERED, f"{MODEL}@*")

    def _assigned(self) -> list[int]:
        return self._numbers(ASSIGNED, f"{MODEL}#prod#*")

    def _numbers(self, pattern: re.Pattern[str], glob: str) -> list[int]:
        found = (pattern.fullmatch(name) for name in self.ledger.tags(glob))
        return [int(match[1]) for match in found if match]

    def _sha(self, version: int) -> str:
        sha = self.ledger.tip(f"refs/tags/{_tag(version)}")
        if sha is None:
            raise UnknownVersion(f"{version} is no model version; {self._there()}")
        return sha

    def _there(self) -> str:
        there = ", ".join(map(str, sorted(self._registered(), reverse=True)[:8]))
        return f"there are: {there}" if there else "there are none yet; run `cleanshelf retrain` first"


def _tag(version: int) -> str:
    return f"{MODEL}@v{version}.0.0"
