"""ONNX Runtime sessions of our Python backend, in the server's own interpreter."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from serving.repository.accelerator import Accelerator
from serving.repository.model_config import TritonConfig
from serving.server.environment import Environment
from tests.graphs import write_graph

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[2]

# Reads the configuration from stdin, as the stub passes it, and makes a session with the backend's providers.
SCRIPT = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import model, onnxruntime
config = json.load(sys.stdin)
providers = model._providers(config, kind=sys.argv[3], device="0")
options = model._options(config["parameters"])
onnxruntime.set_default_logger_severity(4)
session = onnxruntime.InferenceSession(sys.argv[4], options, providers=providers)
instance = model.TritonPythonModel()
ready = [instance.is_ready()]
instance.session = session
ready.append(instance.is_ready())
print(json.dumps({
    "providers": providers, "first": session.get_providers()[0], "threads": options.intra_op_num_threads,
    "arena": options.enable_cpu_mem_arena, "pattern": options.enable_mem_pattern, "ready": ready,
}))
"""


def session_options(environment: Environment, graph: Path, accelerator: Accelerator) -> dict[str, Any]:
    """Session options that the backend derives from our config.pbtxt, which Triton passes as JSON."""
    text = TritonConfig.from_onnx(graph, versions=(1,), accelerator=accelerator).to_pbtxt()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    backends = [environment.wheel / "backends" / "python", ROOT / "serving" / "onnxruntime_backend"]
    kind = "GPU" if accelerator.is_gpu else "CPU"
    done = subprocess.run(
        [environment.path / "bin" / "python", "-c", SCRIPT, *backends, kind, graph],
        input=json_format.MessageToJson(config, preserving_proto_field_name=True),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_session_follows_the_configuration(triton_environment: Environment, tmp_path: Path) -> None:
    found = session_options(triton_environment, write_graph(tmp_path / "g.onnx"), Accelerator())
    assert found == {
        "providers": [["CPUExecutionProvider", {}]],
        "first": "CPUExecutionProvider",
        "threads": 1,
        "arena": True,
        "pattern": False,
        "ready": [False, True],
    }


def test_accelerators_become_execution_providers(triton_environment: Environment, tmp_path: Path) -> None:
    accelerator = Accelerator("tensorrt-fp16", 10**9, "/cache/x")
    [first, second] = session_options(triton_environment, write_graph(tmp_path / "g.onnx"), accelerator)["providers"]
    cuda = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
    assert second == ["CUDAExecutionProvider", {"device_id": "0", **cuda, "gpu_mem_limit": "1000000000"}]
    assert first[0] == "TensorrtExecutionProvider"
    assert (
        first[1].items()
        >= {
            "device_id": "0",
            "trt_fp16_enable": "True",
            "trt_engine_cache_path": "/cache/x",
            "trt_profile_max_shapes": "image:8x16x16x3",
        }.items()
    )
    assert "precision_mode" not in first[1]
