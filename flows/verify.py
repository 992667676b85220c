"""Checks every link from the number of a model version to its files, to what they were made of, and to the endpoint.

    tag -> entry -> lineage -> files -> metadata of the graph -> endpoint; lineage -> data, stages, recipe

Nothing is changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from durable import sha256
from flows.data.history import descent
from flows.data.verify import Broken
from flows.data.versions import DataVersions
from flows.errors import UnknownVersion, WorldError
from flows.registry.card import facts
from flows.registry.repository import repository
from flows.registry.versions import MODEL, REF, ModelVersions, tag_of
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.recipe.config import digest
from serving.errors import BadGraph, CorruptVersion
from serving.repository.lineage import LINEAGE, lineage_file
from serving.repository.repository import ModelRepository


@dataclass(frozen=True)
class Verified:
    """Result of a verification: the broken links of a model version, and results of its run that no longer exist."""

    version: int
    broken: list[Broken]
    gone: list[str]


def verify(workspace: Workspace, version: int | None = None) -> Verified:
    """Checks every link of a model version, by default of the current model.

    Raises:
        UnknownVersion: there is no such version, or no current model.
        CorruptObject: the last promotion in the registry names an unknown version.
    """
    models = ModelVersions(Ledger(workspace.root))
    wanted = models.current() if version is None else version
    if wanted is None:
        raise UnknownVersion("there is no current model yet; run `cleanshelf retrain` first")
    links = ModelLinks(wanted, workspace, models, repository(workspace))
    return Verified(wanted, links.check(), links.gone())


@dataclass(frozen=True)
class ModelLinks:
    """The links of one model version."""

    version: int
    workspace: Workspace
    models: ModelVersions
    versions: ModelRepository

    def check(self) -> list[Broken]:
        """The broken links, in the order of the module's docstring; the graph's metadata are checked only in intact files.

        Raises:
            UnknownVersion: neither the registry nor the repository knows the number.
        """
        names, files = list(self._names()), list(self._files())
        rest = [] if files else [*self._metadata(), *self._parameters()]
        return [*names, *files, *rest, *self._served(), *self._data(), *self._stages(), *self._recipe()]

    def gone(self) -> list[str]:
        """Cached results behind the model that were removed or made again since; nothing needs them."""
        return [str(result.path) for result in self._results if result.is_gone]

    # --- the registry ------------------------------------------------------------------------------------------

    def _names(self) -> Iterator[Broken]:
        name, tag, entries = tag_of(self.version), self._tagged, self._entries
        if tag is None and not entries and self.version not in self.versions.versions():
            self.models.lineage(self.version)  # raises UnknownVersion, with the versions that exist
        if not entries:
            yield self._broken("entry", REF, "has no entry of this version", _FETCH)
        if tag is None or (entries and tag not in entries):
            way_out = f"`git tag -f -a -m '{MODEL} v{self.version}' {name} {entries[0]}`" if entries else _FETCH
            yield self._broken(
                "tag",
                f"refs/tags/{name}",
                f"points to {tag}, which is not an entry of this version" if tag else "is missing",
                way_out,
            )
        if self._registered is None:
            yield self._broken("lineage", f"{self._sha}:{LINEAGE}", "cannot be read in the ledger", _FETCH)

    @cached_property
    def _entries(self) -> list[str]:
        """Commits of the registry's side ref that hold this version."""
        return [sha for version, sha in self.models.entries() if version == self.version]

    @cached_property
    def _tagged(self) -> str | None:
        return self.models.ledger.tip(f"refs/tags/{tag_of(self.version)}")

    @property
    def _sha(self) -> str:
        """The commit with the lineage: the tag's, or the newest entry if the tag points elsewhere."""
        is_wrong_tag = self._entries and self._tagged not in self._entries
        return self._entries[0] if is_wrong_tag else self._tagged or REF

    @cached_property
    def _registered(self) -> bytes | None:
        """The lineage file in the registry, or None if it cannot be read."""
        with suppress(UnknownVersion, WorldError):
            return self.models.text(self._sha)
        return None

    # --- the repository ----------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.versions.model / str(self.version)

    @cached_property
    def _written(self) -> dict[str, Any]:
        """The lineage in the model repository; empty if it cannot be read."""
        with suppress(CorruptVersion):
            return self.versions.lineage(self.version) if self.version in self.versions.versions() else {}
        return {}

    @cached_property
    def _lineage(self) -> dict[str, Any]:
        """The lineage of the version; the registry wins over the repository."""
        return self._written | json.loads(self._registered or b"{}")

    def _files(self) -> Iterator[Broken]:
        if self.version not in self.versions.versions():
            yield self._broken("files", str(self._folder), "is missing", _RESTORE)
            return
        file = lineage_file(self._folder)
        restore = f"`git show {self._sha}:{LINEAGE} > {file}`" if file.name == LINEAGE else _RESTORE
        if not self._written:
            yield self._broken("lineage", str(file), "cannot be read", restore)
            return
        if self._registered is not None and not self._agrees(file):
            yield self._broken("lineage", str(file), "differs from the registry", restore)
        for path, problem in self.versions.damaged(self.version):
            yield self._broken("files", str(path), problem, _RESTORE)

    def _agrees(self, file: Path) -> bool:
        """True if the file equals the registered lineage; earlier releases registered a part of it, in another form."""
        if file.name == LINEAGE:
            return file.read_bytes() == self._registered
        return json.loads(self._registered or b"{}").items() <= self._written.items()

    def _metadata(self) -> Iterator[Broken]:
        """Checks the metadata of the graph against the lineage."""
        graph = self._folder / "model.onnx"
        with suppress(BadGraph):  # earlier releases could publish a file without metadata
            card = facts(graph) | {"graph_sha256": self._written["files"]["model.onnx"]}
            for name in sorted(key for key in card.keys() & self._lineage.keys() if card[key] != self._lineage[key]):
                problem = f"is {card[name]}, {LINEAGE} says {self._lineage[name]}"
                yield self._broken("metadata", f"{graph}: {name}", problem, _RESTORE)

    # --- the endpoint ------------------------------------------------------------------------------------------

    @cached_property
    def _configured(self) -> tuple[int, ...]:
        with suppress(CorruptVersion):
            return self.versions.configured()
        return ()

    @property
    def _config(self) -> str:
        return str(self.versions.model / "config.pbtxt")

    @property
    def _switch(self) -> str:
        return f"run `cleanshelf model rollback {self.version}`"

    def _served(self) -> Iterator[Broken]:
        """Checks that the server is configured to serve the current model."""
        if self.version == self.models.current() and self._configured != (self.version,):
            problem = f"serves {list(self._configured) or 'nothing'}, the registry says {self.version}"
            yield self._broken("endpoint", self._config, problem, self._switch)

    def _parameters(self) -> Iterator[Broken]:
        """Checks that config.pbtxt tells clients what the files of the version say."""
        if self._configured == (self.version,):
            for name in self.versions.astray():
                yield self._broken(
                    "endpoint", f"{self._config}: {name}", "differs from the files of the version", self._switch
                )

    # --- what it was made of -----------------------------------------------------------------------------------

    def _data(self) -> Iterator[Broken]:
        data, version = DataVersions(self.workspace), self._lineage.get("data_version", "")
        try:
            found = data.verify(version)
        except UnknownVersion:
            yield self._broken("data", version or LINEAGE, "is not a data version of this workspace", _FETCH)
            return
        yield from (replace(broken, link=f"data {broken.link}") for broken in found)
        parents = descent(version, data.known_entries())[1:]
        if parents != self._lineage.get("data_parents", parents):
            yield self._broken("data", version, f"was made of {parents}, {LINEAGE} says otherwise", _FETCH)

    @cached_property
    def _results(self) -> list[Result]:
        stages = self.workspace.runs / "stages"
        return [
            Result.read(stages / stage, name, sha256)
            for stage, files in self._lineage.get("stages", {}).items()
            for name, sha256 in files.items()
        ]

    def _stages(self) -> Iterator[Broken]:
        for result in self._results:
            if result.is_broken:
                way_out = f"remove {result.path.parent}; a retraining that needs it makes it again"
                problem = f"has sha256 {result.found}, {LINEAGE} says {result.wanted}" if result.found else "is missing"
                yield self._broken("stage", str(result.path), problem, way_out)

    def _recipe(self) -> Iterator[Broken]:
        path = self.workspace.runs / self._lineage.get("run", "") / "recipe.json"
        wanted = self._lineage.get("config_hash")
        if path.exists() and wanted != recipe_digest(path):
            yield self._broken("recipe", str(path), f"does not hash to {wanted}", "it was edited; remove it")

    def _broken(self, link: str, file: str, problem: str, way_out: str) -> Broken:
        return Broken(tag_of(self.version), link, file, problem, way_out)


