"""Which version answers: switch and roll back without a request lost, judged by golden answers over the wire.

Triton's readiness calls stay true when a model no longer answers, and unloading fails every request until the next
load. So a switch never unloads, and nothing here believes a readiness call.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import numpy as np
from tritonclient.utils import InferenceServerException

from serving.access import Access
from serving.errors import GoldenMismatch, ModelNotReady, RequestTimeout, ServingError
from serving.repository import ModelRepository
from serving.wire import connect, errors_named, infer

GOLDEN_TOLERANCE = 1e-5  # in probability; the same graph on the same processor differs by less
LOAD_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 10.0
GOLDEN_TIMEOUT_S = 60.0  # the first inference on a GPU may build kernels
CONFIRM_S = 30.0


class Endpoint:
    """The control side of a running server; a context manager that closes its connection."""

    def __init__(self, server: Access | str, *, model: str = "products") -> None:
        access = Access.of(server)
        self.url = access.url
        self.model = model
        self._client = connect(access)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def live(self) -> bool:
        """Whether a server answers at all; says nothing of its models."""
        try:
            return bool(self._client.is_server_live(client_timeout=CALL_TIMEOUT_S))
        except InferenceServerException:
            return False

    def active(self) -> tuple[int, ...]:
        """The versions that the server calls ready, ascending."""
        with errors_named(self.url):
            index = self._client.get_model_repository_index(client_timeout=CALL_TIMEOUT_S)
        found = [entry.version for entry in index.models if entry.name == self.model and entry.state == "READY"]
        return tuple(sorted(int(version) for version in found))

    def golden_check(self, repository: ModelRepository, version: int) -> None:
        """Ask the version its golden images over the wire, one by one.

        Raises:
            GoldenMismatch: ids differ, or a probability by more than GOLDEN_TOLERANCE.
        """
        golden = repository.golden(version)
        for number, (image, ids, probs) in enumerate(zip(golden.image, golden.ids, golden.probs, strict=True)):
            answer = infer(
                self._client,
                image[None],
                url=self.url,
                model=self.model,
                outputs=("ids", "probs"),
                version=str(version),
                timeout_s=GOLDEN_TIMEOUT_S,
            ).arrays
            off = float(np.abs(answer["probs"][0] - probs).max())
            if not np.array_equal(answer["ids"][0], ids) or not off <= GOLDEN_TOLERANCE:
                said = f"ids {answer['ids'][0].tolist()}, probabilities off by {off:.2g}"
                raise GoldenMismatch(
                    f"{self.model} version {version}, golden image {number}: {said}; want ids {ids.tolist()} "
                    f"within {GOLDEN_TOLERANCE:g}; keep the other version and stage this graph again"
                )

    def switch(self, repository: ModelRepository, version: int) -> None:
        """Serve `version` alone, without a request lost; a rollback is a switch to an older one.

        Old and new are served side by side until the new one has passed its golden check. Meanwhile the newer of the
        two answers requests that name no version.

        Raises:
            ServingError: the former configuration is back in place and was served throughout.
        """
        repository.verify(version)
        former = repository.configured()
        try:
            repository.configure((*former, version))
            self.load()
            self.golden_check(repository, version)
            repository.configure((version,))
            self.load()
            self._confirm(version)
            self.golden_check(repository, version)
        except BaseException as error:
            self._put_back(repository, former, error)
            raise

    def load(self) -> None:
        """Make the server follow config.pbtxt; what it serves stays up until the new set is ready.

        Raises:
            ModelNotReady: a version cannot be loaded.
        """
        with errors_named(self.url):
            self._client.load_model(self.model, client_timeout=LOAD_TIMEOUT_S)

    def heal(self, repository: ModelRepository) -> bool:
        """Bring back a model that no longer answers, such as after its process was killed; whether that was needed.

        The server calls such a model ready and takes a load of unchanged files for done, so this unloads it first.

        Raises:
            ServingError: it does not answer after that either.
        """
        try:
            self._check_all(repository)
            return False
        except (ModelNotReady, RequestTimeout, GoldenMismatch):
            self._unload()
            self.load()
            self._check_all(repository)
            return True

    def _check_all(self, repository: ModelRepository) -> None:
        for version in repository.configured():
            self.golden_check(repository, version)

    def _unload(self) -> None:
        with errors_named(self.url):
            self._client.unload_model(self.model, client_timeout=LOAD_TIMEOUT_S)

    def _confirm(self, version: int) -> None:
        deadline = time.monotonic() + CONFIRM_S
        while self.active() != (version,):
            if time.monotonic() > deadline:
                raise ModelNotReady(
                    f"{self.url} still serves {self.active()}, not {version} alone; see the server's log"
                )
            time.sleep(0.02)

    def _put_back(self, repository: ModelRepository, former: tuple[int, ...], error: BaseException) -> None:
        try:
            repository.configure(former)
            if former:
                self.load()
            else:
                self._unload()  # nothing was served, so nothing is lost
        except ServingError as second:
            error.add_note(f"and putting {list(former)} back failed: {second}")


def activate(repository: ModelRepository, version: int) -> None:
    """Choose `version` for a server that does not run: it will start with it.

    Raises:
        VersionNotFound, CorruptVersion, ContractChanged.
    """
    repository.verify(version)
    repository.check_contract(repository.path(version) / "model.onnx")
    repository.configure((version,))
