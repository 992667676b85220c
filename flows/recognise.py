"""Recognises photos by the workspace's endpoint or by an ONNX file alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from durable import sha256
from flows.endpoint.folder import Summary, printable, recognise_folder
from flows.endpoint.server import access
from flows.errors import EndpointMissing
from flows.workspace import Workspace
from pixels import BadPhoto
from serving import Access, LocalRecognizer, Recognition, Recognizer
from serving.errors import ModelNotReady, RequestRejected, RequestTimeout, ServerUnavailable

TIMEOUT_S = 120.0  # for a batch of a folder: a late answer is better than a failed run
PATIENCE_S = 60.0  # how long to wait for a server that restarts
ASKED_S = 60.0  # for a few photos of a page
AWAY = (ServerUnavailable, ModelNotReady, RequestTimeout, RequestRejected)


class Connection:
    """Connection to a workspace's endpoint that is kept between questions. Threads may share it."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._lock = threading.Lock()
        self._held: tuple[Access, Recognizer] | None = None

    def ask(self, photos: Sequence[bytes], *, embedding: bool = False) -> list[Recognition | BadPhoto]:
        """One answer per encoded photo, in order, with its embedding if asked for; BadPhoto if it cannot be decoded.

        Raises:
            EndpointMissing: no server is running, or it does not answer.
        """
        try:
            return list(self._recognizer().stream(photos, embedding=embedding))
        except AWAY as error:
            raise EndpointMissing(
                "the endpoint does not answer at the moment; try again in a minute, and if it stays away restart it with "
                "`cleanshelf serve`"
            ) from error

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            if self._held:
                self._held[1].close()
            self._held = None

    def _recognizer(self) -> Recognizer:
        """The kept client, or a new one if the server has another address or token than before."""
        found = access(self.workspace)
        if found is None:
            raise EndpointMissing(
                "no endpoint is running for this workspace; start one on the page Endpoint or with "
                "`cleanshelf serve --detach`, and try again"
            )
        with self._lock:
            if self._held is None or self._held[0] != found:
                self._held = found, Recognizer(found, transport="encoded", timeout_s=ASKED_S, patience_s=3.0)
            return self._held[1]


def ask_endpoint(workspace: Workspace, images: Sequence[Path]) -> list[dict[str, Any]]:
    """One answer per image, from the running endpoint; that to a file that is not a photo has an `error`.

    Raises:
        EndpointMissing: no server is running.
    """
    with Recognizer(_access(workspace)) as recognizer:
        return _plain(images, recognizer.stream(images))


def ask_file(graph: Path, images: Sequence[Path]) -> list[dict[str, Any]]:
    """One answer per image, from the file alone, as `ask_endpoint` gives it.

    Raises:
        BadGraph: the file is not a graph that CleanShelf wrote.
    """
    return _plain(images, LocalRecognizer(graph).stream(images))


def ask_endpoint_of_folder(
    workspace: Workspace, folder: Path, out: Path, *, progress: Callable[[int], None]
) -> Summary:
    """Writes the table `out` with the endpoint's answer to each photo below `folder`; see `recognise_folder`.

    Raises:
        EndpointMissing: no server is running.
    """
    with Recognizer(_access(workspace), timeout_s=TIMEOUT_S, patience_s=PATIENCE_S) as recognizer:
        return recognise_folder(folder, out, recognizer=recognizer, model="endpoint", progress=progress)


def ask_file_of_folder(graph: Path, folder: Path, out: Path, *, progress: Callable[[int], None]) -> Summary:
    """Writes the table `out` with the answers of an ONNX file; see `recognise_folder`."""
    recognizer = LocalRecognizer(graph)
    return recognise_folder(folder, out, recognizer=recognizer, model=sha256(graph), progress=progress)


def _access(workspace: Workspace) -> Access:
    found = access(workspace)
    if found is None:
        raise EndpointMissing(
            "no endpoint is running for this workspace; start one with `cleanshelf serve`, or name an ONNX file with "
            "--model"
        )
    return found


def _plain(images: Sequence[Path], answers: Iterable[Recognition | BadPhoto]) -> list[dict[str, Any]]:
    return [
        {"image": printable(str(image)), **(_error(image, answer) if isinstance(answer, BadPhoto) else _answer(answer))}
        for image, answer in zip(images, answers, strict=True)
    ]


def _answer(answer: Recognition) -> dict[str, Any]:
    return {
        "products": [{"label": label, "probability": round(p, 6)} for label, p in answer.ranked],
        "known": answer.known,
        "score": round(answer.score, 6),
        "model_version": answer.model_version,
        "data_version": answer.data_version,
        "error": None,
    }


def _error(image: Path, fault: BadPhoto) -> dict[str, Any]:
    nothing = dict.fromkeys(("known", "score", "model_version", "data_version"))
    reason = "a folder, which --out recognises whole" if image.is_dir() else printable(fault.reason)
    return {"products": [], **nothing, "error": reason}
