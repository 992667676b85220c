"""One retraining: its recipe, its folder, and stages whose results are found again by what they depend on."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from durable import overwrite, sha256
from flows.errors import CorruptObject
from flows.settings import REPOSITORY
from flows.workspace import Workspace
from flows.workspace.files import files_below, sync_tree
from models.recipe.config import Recipe, digest, to_dict

log = logging.getLogger("cleanshelf")
RECIPE = "recipe.json"
# Packages and modules below the repository. What only decides is not in COMPUTES: a changed gate leaves trainings valid.
COMPUTES = ("models", "pixels", "contract")
DECIDES = (*COMPUTES, "flows/retrain.py", "flows/steps", "flows/gate", "flows/run/measure.py")


@dataclass(frozen=True)
class Run:
    """A retraining in a workspace."""

    workspace: Workspace
    recipe: Recipe
    id: str

    @property
    def folder(self) -> Path:
        return self.workspace.runs / self.id

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe, as the training processes read it; stages are named by the one in memory.

        Raises:
            CorruptObject: it is not what `open` wrote.
        """
        path = self.folder / RECIPE
        if not path.exists() or path.read_bytes() != self._resolved:
            raise CorruptObject(f"{path} was changed while the run was using it; start the run again")
        return path

    @property
    def _resolved(self) -> bytes:
        return json.dumps(to_dict(self.recipe), indent=1).encode()

    def open(self, inputs: Mapping[str, object]) -> None:
        """Makes the folder and writes the resolved recipe, and what the run depends on (flows.run.inputs)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        overwrite(self.folder / "inputs.json", json.dumps(inputs, indent=1).encode())
        overwrite(self.folder / RECIPE, self._resolved)

    def cached(self, name: str, *depends_on: object, work: Callable[[Path], None]) -> Path:
        """The folder with the result of a step, as `ResultCache.cached`."""
        return ResultCache(self.workspace).cached(name, *depends_on, work=work)


@dataclass(frozen=True)
class ResultCache:
    """Cached results of steps in a workspace, shared by all runs."""

    workspace: Workspace

    def cached(self, name: str, *depends_on: object, work: Callable[[Path], None]) -> Path:
        """The folder with the result of a stage, worked out now or found from an earlier run.

        A stage is named by everything it depends on: the arguments given, and the source of models. A result counts only if
        every file still has the hash it had when it was finished; a stage that was killed goes on in its own folder.
        """
        folder = self.workspace.runs / "stages" / f"{name}-{digest(name, code_hash(), *depends_on)}"
        if is_finished(folder):
            log.info("%s: found, nothing it depends on has changed", name)
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        work(folder)
        _finish(folder)
        return folder


@functools.cache
def code_hash() -> str:
    """Hash of the source that computes cached results: a changed loss makes all of them stale."""
    return _hash_of_source(COMPUTES)


@functools.cache
def deciding_hash() -> str:
    """Hash of all source that decides how a run ends: also which labels, steps and models pass."""
    return _hash_of_source(DECIDES)


def _hash_of_source(parts: Sequence[str]) -> str:
    """Hash of the names and the content of the Python files that these are or hold."""
    roots = [REPOSITORY / part for part in parts]
    files = sorted(path for root in roots for path in (root.rglob("*.py") if root.is_dir() else [root]))
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(REPOSITORY).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:16]


def is_finished(folder: Path) -> bool:
    """Whether a stage's result is there and unharmed; a harmed one is removed, so that it is worked out again."""
    marker = folder / "done.json"
    if not marker.exists():
        return False
    try:
        files = json.loads(marker.read_bytes())
    except ValueError:
        files = {marker.name: "of whole JSON"}
    harmed = [name for name, digest in files.items() if not (folder / name).exists() or sha256(folder / name) != digest]
    if harmed:
        log.warning("%s/%s no longer has its hash; the stage runs again", folder.name, harmed[0])
        shutil.rmtree(folder)
    return not harmed


def _finish(folder: Path) -> None:
    """Writes the hashes of a stage's files, once they are on the disk; what a killed attempt left half-written goes."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    sync_tree(folder)
    files = {path.name: sha256(path) for path in files_below(folder)}
    overwrite(folder / "done.json", json.dumps(files, indent=1).encode())
