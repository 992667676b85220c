"""Which version answers: switch and roll back without a request lost, judged by golden answers over the wire.

Triton's readiness calls stay true when a model no longer answers, and unloading fails every request until the next
load. So a switch never unloads what serves, and nothing here believes a readiness call.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from serving.access import Access
from serving.errors import GoldenMismatch, ModelNotReady, RequestRejected, RequestTimeout, ServingError
from serving.repository.candidate import candidate_files
from serving.repository.repository import CANDIDATE, ModelRepository
from serving.server.process import until
from serving.wire import connect, errors_named, infer

GOLDEN_TOLERANCE = 1e-5  # in probability; the same graph on the same processor differs by less
# A GPU rounds otherwise, and more with TF32 or half precision: so much of the best probability. Chosen, not measured.
GPU_TOLERANCE = 0.05
LOAD_TIMEOUT_S = 900.0  # TensorRT builds its engines in it
CALL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0  # the first inference on a GPU may build kernels
CONFIRM_S = 30.0
ATTEMPTS = 3  # each takes a second where the process is dead
UNLOAD_TIMEOUT_S = 10.0

log = logging.getLogger("cleanshelf")


class Endpoint:
    """The control side of a running server; a context manager that closes its connection.

    Args:
        load_timeout_s: for a model to be loaded.
        answer_timeout_s: for one golden image to be answered.
    """

    def __init__(
        self,
        server: Access | str,
        *,
        model: str = "products",
        load_timeout_s: float = LOAD_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        self.access = Access.of(server)
        self.url = self.access.url
        self.model = model
        self.load_timeout_s = load_timeout_s
        self.answer_timeout_s = answer_timeout_s
        self._client = connect(self.access)

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
        found = [entry.version for entry in self._index() if entry.name == self.model and entry.state == "READY"]
        return tuple(sorted(int(version) for version in found))

    def answered(self) -> int:
        """How many requests the model's versions have answered since they were loaded."""
        with errors_named(self.url):
            found = self._client.get_inference_statistics(self.model, client_timeout=CALL_TIMEOUT_S)
        return sum(version.inference_stats.success.count for version in found.model_stats)

    def ask(self, images: NDArray[np.uint8], version: int) -> tuple[NDArray, NDArray]:
        """Ids and probabilities, each (B, k), that `version` answers to images (B, S, S, 3); subclasses may override it.

        A model that is not ready is asked up to ATTEMPTS times: on a busy machine Triton takes a slow process for dead.
        """
        for attempt in range(ATTEMPTS):
            try:
                answer = infer(
                    self._client,
                    images,
                    url=self.url,
                    model=self.model,
                    outputs=("ids", "probs"),
                    version=str(version),
                    timeout_s=self.answer_timeout_s,
                )
                break
            except ModelNotReady:
                if attempt == ATTEMPTS - 1:
                    raise
        return answer.arrays["ids"], answer.arrays["probs"]

    def golden_check(self, repository: ModelRepository, version: int, *, at_most: int | None = None) -> None:
        """Ask the version its golden images over the wire, one by one; the first `at_most` of them.

        Raises:
            GoldenMismatch: an answer is not what ONNX Runtime gave when the version was staged.
            ServingError: there is no answer.
        """
        golden, on_gpu = repository.golden(version), repository.accelerator.is_gpu
        for number, image in enumerate(golden.image[:at_most]):
            [ids], [probs] = self.ask(image[None], version)
            tolerance = GOLDEN_TOLERANCE + (GPU_TOLERANCE * float(golden.probs[number].max()) if on_gpu else 0)
            if found := golden.differs(number, ids, probs, tolerance=tolerance, strict=not on_gpu):
                raise GoldenMismatch(
                    f"{self.model} version {version}, golden image {number}: {found}; "
                    "keep the other version and stage this graph again"
                )

    def switch(self, repository: ModelRepository, version: int) -> None:
        """Serve `version` alone, without a request lost; a rollback is a switch to an older one.

        It proves itself under another model name first, so that no request meets a version that was never seen to
        answer rightly. Then the server swaps when the new one is ready; it never stops answering.

        One switch at a time: a second one waits.

        Raises:
            ServingError: what served before serves on.
        """
        with repository.switching():
            self._switch(repository, version)

    def _switch(self, repository: ModelRepository, version: int) -> None:
        repository.verify(version)
        repository.check_contract(repository.path(version) / "model.onnx")
        if version not in self.active():
            self._prove(repository, version)
        former = repository.configuration()
        try:
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
            self._client.load_model(self.model, client_timeout=self.load_timeout_s)

    def unload(self) -> None:
        """Stop serving the model, and wait until the server has let go of it.

        Raises:
            ModelNotReady: it holds on to it, as to a model that still computes.
        """
        self._start_unloading()
        if not until(lambda: not self._is_loaded(), timeout_s=UNLOAD_TIMEOUT_S):
            raise ModelNotReady(f"{self.url}: {self.model} still computes and stays loaded; restart the server")

    def heal(self, repository: ModelRepository, *, is_hung: bool = False) -> bool:
        """Bring back a model that no longer answers, such as after its process was killed; whether that was needed.

        The server calls such a model ready and takes a load of unchanged files for done, so this unloads it first.

        Args:
            is_hung: it is known that nobody gets an answer, so a timeout or a full queue is no excuse.

        Raises:
            CorruptVersion: its files are not what they were, so it would not come back; nothing was unloaded.
            RequestTimeout, RequestRejected: it may only be slow; nothing was unloaded.
            ServingError: it does not answer after that either.
        """
        slow = (RequestTimeout, RequestRejected) if is_hung else ()
        try:
            self._check_all(repository)
            return False
        except (ModelNotReady, GoldenMismatch, *slow):
            for version in repository.configured():
                repository.verify(version)
            self._start_unloading()  # it would wait for a dead process for ever
            self.load()
            self._check_all(repository)
            return True

    def sweep(self, repository: ModelRepository) -> None:
        """Remove what a killed switch left: candidates that are still loaded, their directories, half-made versions."""
        left = {entry.name for entry in self._index() if entry.name.startswith(f"{self.model}{CANDIDATE}")}
        for name in sorted(left):
            with self._beside(name) as trial:
                try:
                    trial.unload()
                except ServingError as error:  # it hangs, and is in nobody's way but the processor's
                    log.warning("%s", error)
        repository.sweep()

    def _prove(self, repository: ModelRepository, version: int) -> None:
        """See the version answer rightly under the candidate's name, which nobody asks.

        Raises:
            ServingError: it does not; the server has let go of it.
        """
        self.sweep(repository)
        with candidate_files(repository, version) as candidate, self._beside(candidate.name) as trial:
            try:
                trial.load()
                trial.golden_check(candidate, version)
                golden = candidate.golden(version).image
                trial.ask(np.resize(golden, (candidate.max_batch_size, *golden.shape[1:])), version)  # fits the memory
            except BaseException as error:
                trial._let_go(error)
                raise
            trial.unload()

    def _beside(self, model: str) -> Endpoint:
        """Another model of the same server."""
        return Endpoint(
            self.access, model=model, load_timeout_s=self.load_timeout_s, answer_timeout_s=self.answer_timeout_s
        )

    def _let_go(self, error: BaseException) -> None:
        try:
            self.unload()
        except ServingError as second:
            error.add_note(f"and unloading {self.model} failed: {second}")

    def _start_unloading(self) -> None:
        with errors_named(self.url):
            self._client.unload_model(self.model, client_timeout=UNLOAD_TIMEOUT_S)

    def _is_loaded(self) -> bool:
        """Whether a version of the model is loaded, or on its way in or out."""
        return any(entry.name == self.model for entry in self._index())

    def _index(self) -> list[Any]:
        """Name, version and state of everything that the server holds."""
        with errors_named(self.url):
            index = self._client.get_model_repository_index(client_timeout=CALL_TIMEOUT_S)
        return [entry for entry in index.models if entry.state not in ("", "UNAVAILABLE")]

    def _check_all(self, repository: ModelRepository) -> None:
        for version in repository.configured():
            self.golden_check(repository, version)

    def _confirm(self, version: int) -> None:
        if not until(lambda: self.active() == (version,), timeout_s=CONFIRM_S):
            raise ModelNotReady(f"{self.url} still serves {self.active()}, not {version} alone; see the server's log")

    def _put_back(self, repository: ModelRepository, former: str, error: BaseException) -> None:
        try:
            repository.restore(former)
            if former:
                self.load()
            else:
                self.unload()  # nothing was served, so nothing is lost
        except ServingError as second:
            error.add_note(f"and putting the former configuration back failed: {second}")


def load_on_start(repository: ModelRepository, version: int) -> None:
    """Choose `version` for a server that does not run: it will start with it.

    Raises:
        VersionNotFound, CorruptVersion, ContractChanged.
    """
    repository.verify(version)
    repository.check_contract(repository.path(version) / "model.onnx")
    repository.configure((version,))
