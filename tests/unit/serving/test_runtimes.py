"""Answers of ONNX Runtime's execution providers on this machine, and the bounds for those of the server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.errors import GoldenMismatch
from serving.repository.accelerator import NAMES, Accelerator
from serving.repository.repository import ModelRepository
from serving.repository.runtimes import EXACT, Bound, bound_of, precision_of, provider_of
from tests.graphs import LABELS, golden_images


def pass_through_fp16(path: Path, *, scale: float) -> None:
    """Multiplies the wide tensor of the graph by `scale`, rounds it to fp16, and divides it by `scale`.

    ONNX Runtime computes the product by one in float32, where it is right for any scale. Its optimisations leave that
    product out and keep the rounding, whose numbers then may be beyond fp16.
    """
    model = onnx.load(path)
    index = next(i for i, node in enumerate(model.graph.node) if "wide" in node.output)
    model.graph.node[index].output[0] = "narrow"
    nodes = [
        helper.make_node("Mul", ["narrow", "up"], ["large"]),
        helper.make_node("Cast", ["large"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["half", "one"], ["same"]),
        helper.make_node("Cast", ["same"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["single", "down"], ["wide"]),
    ]
    for offset, node in enumerate(nodes, start=index + 1):
        model.graph.node.insert(offset, node)
    numbers = {"up": np.float32(scale), "one": np.float16(1), "down": np.float32(1 / scale)}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in numbers.items())
    onnx.save(model, path)


def write(repository: ModelRepository, graph: Path) -> None:
    repository.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())


def test_a_version_tells_how_its_runtimes_were_compared(staged: ModelRepository) -> None:
    [found] = staged.lineage(1)["runtimes"]
    assert found["difference"] < 1e-6
    assert found | {"difference": 0} == {
        "runtime": f"ONNX Runtime {onnxruntime.__version__}", "provider": "CPUExecutionProvider", "precision": "fp32",
        "photos": 4, "difference": 0, "bound": {"absolute": 1e-4, "share": 0.0},
    }  # fmt: skip
    assert staged.bound(1) == EXACT


@pytest.mark.faults
def test_a_graph_that_the_runtime_computes_wrongly_is_refused(repository: ModelRepository, graph: Path) -> None:
    pass_through_fp16(graph, scale=1e6)
    message = (
        rf"ONNX Runtime {onnxruntime.__version__} with CPUExecutionProvider computes this graph wrongly: golden image 0: "
        r"ids .*, probabilities off by nan; want ids .* within 0\.0\d+; publish the float32 graph \(export\.precision=fp32\)"
    )
    with pytest.raises(GoldenMismatch, match=message):
        write(repository, graph)
    assert repository.versions() == ()


def test_roundings_of_fp16_are_within_its_bound(repository: ModelRepository, graph: Path) -> None:
    pass_through_fp16(graph, scale=1)
    write(repository, graph)
    [found] = repository.lineage(1)["runtimes"]
    assert found["precision"] == "fp16"
    assert 1e-5 < found["difference"] < 0.01


def test_a_missing_gpu_leaves_the_comparison_to_the_server(graph: Path, tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "gpu", accelerator=Accelerator("cuda"))
    write(repository, graph)
    providers = [each["provider"] for each in repository.lineage(1)["runtimes"]]
    assert providers in (["CPUExecutionProvider"], ["CPUExecutionProvider", "CUDAExecutionProvider"])
    assert repository.bound(1) == Bound(1e-4, 0.05)


@pytest.mark.parametrize(
    ("accelerator", "precision", "share"),
    [
        ("cpu", "fp16", 0.0),
        ("cuda", "fp32", 0.05),  # TF32
        ("cuda", "int8", 0.2),
        ("tensorrt-fp32", "fp32", 0.05),
        ("tensorrt-fp16", "bf16", 0.2),
        ("tensorrt-bf16", "fp32", 0.2),
    ],
)
def test_the_coarser_arithmetic_decides(accelerator: str, precision: str, share: float) -> None:
    assert bound_of(Accelerator(accelerator, engine_cache="engines"), precision).share == share


def test_every_accelerator_has_a_bound_and_a_provider() -> None:
    for name in NAMES:
        accelerator = Accelerator(name, engine_cache="engines")
        assert bound_of(accelerator, "fp32").is_strict == (name == "cpu")
        assert provider_of(accelerator).lower().startswith(name.partition("-")[0])


def test_int8_on_a_cpu_may_differ_by_more_than_float32() -> None:
    assert bound_of(Accelerator(), "int8") == Bound(1e-3, 0.02)


def test_a_graph_is_as_precise_as_its_coarsest_part(graph: Path) -> None:
    model = onnx.load(graph)
    assert precision_of(model) == "fp32"
    model.graph.initializer.append(helper.make_tensor("rough", TensorProto.BFLOAT16, [1], [1.0]))
    model.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT16, [1], [1.0]))
    assert precision_of(model) == "bf16"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["wide", "scale"], ["steps"]))
    assert precision_of(model) == "int8"
