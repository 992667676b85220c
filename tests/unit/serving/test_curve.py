from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serving.repository.accelerator import CPU, Accelerator
from serving.repository.curve import AWAKE, CURVE, SIZES, Curve, measure
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images, write_graph

SMALL = Curve("cpu", {1: 1.0, 2: 1.6, 4: 2.4, 8: 4.0, 16: 7.8, 32: 15.5})
HEAVY = Curve("cpu", {1: 80.0, 2: 160.0, 4: 320.0})


@pytest.mark.parametrize(
    ("curve", "latency_ms", "batch"),
    [
        (SMALL, 50, 8),  # 16 and 32 are hardly faster per photo
        (SMALL, 5, 4),  # two batches of 8 take 8 ms
        (SMALL, 2, 1),
        (SMALL, 1, 1),  # not even one photo fits
        (HEAVY, 50, 1),
        (HEAVY, 1000, 1),
        (Curve("cuda", {1: 2.0, 2: 2.0, 4: 2.0, 8: 2.1, 16: 2.4, 32: 3.0, 64: 5.0}), 50, 64),
        (
            Curve("cuda", {1: 2.0, 2: 2.0, 4: 2.0, 8: 2.1, 16: 2.4, 32: 3.0, 64: 5.0}),
            12,
            32,
        ),  # its two instances share the GPU
    ],
)
def test_a_batch_is_as_large_as_the_wait_allows_and_throughput_needs(
    curve: Curve, latency_ms: float, batch: int
) -> None:
    assert curve.largest_batch(latency_ms) == batch


def test_a_graph_is_measured_in_each_size(graph: Path) -> None:
    curve = measure(graph)
    assert curve is not None
    assert (curve.device, tuple(curve.ms)) == ("cpu", SIZES)
    assert all(ms > 0 for ms in curve.ms.values())
    assert Curve.read({CURVE: curve.facts()}, CPU) == curve
    assert Curve.read({CURVE: curve.facts()}, Accelerator("cuda")) is None, "the curve of another device says nothing"
    assert Curve.read({}, CPU) is None


def test_a_slow_graph_is_not_measured_in_large_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.repository.curve.SLOW_MS", 1e-3)
    curve = measure(write_graph(tmp_path / "slow.onnx"))
    assert curve is not None
    assert tuple(curve.ms) == (1,)


def test_a_device_that_is_not_here_is_not_measured(graph: Path) -> None:
    assert measure(graph, Accelerator("tensorrt-fp16", engine_cache="/cache")) is None


def test_the_curve_of_a_version_decides_its_configuration(repository: ModelRepository, graph: Path) -> None:
    for version, curve in ((1, HEAVY), (2, SMALL)):
        facts = {"run": "r", CURVE: curve.facts()}
        repository.write(graph, version=version, labels=LABELS, lineage=facts, golden=golden_images())
    repository.write(graph, version=3, labels=LABELS, lineage={"run": "r"}, golden=golden_images())
    usual = CPU.instances
    awake = max(usual, AWAKE)

    def configured(version: int, **settings: float) -> tuple[int, int, int]:
        other = replace(repository, **{"latency_ms": 50.0, **settings})
        other.configure((version,))
        assert other.is_configured(version)
        config = TritonConfig.parse(other.configuration())
        return config.joined, config.instances, config.max_batch_size

    assert configured(1) == (1, usual, 8), "a request may still hold 8 photos"
    assert configured(2) == (8, awake, 8), "a fast graph keeps Triton's batcher awake"
    assert configured(3) == (8, usual, 8), "a version of an earlier release"
    assert configured(1, joined=16, instances=3) == (16, 3, 16), "a person may say otherwise"
    assert configured(1, latency_ms=0.0) == (8, usual, 8)
    assert repository.batches(1) == [1, 2, 4, 8], "without a limit, the curve does not count"


def test_a_gpu_is_looked_for_with_the_libraries_that_packages_brought(
    graph: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: loaded.append(print("Failed to load libcudart")))
    measure(graph)
    assert not loaded
    measure(graph, Accelerator("cuda"))
    assert loaded
    assert capsys.readouterr().out == ""
