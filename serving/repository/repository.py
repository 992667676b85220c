"""Triton model repository: complete, immutable versions, and the config.pbtxt that says which of them are loaded."""

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

from contract import REQUEST_PHOTOS
from durable import overwrite, sha256, sync
from serving.durable import disk_full_named
from serving.errors import BadGraph, ContractChanged, CorruptVersion, VersionInUse, VersionNotFound
from serving.repository.accelerator import CPU, Accelerator
from serving.repository.curve import Curve
from serving.repository.encoded import install
from serving.repository.golden import Golden
from serving.repository.lineage import lineage_file
from serving.repository.model_config import TritonConfig
from serving.repository.runtimes import Bound, bound_of, recorded_precision
from serving.repository.version import read_labels, write_version
from serving.signature import Signature

CANDIDATE = "-candidate-"  # between the model's name and the version in the name of a candidate


@dataclass(frozen=True)
class ModelRepository:
    """Versions of the model `name` under `root`, and the settings that the server runs them with.

    The directory of a version appears by one rename, after all its files have reached the disk, and never changes.

    Args:
        accelerator, warmup: see TritonConfig; written with every `configure`.
        joined: see TritonConfig; None: chosen from the version's curve for `latency_ms`. instances: None: the usual
            number of the accelerator.
        latency_ms: longest wait for an answer under load; None: sizes do not depend on curves.
    """

    root: Path
    name: str = "products"
    joined: int | None = None
    instances: int | None = None
    accelerator: Accelerator = CPU
    warmup: bool = True
    latency_ms: float | None = None

    @property
    def model(self) -> Path:
        """Directory of the model, which Triton reads."""
        return self.root / self.name

    def candidate(self, version: int) -> ModelRepository:
        """Repository of the candidate for `version`, under its own model name so that a hanging one blocks no other.

        One instance is enough for the check, and without a warm-up the load returns even if the graph hangs.
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
        """Writes a graph as `version` and returns its directory; also installs the model for encoded photos.

        Args:
            graph: ONNX file; external data beside it is copied too.
            version: a number >= 1 that was never used.
            labels: names of the classes by id.
            lineage: all facts but `version` and `files`, which are added; `run` is text.
            golden: (G, S, S, 3) uint8, G >= 1; answered now by local ONNX Runtime, and later by the server.

        Raises:
            VersionInUse, BadGraph, GoldenMismatch, DiskFull: nothing is left behind.
        """
        target = self.model / str(version)
        if version < 1:
            raise BadGraph(f"version {version}: Triton counts from 1; take the next free number")
        if target.exists():
            raise VersionInUse(f"{target} exists, and versions never change; take the next free number")
        self.model.mkdir(parents=True, exist_ok=True)
        install(self.root, self.name)
        with self._staging(version) as staging:
            write_version(
                staging, graph, labels=labels, lineage={**lineage, "version": version}, golden=golden,
                accelerator=self.accelerator,
            )  # fmt: skip
            self._move(staging, target)
        return target

    def versions(self) -> tuple[int, ...]:
        """Numbers of all versions, ascending."""
        names = [path.name for path in self.model.glob("[1-9]*") if path.is_dir()] if self.model.is_dir() else []
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def path(self, version: int) -> Path:
        """Directory of a version.

        Raises:
            VersionNotFound: there is no such version; the message lists the existing ones.
        """
        path = self.model / str(version)
        if version not in self.versions():
            raise VersionNotFound(f"{self.model} has no version {version}; it has {list(self.versions()) or 'none'}")
        return path

    def labels(self, version: int) -> tuple[str, ...]:
        """Names of the version's classes by id.

        Raises:
            CorruptVersion: the file is missing or was changed.
        """
        return read_labels(self._intact(version, "labels.txt"))

    def lineage(self, version: int) -> dict[str, Any]:
        """Lineage of the version, with `files`: name -> sha256.

        Raises:
            CorruptVersion: the file is missing or unreadable.
        """
        path = lineage_file(self.path(version))
        try:
            lineage = json.loads(path.read_bytes())
            return {**lineage, "files": dict(lineage["files"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptVersion(f"{path} cannot be read ({error}); publish the graph again as a new version") from None

    def golden(self, version: int) -> Golden:
        """Golden images of the version with their answers.

        Raises:
            CorruptVersion: the file is missing or was changed.
        """
        with np.load(self._intact(version, "golden.npz")) as arrays:
            return Golden(arrays["image"], arrays["ids"], arrays["probs"])

    def bound(self, version: int) -> Bound:
        """Bound between the golden answers of the version and those of the server."""
        return bound_of(self.accelerator, recorded_precision(self.lineage(version)))

    def _intact(self, version: int, name: str) -> Path:
        """Path of a file of the version, after comparing its hash with the recorded one."""
        path, wanted = self.path(version) / name, self.lineage(version)["files"].get(name)
        if not path.is_file() or sha256(path) != wanted:
            raise CorruptVersion(
                f"{path} is missing or was changed; promote another version and publish this graph again"
            )
        return path

    def verify(self, version: int) -> None:
        """Compares the hash of every file of the version with its lineage.

        Raises:
            CorruptVersion: a file is missing, changed or not in the lineage; the message names the first one.
        """
        for path, problem in self.damaged(version):
            raise CorruptVersion(f"{path}: {problem}; promote another version and publish this graph again")

    def damaged(self, version: int) -> Iterator[tuple[Path, str]]:
        """Yields each file of the version that is missing, changed or not in its lineage, with the problem.

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
        """Replaces config.pbtxt atomically, so that the server loads exactly these versions; removes it for none.

        Raises:
            VersionNotFound, DiskFull: config.pbtxt stays as it was.
            ContractChanged: the versions do not share one signature.
        """
        self.restore(self._config(versions).to_pbtxt() if versions else "")

    def is_configured(self, version: int) -> bool:
        """True if config.pbtxt is what `configure` would write for this version alone."""
        return self.configuration() == self._config((version,)).to_pbtxt()

    def configuration(self) -> str:
        """Text of config.pbtxt; "" if there is no such file."""
        path = self.model / "config.pbtxt"
        return path.read_text("utf-8") if path.is_file() else ""

    def restore(self, text: str) -> None:
        """Replaces config.pbtxt by a text that `configuration` returned.

        Raises:
            DiskFull: config.pbtxt stays as it was.
        """
        if text:
            with disk_full_named(self.model):
                overwrite(self.model / "config.pbtxt", text.encode())
        else:
            (self.model / "config.pbtxt").unlink(missing_ok=True)

    def astray(self) -> list[str]:
        """Names of the parameters of config.pbtxt that differ from the files of the configured versions."""
        found, expected = TritonConfig.parse(self.configuration()), self._config(self.configured())
        names = found.parameters.keys() | expected.parameters.keys()
        return sorted(
            name for name in names if not _agree(found.parameters.get(name, ""), expected.parameters.get(name, ""))
        )

    def _parameters(self, version: int, signature: Signature) -> dict[str, str]:
        """Facts of a version for clients, which can read the configuration but not this disk."""
        lineage = self.lineage(version)
        facts = {
            "data_version": signature.metadata.get("data_version", ""),
            "graph_sha256": lineage["files"].get("model.onnx", ""),
            "labels": json.dumps(self.labels(version), ensure_ascii=False, separators=(",", ":")),
            "lineage_sha256": sha256(lineage_file(self.path(version))),
            "run": lineage.get("run", ""),
        }
        return {f"{name}.{version}": value for name, value in facts.items()}

    def configured(self) -> tuple[int, ...]:
        """Versions that config.pbtxt names; () if there is no such file.

        Raises:
            CorruptVersion: config.pbtxt is not a model configuration.
        """
        try:
            text = self.configuration()
            return TritonConfig.parse(text).versions if text else ()
        except ValueError as error:
            path = self.model / "config.pbtxt"
            raise CorruptVersion(
                f"{path} cannot be read ({error}); remove it: the next start or switch writes it again"
            ) from None

    def check_contract(self, graph: Path) -> None:
        """Checks that clients of the configured version can use `graph` without a change.

        Raises:
            ContractChanged: input size, k or embedding width differ.
        """
        signature = Signature.read(graph)
        if configured := self.configured():
            newest = max(configured)
            current = Signature.read(self.path(newest) / "model.onnx")
            self._check_same(signature, current, f"{graph} against version {newest}")

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Lock for one switch at a time; others wait. The kernel releases the lock of a killed process."""
        self.model.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.model, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def leftovers(self) -> list[Path]:
        """Files that killed writes and switches left behind; those of a running write are not included."""
        stages = [path for path in self.model.glob(".stage-*") if not _is_held(path)]
        return [*stages, *self.model.glob(".config.pbtxt.*.part"), *self.root.glob(f"{self.name}{CANDIDATE}*")]

    def sweep(self) -> list[Path]:
        """Removes the leftovers and returns their paths."""
        leftovers = self.leftovers()
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return leftovers

    def _config(self, versions: Sequence[int]) -> TritonConfig:
        chosen = tuple(sorted(set(versions)))
        signatures = {version: Signature.read(self.path(version) / "model.onnx") for version in chosen}
        newest = max(chosen)
        for version in chosen:
            self._check_same(signatures[version], signatures[newest], f"version {version} against {newest}")
        return TritonConfig.from_onnx(
            self.path(newest) / "model.onnx",
            name=self.name,
            versions=chosen,
            **self._sizes(newest),
            accelerator=self._accelerator(newest),
            warmup=self.warmup,
            parameters={
                name: value
                for version in chosen
                for name, value in self._parameters(version, signatures[version]).items()
            },
        )

    def batches(self, version: int) -> list[int]:
        """Sizes of the batches that this version usually computes; see TritonConfig."""
        return self._config((version,)).batches

    def _sizes(self, version: int) -> dict[str, int | None]:
        """Sizes in TritonConfig: given ones, those that the version's curve asks for, or defaults."""
        curve = Curve.read(self.lineage(version), self.accelerator) if self.latency_ms else None
        joined, instances = self.joined or REQUEST_PHOTOS, self.instances
        if curve and self.latency_ms:
            joined = self.joined or curve.largest_batch(self.latency_ms)
            instances = self.instances or curve.instances(self.latency_ms)
        return {"joined": joined, "max_batch_size": max(joined, REQUEST_PHOTOS), "instances": instances}

    def _accelerator(self, version: int) -> Accelerator:
        """Accelerator whose engine directory belongs to the graph of this version. One level: ONNX Runtime makes no parents."""
        if not self.accelerator.is_tensorrt:
            return self.accelerator
        graph = self.lineage(version)["files"]["model.onnx"][:12]
        return replace(self.accelerator, engine_cache=f"{self.accelerator.engine_cache}-{graph}")

    @staticmethod
    def _check_same(new: Signature, current: Signature, subject: str) -> None:
        if new != current:
            raise ContractChanged(
                f"{subject}: {new} differs from {current}; clients would break, so serve it under another model name"
            )

    @contextmanager
    def _staging(self, version: int) -> Iterator[Path]:
        """Hidden directory in which a version is written; locked while this process lives, removed if the block fails."""
        with disk_full_named(self.model):
            staging = Path(tempfile.mkdtemp(prefix=f".stage-{version}-", dir=self.model))
            lock = os.open(staging, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)  # after a success the directory has its new name
                os.close(lock)

    def _move(self, staging: Path, target: Path) -> None:
        staging.chmod(0o755)  # mkdtemp makes it private; the server may run as another user
        try:
            os.rename(staging, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise VersionInUse(f"{target} was written by another process; take the next free number") from None
            raise
        sync(self.model)


def _agree(found: str, expected: str) -> bool:
    """True if a parameter says the same; earlier releases wrote a space after the comma between two labels."""
    return found == expected or found.replace('", "', '","') == expected


def _is_held(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # renamed between the listing and now
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
