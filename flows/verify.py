"""Every link from the number of a model version to its bytes, what they were made of, and what is served: which are broken.

    tag -> entry -> lineage -> files -> metadata of the graph -> endpoint; lineage -> data, stages, recipe

Looking changes nothing.
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
    """What was found of a model version: links that do not hold, and files of its run that are not here any more."""

    version: int
    broken: list[Broken]
    gone: list[str]


def verify(workspace: Workspace, version: int | None = None) -> Verified:
    """Follows every link of a model version, by default of the one that serves.

    Raises:
        UnknownVersion: no such version, or none serves.
        CorruptObject: the registry does not know which one serves.
    """
    models = ModelVersions(Ledger(workspace.root))
    wanted = models.current() if version is None else version
    if wanted is None:
        raise UnknownVersion("there is no current model yet; run `cleanshelf retrain` first")
    chain = ModelLinks(wanted, workspace, models, repository(workspace))
    return Verified(wanted, chain.check(), chain.gone())


@dataclass(frozen=True)
class ModelLinks:
    """The links of one model version."""

    version: int
    workspace: Workspace
    models: ModelVersions
    versions: ModelRepository

    def check(self) -> list[Broken]:
        """The broken links, from the number down to what the model was made of. What rests on broken files is not looked at.

        Raises:
            UnknownVersion: neither the registry nor the repository knows the number.
        """
        names, files = list(self._names()), list(self._files())
        rest = [] if files else [*self._metadata(), *self._parameters()]
        return [*names, *files, *rest, *self._served(), *self._data(), *self._stages(), *self._recipe()]

    def gone(self) -> list[str]:
        """Results that it was made of and that are not here any more, or were made again; nothing needs them."""
        return [str(result.path) for result in self._results if result.is_gone]

    # --- the registry ------------------------------------------------------------------------------------------

    def _names(self) -> Iterator[Broken]:
        name, tag, entries = tag_of(self.version), self._tagged, self._entries
        if tag is None and not entries and self.version not in self.versions.versions():
            self.models.lineage(self.version)  # raises, and tells which versions there are
        if not entries:
            yield self._broken("entry", REF, "has no entry of it", _FETCH)
        if tag is None or (entries and tag not in entries):
            way_out = f"`git tag -f -a -m '{MODEL} v{self.version}' {name} {entries[0]}`" if entries else _FETCH
            yield self._broken(
                "tag", f"refs/tags/{name}", f"names {tag}, no entry of it" if tag else "is missing", way_out
            )
        if self._registered is None:
            yield self._broken("lineage", f"{self._sha}:{LINEAGE}", "cannot be read in the ledger", _FETCH)

    @cached_property
    def _entries(self) -> list[str]:
        """Commits of the history that hold this version."""
        return [sha for version, sha in self.models.entries() if version == self.version]

    @cached_property
    def _tagged(self) -> str | None:
        return self.models.ledger.tip(f"refs/tags/{tag_of(self.version)}")

    @property
    def _sha(self) -> str:
        """The commit that has the lineage, as the tag says or, where that is astray, the history."""
        is_astray = self._entries and self._tagged not in self._entries
        return self._entries[0] if is_astray else self._tagged or REF

    @cached_property
    def _registered(self) -> bytes | None:
        """The lineage as the registry has it."""
        with suppress(UnknownVersion, WorldError):
            return self.models.text(self._sha)
        return None

    # --- the repository ----------------------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        return self.versions.model / str(self.version)

    @cached_property
    def _here(self) -> dict[str, Any]:
        """The lineage beside the model; empty where it cannot be read."""
        with suppress(CorruptVersion):
            return self.versions.lineage(self.version) if self.version in self.versions.versions() else {}
        return {}

    @cached_property
    def _lineage(self) -> dict[str, Any]:
        """What is told of the version, by the registry rather than by the repository."""
        return self._here | json.loads(self._registered or b"{}")

    def _files(self) -> Iterator[Broken]:
        if self.version not in self.versions.versions():
            yield self._broken("files", str(self._folder), "is missing", _RESTORE)
            return
        file = lineage_file(self._folder)
        put_back = f"`git show {self._sha}:{LINEAGE} > {file}`" if file.name == LINEAGE else _RESTORE
        if not self._here:
            yield self._broken("lineage", str(file), "cannot be read", put_back)
            return
        if self._registered is not None and not self._agrees(file):
            yield self._broken("lineage", str(file), "is not what the registry has", put_back)
        for path, problem in self.versions.damaged(self.version):
            yield self._broken("files", str(path), problem, _RESTORE)

    def _agrees(self, file: Path) -> bool:
        """To the byte; an earlier release registered a part of it, in another form."""
        if file.name == LINEAGE:
            return file.read_bytes() == self._registered
        return json.loads(self._registered or b"{}").items() <= self._here.items()

    def _metadata(self) -> Iterator[Broken]:
        """What the graph says of itself."""
        graph = self._folder / "model.onnx"
        with suppress(BadGraph):  # an earlier release could publish a file that says nothing
            told = facts(graph) | {"graph_sha256": self._here["files"]["model.onnx"]}
            for name in sorted(key for key in told.keys() & self._lineage.keys() if told[key] != self._lineage[key]):
                problem = f"is {told[name]}, {LINEAGE} says {self._lineage[name]}"
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
        """Whether the server is to serve what the registry says."""
        if self.version == self.models.current() and self._configured != (self.version,):
            problem = f"serves {list(self._configured) or 'nothing'}, the registry says {self.version}"
            yield self._broken("endpoint", self._config, problem, self._switch)

    def _parameters(self) -> Iterator[Broken]:
        """Whether clients are told what the version's files say."""
        if self._configured == (self.version,):
            for name in self.versions.astray():
                yield self._broken("endpoint", f"{self._config}: {name}", "is not what the files say", self._switch)

    # --- what it was made of -----------------------------------------------------------------------------------

    def _data(self) -> Iterator[Broken]:
        data, version = DataVersions(self.workspace), self._lineage.get("data_version", "")
        try:
            found = data.verify(version)
        except UnknownVersion:
            yield self._broken("data", version or LINEAGE, "is no data version here", _FETCH)
            return
        yield from (replace(broken, link=f"data {broken.link}") for broken in found)
        parents = descent(version, data.log())[1:]
        if parents != self._lineage.get("data_parents", parents):
            yield self._broken("data", version, f"was made of {parents}, {LINEAGE} says otherwise", _FETCH)

    @cached_property
    def _results(self) -> list[Result]:
        stages = self.workspace.runs / "stages"
        return [Result.read(stages / stage, name, sha256)
                for stage, files in self._lineage.get("stages", {}).items() for name, sha256 in files.items()]  # fmt: skip

    def _stages(self) -> Iterator[Broken]:
        for result in self._results:
            if result.is_broken:
                way_out = f"remove {result.path.parent}; a retraining that needs it makes it again"
                problem = f"sha256 is {result.found or 'that of no file'}, {LINEAGE} says {result.wanted}"
                yield self._broken("stage", str(result.path), problem, way_out)

    def _recipe(self) -> Iterator[Broken]:
        path = self.workspace.runs / self._lineage.get("run", "") / "recipe.json"
        wanted = self._lineage.get("config_hash")
        if path.exists() and wanted != recipe_digest(path):
            yield self._broken("recipe", str(path), f"does not hash to {wanted}", "it was edited; remove it")

    def _broken(self, link: str, file: str, problem: str, way_out: str) -> Broken:
        return Broken(tag_of(self.version), link, file, problem, way_out)


