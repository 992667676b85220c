"""Control of a server's current model: switches that lose no request, checked by golden answers.

Triton's readiness calls stay true when a model no longer answers, and after an unload every request fails until the next
load. So a switch never unloads the current model, and nothing here relies on a readiness call.
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
from serving.repository.runtimes import provider_of, way_out
from serving.server.process import until
from serving.wire import connect, errors_named, infer

LOAD_TIMEOUT_S = 900.0  # includes the time in which TensorRT builds its engines
CALL_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0  # the first inference on a GPU may build kernels
CONFIRM_S = 30.0
ATTEMPTS = 3  # each takes a second if the process is dead
UNLOAD_TIMEOUT_S = 10.0

log = logging.getLogger("cleanshelf")


class Endpoint:
    """Control of one model at a running server; a context manager that closes the connection.

    Args:
        load_timeout_s: time limit for loading the model.
        answer_timeout_s: time limit for the answer to one golden image.
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
        """Closes the connection."""
        self._client.close()

    def live(self) -> bool:
        """True if a server answers; says nothing about its models."""
        try:
            return bool(self._client.is_server_live(client_timeout=CALL_TIMEOUT_S))
        except InferenceServerException:
            return False

    def active(self) -> tuple[int, ...]:
        """Versions that the server reports as ready, ascending."""
        found = [entry.version for entry in self._index() if entry.name == self.model and entry.state == "READY"]
        return tuple(sorted(int(version) for version in found))

    def answered(self) -> int:
        """Number of requests that the model's versions have answered since they were loaded."""
        with errors_named(self.url):
            found = self._client.get_inference_statistics(self.model, client_timeout=CALL_TIMEOUT_S)
        return sum(version.inference_stats.success.count for version in found.model_stats)

    def ask(self, images: NDArray[np.uint8], version: int) -> tuple[NDArray[Any], NDArray[Any]]:
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
        """Asks the server for the golden images of `version`, one by one, and compares the answers.

        Args:
            at_most: number of images to ask for; None for all.

        Raises:
            GoldenMismatch: an answer differs from the one of ONNX Runtime when the version was written.
            ServingError: there is no answer.
        """
        golden, bound = repository.golden(version), repository.bound(version)
        for number, image in enumerate(golden.image[:at_most]):
            [ids], [probs] = self.ask(image[None], version)
            tolerance = bound.tolerance(golden.probs[number])
            if found := golden.differs(number, ids, probs, tolerance=tolerance, strict=bound.is_strict):
                provider = provider_of(repository.accelerator)
                raise GoldenMismatch(
                    f"{self.model} version {version}, golden image {number}: the server at {self.url} with {provider} "
                    f"answers {found}; keep the other version, and {way_out(provider)}"
                )

    def switch(self, repository: ModelRepository, version: int) -> None:
        """Makes `version` the only loaded version without losing a request; a rollback is a switch to an older one.

        The version is first loaded and checked as a candidate, under another model name, so that no request reaches a
        version that has not answered correctly. Then the server loads it under the model's name and changes over when it
        is ready; it answers throughout. A second switch waits until this one has ended.

        Raises:
            ServingError: the version that answered before still answers.
        """
        with repository.switching():
            self._switch(repository, version)

    def _switch(self, repository: ModelRepository, version: int) -> None:
        repository.verify(version)
        repository.check_contract(repository.path(version) / "model.onnx")
        if version not in self.active():
            self._check_candidate(repository, version)
        former = repository.configuration()
        try:
            repository.configure((version,))
            self.load()
            self._confirm(version)
            self.golden_check(repository, version)
        except BaseException as error:
            self._restore(repository, former, error)
            raise

    def load(self) -> None:
        """Makes the server load the versions of config.pbtxt; the loaded ones answer until the new ones are ready.

        Raises:
            ModelNotReady: a version cannot be loaded.
        """
        with errors_named(self.url):
            self._client.load_model(self.model, client_timeout=self.load_timeout_s)

    def unload(self) -> None:
        """Unloads the model and waits until the server has released it.

        Raises:
            ModelNotReady: the server does not release it, for example because the model still computes.
        """
        self._start_unloading()
        if not until(lambda: not self._is_loaded(), timeout_s=UNLOAD_TIMEOUT_S):
            raise ModelNotReady(f"{self.url}: {self.model} is still computing and stays loaded; restart the server")

    def heal(self, repository: ModelRepository, *, is_hung: bool = False) -> bool:
        """Reloads a model that no longer answers, for example because its process was killed.

        The server reports such a model as ready and skips the load of unchanged files, so this unloads it first.

        Args:
            is_hung: no client gets an answer, so a timeout or a full queue counts as a failure too.

        Returns:
            True if the model was reloaded, False if it answered.

        Raises:
            CorruptVersion: its files have changed, so a load would fail; nothing was unloaded.
            RequestTimeout, RequestRejected: it may only be slow; nothing was unloaded.
            ServingError: it does not answer after the reload either.
        """
        slow = (RequestTimeout, RequestRejected) if is_hung else ()
        try:
            self._check_all(repository)
            return False
        except (ModelNotReady, GoldenMismatch, *slow):
            for version in repository.configured():
                repository.verify(version)
            self._start_unloading()  # `unload` would wait for a dead process for ever
            self.load()
            self._check_all(repository)
            return True

    def sweep(self, repository: ModelRepository) -> None:
        """Removes what killed processes left: loaded candidates, their directories, incomplete versions."""
        left = {entry.name for entry in self._index() if entry.name.startswith(f"{self.model}{CANDIDATE}")}
        for name in sorted(left):
            with self._beside(name) as trial:
                try:
                    trial.unload()
                except ServingError as error:  # it hangs, but only takes a core
                    log.warning("%s", error)
        repository.sweep()

    def _check_candidate(self, repository: ModelRepository, version: int) -> None:
        """Loads the version as a candidate, which no client asks for, and checks its golden answers.

        Raises:
            ServingError: the check failed; the candidate is unloaded.
        """
        self.sweep(repository)
        with candidate_files(repository, version) as candidate, self._beside(candidate.name) as trial:
            try:
                trial.load()
                trial.golden_check(candidate, version)
                trial._ask_in_batches(candidate, version)
            except BaseException as error:
                trial._unload_after(error)
                raise
            trial.unload()

    def _ask_in_batches(self, repository: ModelRepository, version: int) -> None:
        """Asks for each batch size that the version will compute: it fits in memory, and a GPU has its kernels."""
        golden = repository.golden(version).image
        for batch in repository.batches(version):
            self.ask(np.resize(golden, (batch, *golden.shape[1:])), version)

    def _beside(self, model: str) -> Endpoint:
        """Control of another model at the same server."""
        return Endpoint(
            self.access, model=model, load_timeout_s=self.load_timeout_s, answer_timeout_s=self.answer_timeout_s
        )

    def _unload_after(self, error: BaseException) -> None:
        try:
            self.unload()
        except ServingError as second:
            error.add_note(f"and unloading {self.model} failed: {second}")

    def _start_unloading(self) -> None:
        with errors_named(self.url):
            self._client.unload_model(self.model, client_timeout=UNLOAD_TIMEOUT_S)

    def _is_loaded(self) -> bool:
        """True if a version of the model is loaded, loading or unloading."""
        return any(entry.name == self.model for entry in self._index())

    def _index(self) -> list[Any]:
        """Entries (name, version, state) of all models that the server has not unloaded."""
        with errors_named(self.url):
            index = self._client.get_model_repository_index(client_timeout=CALL_TIMEOUT_S)
        return [entry for entry in index.models if entry.state not in ("", "UNAVAILABLE")]

    def _check_all(self, repository: ModelRepository) -> None:
        for version in repository.configured():
            self.golden_check(repository, version)

    def _confirm(self, version: int) -> None:
        if not until(lambda: self.active() == (version,), timeout_s=CONFIRM_S):
            raise ModelNotReady(
                f"{self.url}: versions {self.active()} are loaded, want {version} alone; see the server's log"
            )

    def _restore(self, repository: ModelRepository, former: str, error: BaseException) -> None:
        try:
            repository.restore(former)
            if former:
                self.load()
            else:
                self.unload()  # no version answered before, so nothing is lost
        except ServingError as second:
            error.add_note(f"and restoring the former configuration failed: {second}")


def load_on_start(repository: ModelRepository, version: int) -> None:
    """Configures `version` as the only one that a server loads when it starts.

    Raises:
        VersionNotFound, CorruptVersion, ContractChanged: config.pbtxt stays as it was.
    """
    repository.verify(version)
    repository.check_contract(repository.path(version) / "model.onnx")
    repository.configure((version,))
