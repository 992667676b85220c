from __future__ import annotations

import socket
from pathlib import Path

import pytest

from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images, write_graph


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "export.onnx", metadata={"data_version": "0123456789ab"})


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "repository")


@pytest.fixture
def staged(repository: ModelRepository, graph: Path) -> ModelRepository:
    """Repository with version 1."""
    repository.write(graph, version=1, labels=LABELS, lineage={"run": "r1"}, golden=golden_images())
    return repository


@pytest.fixture
def unused_port() -> int:
    """Port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
