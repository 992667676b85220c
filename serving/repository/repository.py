"""The Triton model repository: versions that exist only whole, and the one file that says which are served."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from durable import overwrite, sha256, sync
from serving.durable import disk_full_named
from serving.errors import BadGraph, ContractChanged, CorruptVersion, VersionInUse, VersionNotFound
from serving.repository.accelerator import CPU, Accelerator
from serving.repository.encoded import install
from serving.repository.lineage import lineage_file
from serving.repository.model_config import TritonConfig
from serving.repository.version import Golden, read_labels, write_version
from serving.signature import Signature

CANDIDATE = "-candidate-"  # between the model's name and the version that has to prove itself


@dataclass(frozen=True)
class ModelRepository:
    """The versions of model `name` under `root`, and how the server is to run them.

    A numeric directory appears by one rename after everything in it has reached the disk, and never changes again.

    Args:
        max_batch_size, instances, accelerator, warmup: see TritonConfig; written with every `configure`.
    """

    root: Path
    name: str = "products"
    max_batch_size: int = 8
    instances: int | None = None
    accelerator: Accelerator = CPU
    warmup: bool = True

    @property
    def model(self) -> Path:
        """The directory that Triton knows as the model."""
        return self.root / self.name

    def candidate(self, version: int) -> ModelRepository:
        """Where a version of this model is tried, under a name of its own: one that hangs must not be in another's way.

        One instance is enough to see whether it answers, and without a warm-up no load waits for it to do so.
        """
        return replace(self, name=f"{self.name}{CANDIDATE}{version}", instances=1, warmup=False)

    def write(
        self,
        graph: Path,
        *,
        version: int,
        labels: Sequence[str],
        lineage: Mapping[str, Any],
        golden: NDArray[np.uint8],
    ) -> Path:
        """Make `version` from a graph; returns its directory. The model for encoded photos is laid beside this one.

        Args:
            graph: ONNX file; external data beside it comes along.
            version: a number >= 1 never used before.
            labels: line i names class i.
            lineage: all but `version` and `files`, which are added; `run` is text.
            golden: (G, S, S, 3) uint8, G >= 1; answered here by local ONNX Runtime and later by the server.

        Raises:
            VersionInUse, BadGraph, DiskFull: nothing is left behind.
        """
        target = self.model / str(version)
        if version < 1:
            raise BadGraph(f"version {version}: Triton counts from 1")
        if target.exists():
            raise VersionInUse(f"{target} exists and versions never change; take the next free number")
        self.model.mkdir(parents=True, exist_ok=True)
        install(self.root, self.name)
        with self._staging(version) as staging:
            write_version(staging, graph, labels=labels, lineage={**lineage, "version": version}, golden=golden)
            self._publish(staging, target)
        return target

    def versions(self) -> tuple[int, ...]:
        """Every whole version, ascending."""
        names = [path.name for path in self.model.glob("[1-9]*") if path.is_dir()] if self.model.is_dir() else []
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def path(self, version: int) -> Path:
        """The directory of a version.

        Raises:
            VersionNotFound: with the versions that there are.
        """
        path = self.model / str(version)
        if version not in self.versions():
            raise VersionNotFound(f"{self.model} has no version {version}; it has {list(self.versions()) or 'none'}")
        return path

    def labels(self, version: int) -> tuple[str, ...]:
        """Line i names class i.

        Raises:
            CorruptVersion: they are not what was staged.
        """
        return read_labels(self._intact(version, "labels.txt"))

    def lineage(self, version: int) -> dict[str, Any]:
        """The lineage of the version, with `files`: name -> sha256.

        Raises:
            CorruptVersion: it is missing or unreadable.
        """
        path = lineage_file(self.path(version))
        try:
            lineage = json.loads(path.read_bytes())
            return {**lineage, "files": dict(lineage["files"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptVersion(f"{path} cannot be read ({error}); stage the graph again as a new version") from None

    def golden(self, version: int) -> Golden:
        """The golden images and their answers.

        Raises:
            CorruptVersion: they are not what was staged.
        """
        with np.load(self._intact(version, "golden.npz")) as arrays:
            return Golden(arrays["image"], arrays["ids"], arrays["probs"])

    def _intact(self, version: int, name: str) -> Path:
        """A file of the version, its hash seen to be the recorded one."""
        path, wanted = self.path(version) / name, self.lineage(version)["files"].get(name)
        if not path.is_file() or sha256(path) != wanted:
            raise CorruptVersion(f"{path} is not what was staged; serve another version and stage this graph again")
        return path

    def verify(self, version: int) -> None:
        """Hash every file of the version again.

        Raises:
            CorruptVersion: names the first file that is missing, changed or not in the lineage.
        """
        for path, problem in self.damaged(version):
            raise CorruptVersion(f"{path}: {problem}; serve another version and stage this graph again")

    def damaged(self, version: int) -> Iterator[tuple[Path, str]]:
        """Every file of the version that is missing, changed or not in its lineage, and what is wrong with it.

        Raises:
            CorruptVersion: the lineage cannot be read.
        """
        folder, files = self.path(version), self.lineage(version)["files"]
        lineage = lineage_file(folder).name
        names = {path.name for path in folder.iterdir()} - {lineage}
        for name in sorted(names | set(files)):
            found = sha256(folder / name) if name in names else "no such file"
            if found != files.get(name):
                yield folder / name, f"sha256 is {found}, {lineage} says {files.get(name, 'nothing')}"

    def configure(self, versions: Sequence[int]) -> None:
        """Write config.pbtxt so that exactly these versions are served, at once or not at all; remove it for none.

        Raises:
            VersionNotFound, DiskFull; ContractChanged: the versions do not share one signature.
        """
        self.restore(self._config(versions).to_pbtxt() if versions else "")

    def is_configured(self, version: int) -> bool:
        """Whether config.pbtxt is as `configure` would write it for this version alone."""
        return self.configuration() == self._config((version,)).to_pbtxt()

    def configuration(self) -> str:
        """The text of config.pbtxt; "" if there is none."""
        path = self.model / "config.pbtxt"
        return path.read_text("utf-8") if path.is_file() else ""

    def restore(self, text: str) -> None:
        """Make config.pbtxt what `configuration` gave.

        Raises:
            DiskFull: it is as it was.
        """
        if text:
            with disk_full_named(self.model):
                overwrite(self.model / "config.pbtxt", text.encode())
        else:
            (self.model / "config.pbtxt").unlink(missing_ok=True)

    def astray(self) -> list[str]:
        """Names of what config.pbtxt tells clients otherwise than the versions' own files do."""
        found, true = TritonConfig.parse(self.configuration()), self._config(self.configured())
        names = found.parameters.keys() | true.parameters.keys()
        return sorted(name for name in names if found.parameters.get(name) != true.parameters.get(name))

    def _told(self, version: int, signature: Signature) -> dict[str, str]:
        """What clients read of a version in the configuration: they see the server alone, not this disk."""
        lineage = self.lineage(version)
        facts = {
            "data_version": signature.metadata.get("data_version", ""),
            "graph_sha256": lineage["files"].get("model.onnx", ""),
            "labels": json.dumps(self.labels(version), ensure_ascii=False),
            "lineage_sha256": sha256(lineage_file(self.path(version))),
            "run": lineage.get("run", ""),
        }
        return {f"{name}.{version}": value for name, value in facts.items()}

    def configured(self) -> tuple[int, ...]:
        """The versions that config.pbtxt names; () if there is none.

        Raises:
            CorruptVersion: it is no configuration.
        """
        try:
            text = self.configuration()
            return TritonConfig.parse(text).versions if text else ()
        except ValueError as error:
            path = self.model / "config.pbtxt"
            raise CorruptVersion(
                f"{path} cannot be read ({error}); remove it, the next start or switch writes it"
            ) from None

    def check_contract(self, graph: Path) -> None:
        """That clients of the version now configured can go on with `graph`.

        Raises:
            ContractChanged: input size, k or embedding width differ.
        """
        signature = Signature.read(graph)
        if served := self.configured():
            newest = max(served)
            self._same(signature, Signature.read(self.path(newest) / "model.onnx"), f"{graph} against version {newest}")

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Alone: whoever else wants to switch waits, and the kernel lets go of the lock of a killed one."""
        self.model.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.model, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def leftovers(self) -> list[Path]:
        """What killed stages and switches left. Stages under way are left alone."""
        stages = [path for path in self.model.glob(".stage-*") if not _is_held(path)]
        return [*stages, *self.model.glob(".config.pbtxt.*.part"), *self.root.glob(f"{self.name}{CANDIDATE}*")]

    def sweep(self) -> list[Path]:
        """Remove the leftovers; returns what was removed."""
        leftovers = self.leftovers()
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return leftovers

    def _config(self, versions: Sequence[int]) -> TritonConfig:
        chosen = tuple(sorted(set(versions)))
        signatures = {version: Signature.read(self.path(version) / "model.onnx") for version in chosen}
        newest = max(chosen)
        for version in chosen:
            self._same(signatures[version], signatures[newest], f"version {version} against {newest}")
        return TritonConfig.from_onnx(
            self.path(newest) / "model.onnx",
            name=self.name,
            versions=chosen,
            max_batch_size=self.max_batch_size,
            instances=self.instances,
            accelerator=self._accelerator(newest),
            warmup=self.warmup,
            parameters={
                name: value for version in chosen for name, value in self._told(version, signatures[version]).items()
            },
        )

    def _accelerator(self, version: int) -> Accelerator:
        """With the engines of this very graph in a directory of their own; ONNX Runtime makes the last level only."""
        if not self.accelerator.is_tensorrt:
            return self.accelerator
        graph = self.lineage(version)["files"]["model.onnx"][:12]
        return replace(self.accelerator, engine_cache=f"{self.accelerator.engine_cache}-{graph}")

    @staticmethod
    def _same(one: Signature, other: Signature, who: str) -> None:
        if one != other:
            raise ContractChanged(
                f"{who}: {one} is not {other}; clients would break, so serve it as another model name"
            )

    @contextmanager
    def _staging(self, version: int) -> Iterator[Path]:
        """A dot-named directory on the repository's file system, locked while its maker lives, gone if it fails."""
        with disk_full_named(self.model):
            staging = Path(tempfile.mkdtemp(prefix=f".stage-{version}-", dir=self.model))
            lock = os.open(staging, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)  # after a success the name is gone already
                os.close(lock)

    def _publish(self, staging: Path, target: Path) -> None:
        staging.chmod(0o755)  # mkdtemp makes it private; the server may be another user
        try:
            os.rename(staging, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise VersionInUse(f"{target} appeared meanwhile; take the next free number") from None
            raise
        sync(self.model)


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # published between the listing and now
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
