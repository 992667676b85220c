"""Asking a model about photos: the workspace's endpoint, or an ONNX file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.endpoint import repository
from flows.errors import EndpointMissing
from flows.workspace import Workspace
from serving import LocalRecognizer, Recognition, Recognizer
from serving.server import running


def ask_endpoint(workspace: Workspace, images: Sequence[Path]) -> list[dict[str, Any]]:
    """One answer per image, from the running endpoint.

    Raises:
        EndpointMissing: none runs.
        BadPhoto: a file is not a photo.
    """
    server = running(workspace.state)
    if server is None:
        raise EndpointMissing(
            "no endpoint runs for this workspace; start one with `cleanshelf serve`, or name a file with --model"
        )
    with Recognizer(server.access, labels=repository(workspace).labels) as recognizer:
        return _plain(images, recognizer.recognise(list(images)))


def ask_file(graph: Path, images: Sequence[Path]) -> list[dict[str, Any]]:
    """One answer per image, from the file alone.

    Raises:
        BadGraph: the file is not a graph that CleanShelf wrote.
    """
    return _plain(images, LocalRecognizer(graph).recognise(list(images)))


def _plain(images: Sequence[Path], answers: Sequence[Recognition]) -> list[dict[str, Any]]:
    return [
        {
            "image": str(image),
            "products": [{"label": label, "probability": round(p, 6)} for label, p in answer.ranked],
            "known": answer.known,
            "score": round(answer.score, 6),
            "model_version": answer.model_version,
            "data_version": answer.data_version,
        }
        for image, answer in zip(images, answers, strict=True)
    ]
