"""ONNX Runtime as a Python backend of Triton named `onnxruntime`.

It replaces the native backend of NVIDIA's container in the server of the wheel, with the same config.pbtxt. Triton's
Python stub runs it with the packages of the private environment: it may import nothing of CleanShelf.
"""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when it is loaded
import onnxruntime
import triton_python_backend_utils as pb_utils

SESSION_OPTIONS = {
    "intra_op_thread_count": "intra_op_num_threads",
    "inter_op_thread_count": "inter_op_num_threads",
    "enable_mem_arena": "enable_cpu_mem_arena",
    "enable_mem_pattern": "enable_mem_pattern",
}
PRECISIONS = {"FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable"}
TAKEN = b"used_dltensor"  # must outlive the capsules that have this name


class TritonPythonModel:
    """Instance of one version; Triton defines the names of the methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads <version>/model.onnx by its path, so that external data beside it is found."""
        config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        path = os.path.join(folder, config["default_model_filename"] or "model.onnx")
        providers = _providers(config, kind=args["model_instance_kind"], device=args["model_instance_device_id"])
        try:
            self.session = onnxruntime.InferenceSession(path, _options(config["parameters"]), providers=providers)
        except Exception as error:  # ONNX Runtime's own exceptions share no public base
            version = onnxruntime.__version__
            raise pb_utils.TritonModelException(f"ONNX Runtime {version} cannot load the graph: {error}") from None
        wanted = providers[0][0]
        if self.session.get_providers()[0] != wanted:  # ONNX Runtime falls back to the CPU silently
            raise pb_utils.TritonModelException(f"{wanted} is not available to ONNX Runtime; check its CUDA libraries")
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]

    def is_ready(self) -> bool:
        """True once the graph is loaded. Triton asks from 26.03 on; a dead process does not answer, so it is not ready."""
        return hasattr(self, "session")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Computes all requests as one batch; if that fails, one by one, so that only the faulty one gets the error."""
        try:
            return self._answer(requests)
        except Exception as error:
            if len(requests) > 1:
                return [self.execute([request])[0] for request in requests]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(f"ONNX Runtime: {error}"))]

    def _answer(self, requests: list[Any]) -> list[Any]:
        wanted = [set(request.requested_output_names()) for request in requests]
        names = [name for name in self.outputs if any(name in each for each in wanted)]
        feeds = {name: [_array(request, name) for request in requests] for name in self.inputs}
        sizes = [len(array) for array in feeds[self.inputs[0]]]
        batch = {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in feeds.items()}
        results = dict(zip(names, self.session.run(names, batch), strict=True))
        ends = np.cumsum(sizes)
        return [
            pb_utils.InferenceResponse(
                [_tensor(name, results[name][end - size : end]) for name in names if name in each]
            )
            for each, size, end in zip(wanted, sizes, ends, strict=True)
        ]


# The stub is built against numpy 1: under numpy 2 its as_numpy() silently gives zeros and its Tensor() sends nothing.
# DLPack passes the same memory independently of numpy's layout, so it works with numpy 2 (the only numpy on Python 3.13).
_IS_NUMPY_2 = int(np.__version__.split(".")[0]) >= 2


def _array(request: Any, name: str) -> np.ndarray:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return np.from_dlpack(tensor) if _IS_NUMPY_2 else tensor.as_numpy()


def _tensor(name: str, array: np.ndarray) -> Any:
    if not _IS_NUMPY_2:
        return pb_utils.Tensor(name, array)
    lent = _Lent(array)
    tensor = pb_utils.Tensor.from_dlpack(name, lent)
    # The stub marks a used capsule by a name that numpy does not know, and numpy would warn for every answer.
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(lent.capsule), TAKEN)
    return tensor


class _Lent:
    """Array that keeps a reference to its DLPack capsule."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.capsule = array.__dlpack__()

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def _providers(config: dict[str, Any], *, kind: str, device: str) -> list[tuple[str, dict[str, str]]]:
    """Execution providers that config.pbtxt asks for, first choice first, under the names of ONNX Runtime."""
    if kind != "GPU":
        return [("CPUExecutionProvider", {})]
    chosen = config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", [])
    asked = {each["name"]: each.get("parameters", {}) for each in chosen}
    cuda = ("CUDAExecutionProvider", {"device_id": device, **asked.get("cuda", {})})
    if "tensorrt" not in asked:
        return [cuda]
    engines = dict(asked["tensorrt"])
    precision = {PRECISIONS[name]: "True" for name in [engines.pop("precision_mode")] if name in PRECISIONS}
    return [("TensorrtExecutionProvider", {"device_id": device, **engines, **precision}), cuda]


def _options(parameters: dict[str, dict[str, str]]) -> onnxruntime.SessionOptions:
    """Session options from the parameters of config.pbtxt, which have the names of the native backend."""
    options = onnxruntime.SessionOptions()
    for key, name in SESSION_OPTIONS.items():
        if key in parameters:
            value = int(parameters[key]["string_value"])
            setattr(options, name, value if name.endswith("num_threads") else bool(value))
    return options
