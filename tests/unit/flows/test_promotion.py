"""Times that a publication measures, and its warning of a latency budget that no batch meets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.endpoint.promotion import _curve
from serving.repository.accelerator import CPU, Accelerator
from serving.repository.curve import Curve
from serving.repository.repository import ModelRepository
from tests.graphs import write_graph


def test_a_budget_that_no_batch_meets_is_said_with_the_way_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = write_graph(tmp_path / "graph.onnx")
    versions = ModelRepository(tmp_path / "repository", latency_ms=1e-6)
    curve = Curve.read(_curve(graph, versions), CPU)
    assert curve is not None
    assert curve.largest_batch(1e-6) == 1
    [warning] = caplog.messages
    assert "CLEANSHELF_TRITON_LATENCY_MS" in warning
    assert "one by one" in warning
    caplog.clear()
    _curve(graph, replace(versions, latency_ms=50.0))
    _curve(graph, replace(versions, joined=4))
    assert caplog.messages == []


def test_a_device_that_is_not_here_leaves_the_lineage_as_it_was(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph.onnx")
    versions = ModelRepository(
        tmp_path / "repository", latency_ms=50.0, accelerator=Accelerator("tensorrt-fp16", engine_cache="/cache")
    )
    assert _curve(graph, versions) == {}
