"""A run: its recipe, its folder, and cached results that are found again by everything they depend on."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from durable import overwrite, sha256
from flows.errors import CorruptObject, WorldError
from flows.run.record import note_in_step
from flows.settings import REPOSITORY
from flows.workspace import Workspace
from flows.workspace.files import files_below, sync_tree
from models.recipe.config import Recipe, digest, to_dict

log = logging.getLogger("cleanshelf")
RECIPE = "recipe.json"
INPUTS = "inputs.json"
STAGING = "new-"  # start of the names of folders that are being filled
# Packages and modules below the repository. What only decides is not in COMPUTES: a changed gate leaves trainings valid.
COMPUTES = ("models", "pixels", "contract")
DECIDES = (*COMPUTES, "flows/retrain.py", "flows/steps", "flows/gate", "flows/run/measure.py")


@dataclass(frozen=True)
class Run:
    """One execution of a flow that trains, in a workspace."""

    workspace: Workspace
    recipe: Recipe
    id: str

    @property
    def folder(self) -> Path:
        """The folder with the recipe, the inputs and the report of the run."""
        return self.workspace.runs / self.id

    @property
    def recipe_file(self) -> Path:
        """The file with the resolved recipe, which child processes read; cached results are named by the recipe in memory.

        Raises:
            CorruptObject: the file is not what `open` wrote.
        """
        path = self.folder / RECIPE
        if not path.exists() or path.read_bytes() != self._resolved:
            raise CorruptObject(f"{path} was changed while the run was using it; start the run again")
        return path

    @property
    def _resolved(self) -> bytes:
        return json.dumps(to_dict(self.recipe), indent=1).encode()

    def open(self, inputs: Mapping[str, object]) -> None:
        """Creates the folder and writes the resolved recipe and the inputs of the run (flows.run.inputs)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        overwrite(self.folder / INPUTS, json.dumps(inputs, indent=1).encode())
        overwrite(self.folder / RECIPE, self._resolved)

    def new_folder(self) -> Path:
        """An empty folder in that of the run, to be filled and passed to `DataVersions.keep`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=STAGING, dir=self.folder))

    def cached(self, name: str, *depends_on: object, files: Sequence[str], work: Callable[[Path], None]) -> Path:
        """The folder with the result of a step, as `ResultCache.cached`."""
        return ResultCache(self.workspace).cached(name, *depends_on, files=files, work=work)


@dataclass(frozen=True)
class ResultCache:
    """Cached results of steps in a workspace, shared by all runs."""

    workspace: Workspace

    def folder(self, name: str, *depends_on: object) -> Path:
        """The folder of the result of a step, which may not be there yet."""
        return self.workspace.runs / "stages" / f"{name}-{digest(name, code_hash(), *depends_on)}"

    def cached(self, name: str, *depends_on: object, files: Sequence[str], work: Callable[[Path], None]) -> Path:
        """The folder with the result of a step: that of an earlier run, or the one that `work` fills now.

        files: the files that a finished result holds, whatever else it holds.

        Its name is a digest of everything that the result depends on: the arguments and the source (`code_hash`). A result
        is reused only if every file still has the hash recorded when it was finished. A step that was killed continues in
        the same folder.

        Raises:
            WorldError: `work` returned without one of the files.
        """
        folder = self.folder(name, *depends_on)
        if is_finished(folder, files):
            log.info("%s: reused, nothing it depends on has changed", name)
            note_in_step("reused", result=name)
            return folder
        note_in_step("computing", result=name)
        folder.mkdir(parents=True, exist_ok=True)
        work(folder)
        if missing := _missing(folder, files):
            raise WorldError(f"{name} ended without {missing[0]} in {folder}; run the same command again")
        _finish(folder)
        return folder


def inputs_of(workspace: Workspace, run: str) -> dict[str, Any]:
    """The inputs that a run wrote when it opened (flows.run.inputs); empty if they are gone or damaged."""
    try:
        return dict(json.loads((workspace.runs / run / INPUTS).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def sweep_runs(workspace: Workspace) -> None:
    """Removes the folders that killed runs were filling. The caller holds the lock of the runs."""
    for leftover in workspace.runs.glob(f"*/{STAGING}*"):
        shutil.rmtree(leftover)


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


def is_finished(folder: Path, files: Sequence[str] = ()) -> bool:
    """True if the folder holds a complete and undamaged result. Removes another one, so that it is computed again.

    files: the files that it has to hold, besides those that it recorded.
    """
    marker = folder / "done.json"
    if not marker.exists():
        return False
    try:
        recorded = json.loads(marker.read_bytes())
    except ValueError:
        recorded = {marker.name: "not the hash of any file"}
    hashes = recorded | {name: "not the hash of any file" for name in _missing(folder, files)}
    damaged = [name for name, known in hashes.items() if not (folder / name).exists() or sha256(folder / name) != known]
    if damaged:
        log.warning("%s/%s no longer has its hash; the step runs again", folder.name, damaged[0])
        shutil.rmtree(folder)
    return not damaged


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    """Those of the files that the folder lacks, or that are empty."""
    return [name for name in files if not (folder / name).is_file() or not (folder / name).stat().st_size]


def _finish(folder: Path) -> None:
    """Writes the hashes of the result's files once they are on the disk. Removes temporary files of killed attempts."""
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    sync_tree(folder)
    files = {path.name: sha256(path) for path in files_below(folder)}
    overwrite(folder / "done.json", json.dumps(files, indent=1).encode())
