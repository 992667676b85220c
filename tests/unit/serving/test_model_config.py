from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from contract import BULK, LIVE
from serving.errors import BadGraph, BadRequest
from serving.repository.accelerator import NAMES, Accelerator
from serving.repository.model_config import TritonConfig
from serving.signature import Signature, TensorSpec
from tests.graphs import write_graph


def proto(config: TritonConfig) -> model_config_pb2.ModelConfig:
    return text_format.Parse(config.to_pbtxt(), model_config_pb2.ModelConfig())


def test_signature_is_the_graphs(tmp_path: Path) -> None:
    signature = Signature.read(write_graph(tmp_path / "g.onnx", size=24, k=3, metadata={"data_version": "é"}))
    assert signature.inputs == (TensorSpec("image", "TYPE_UINT8", (24, 24, 3)),)
    assert signature.outputs == (
        TensorSpec("ids", "TYPE_INT64", (3,)),
        TensorSpec("probs", "TYPE_FP32", (3,)),
        TensorSpec("known", "TYPE_FP32", (1,)),
        TensorSpec("embedding", "TYPE_FP32", (512,)),
    )
    assert (signature.size, signature.k, signature.metadata["data_version"]) == (24, 3, "é")


@pytest.mark.parametrize("name", NAMES)
def test_text_reads_back_as_written(graph: Path, name: str) -> None:
    accelerator = Accelerator(name, 2**30 if name != "cpu" else 0, "/cache/x" if name.startswith("tensorrt") else "")
    config = TritonConfig.from_onnx(
        graph, versions=(3, 7), joined=4, instances=2, accelerator=accelerator, parameters={"data_version.7": 'a"\n é'}
    )
    assert TritonConfig.parse(config.to_pbtxt()) == config


def test_every_setting_is_written_out(graph: Path) -> None:
    config = proto(TritonConfig.from_onnx(graph, versions=(3, 7), instances=2, max_queue_size=9, queue_timeout_ms=250))
    assert (config.name, config.backend, config.max_batch_size) == ("products", "onnxruntime", 8)
    assert list(config.version_policy.specific.versions) == [3, 7]
    assert [(g.count, g.kind) for g in config.instance_group] == [(2, model_config_pb2.ModelInstanceGroup.KIND_CPU)]
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (2, LIVE)
    live, bulk = config.dynamic_batching.default_queue_policy, config.dynamic_batching.priority_queue_policy[BULK]
    for queue, patience_us in ((live, 250_000), (bulk, 3_000_000)):
        assert (queue.timeout_action, queue.default_timeout_microseconds, queue.max_queue_size) == (
            queue.REJECT,
            patience_us,
            9,
        )
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 2, 4, 8]
    assert list(config.model_warmup[1].inputs["image"].dims) == [16, 16, 3]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert not config.response_cache.enable


@pytest.mark.parametrize(("joined", "preferred"), [(1, [1]), (2, [2]), (6, [2, 4, 6]), (8, [2, 4, 8])])
def test_requests_are_joined_within_a_limit_and_each_size_is_warmed_up(
    graph: Path, joined: int, preferred: list[int]
) -> None:
    config = proto(TritonConfig.from_onnx(graph, versions=(1,), joined=joined))
    assert list(config.dynamic_batching.preferred_batch_size) == preferred
    assert config.max_batch_size == 8, "what a request may hold stays the same"
    assert [warmup.batch_size for warmup in config.model_warmup] == sorted({1, *preferred, 8})


def chosen(config: model_config_pb2.ModelConfig) -> list[tuple[str, dict[str, str]]]:
    found = config.optimization.execution_accelerators.gpu_execution_accelerator
    return [(each.name, dict(each.parameters)) for each in found]


def test_a_gpu_gets_two_instances_and_takes_no_more_memory_than_it_needs(graph: Path) -> None:
    config = proto(TritonConfig.from_onnx(graph, versions=(1,), accelerator=Accelerator("cuda")))
    group = config.instance_group[0]
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 2)
    more = TritonConfig.from_onnx(graph, versions=(1,), accelerator=Accelerator("cuda"), instances=4)
    assert proto(more).instance_group[0].count == 4, "someone asked for it"
    cuda = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    assert chosen(config) == [("cuda", cuda)]
    limited = proto(TritonConfig.from_onnx(graph, versions=(1,), accelerator=Accelerator("cuda", 10**9)))
    assert chosen(limited) == [("cuda", {**cuda, "gpu_mem_limit": "1000000000"})]


def test_the_cpu_keeps_no_memory_pattern_per_batch_size(graph: Path) -> None:
    config = proto(TritonConfig.from_onnx(graph, versions=(1,)))
    session = {key: config.parameters[key].string_value for key in ("enable_mem_arena", "enable_mem_pattern")}
    assert session == {"enable_mem_arena": "1", "enable_mem_pattern": "0"}
    assert chosen(config) == []


def test_tensorrt_builds_one_engine_for_all_batches_and_keeps_it(graph: Path) -> None:
    accelerator = Accelerator("tensorrt-fp16", engine_cache="/cache/gpu/graph")
    [(first, engines), (second, _)] = chosen(
        proto(TritonConfig.from_onnx(graph, versions=(1,), joined=4, accelerator=accelerator))
    )
    assert (first, second) == ("tensorrt", "cuda")
    assert engines == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/cache/gpu/graph",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/cache/gpu/graph",
        "trt_profile_min_shapes": "image:1x16x16x3",
        "trt_profile_opt_shapes": "image:4x16x16x3",
        "trt_profile_max_shapes": "image:8x16x16x3",
    }


@pytest.mark.parametrize(("name", "message"), [("rocm", "choose one of cpu, cuda"), ("tensorrt-fp16", "name one")])
def test_an_accelerator_that_cannot_be_is_refused(name: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        Accelerator(name)


def edited(graph: Path, change: str) -> Path:
    model = onnx.load(graph)
    image, ids = model.graph.input[0], model.graph.output[0]
    if change == "float image":
        image.type.tensor_type.elem_type = TensorProto.FLOAT
    elif change == "fixed batch":
        image.type.tensor_type.shape.dim[0].dim_value = 1
    elif change == "dynamic side":
        image.type.tensor_type.shape.dim[1].dim_param = "height"
    elif change == "not square":
        image.type.tensor_type.shape.dim[1].dim_value = 17
    elif change == "other k":
        ids.type.tensor_type.shape.dim[1].dim_value = 4
    elif change == "int32 ids":
        ids.type.tensor_type.elem_type = TensorProto.INT32
    elif change == "no embedding":
        del model.graph.output[2]
    elif change == "second input":
        model.graph.input.append(helper.make_tensor_value_info("tau", TensorProto.FLOAT, ["batch", 1]))
    onnx.save(model, graph)
    return graph


CHANGES = [
    "float image",
    "fixed batch",
    "dynamic side",
    "not square",
    "other k",
    "int32 ids",
    "no embedding",
    "second input",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_outside_the_contract_is_refused(graph: Path, change: str) -> None:
    with pytest.raises(BadGraph, match=r"export\.onnx.*export it again"):
        Signature.read(edited(graph, change))


def test_what_is_not_onnx_is_refused(graph: Path, tmp_path: Path) -> None:
    graph.write_bytes(graph.read_bytes()[:500])
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(1000))
    for path in (graph, tmp_path / "noise.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(BadGraph, match=path.name):
            Signature.read(path)


def test_text_that_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="not a Triton model configuration"):
        TritonConfig.parse("max_batch_size: {")