_FETCH = "`cleanshelf data pull --refs REMOTE` fetches it from a git remote that has it"
_RESTORE = "restore it from a backup, or return to another version: `cleanshelf model rollback`"


@dataclass(frozen=True)
class Result:
    """A file of a cached result that a model was made of."""

    path: Path
    wanted: str  # sha256 in the lineage
    found: str | None  # sha256 now; None if the file is missing
    made: str | None  # sha256 in the done.json beside it; None if that does not name the file

    @classmethod
    def read(cls, folder: Path, name: str, wanted: str) -> Result:
        """Reads the present state of the file."""
        path = folder / name
        return cls(path, wanted, sha256(path) if path.exists() else None, _json(folder / "done.json").get(name))

    @property
    def is_gone(self) -> bool:
        """True if the result was removed, or made again with other bytes."""
        return self.found != self.wanted and (self.found == self.made or not self.path.parent.exists())

    @property
    def is_broken(self) -> bool:
        """True if the file is neither the one in the lineage nor the one in its done.json."""
        return self.found != self.wanted and not self.is_gone


def recipe_digest(recipe: Path) -> str:
    """Digest of the recipe in a run's resolved recipe file; differs from any recipe's if the file is damaged."""
    return digest(_json(recipe))


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    with suppress(FileNotFoundError, ValueError):
        return dict(json.loads(path.read_bytes()))
    return {}