_FETCH = "`cleanshelf data pull --refs REMOTE` fetches it from a git remote that has it"
_RESTORE = "put it back from a backup, or let another version answer: `cleanshelf model rollback`"


@dataclass(frozen=True)
class Result:
    """A file that a stage left: the sha256 that it had, has now, and has by the stage's own word; None for no file."""

    path: Path
    wanted: str
    found: str | None
    made: str | None

    @classmethod
    def read(cls, folder: Path, name: str, wanted: str) -> Result:
        """As it is now."""
        path = folder / name
        return cls(path, wanted, sha256(path) if path.exists() else None, _json(folder / "done.json").get(name))

    @property
    def is_gone(self) -> bool:
        """Whether it is not here any more; a stage that was made again may have another result."""
        return self.found != self.wanted and (self.found == self.made or not self.path.parent.exists())

    @property
    def is_broken(self) -> bool:
        """Whether it is neither what it was nor what the stage says it is."""
        return self.found != self.wanted and not self.is_gone


def recipe_digest(recipe: Path) -> str:
    """Of a resolved recipe as a run keeps it, that of the recipe itself; another one where it is no JSON any more."""
    return digest(_json(recipe))


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or none of JSON."""
    with suppress(FileNotFoundError, ValueError):
        return dict(json.loads(path.read_bytes()))
    return {}
