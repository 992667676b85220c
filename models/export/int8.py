"""int8 variant of a graph for CPUs: its convolutions are quantised to 8-bit integers and calibrated on photos.

Convolutions, and the activations, sums and maxima between them, are quantised: activations as uint8 over the range seen
on the calibration photos, weights as int8 with a scale per channel. An activation such as ReLU6 becomes the saturation
of integers, at no cost; in float32 it would take a third of the time and lower the agreement by ten points.

Rounding the weights shifts the mean of each output channel. The biases are corrected for it (Nagel et al., ICCV 2019,
arXiv 1906.04721, equation 16), with the mean inputs over the calibration photos, which halves the number of changed
answers (docs/tasks/export.md).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.errors import ExportError
from models.export.onnx_file import save
from models.export.patch import external_files, read_metadata
from models.export.precision import in_backbone
from models.export.session import open_session

QUANTISED = ("Conv", "Clip", "Relu", "Add", "MaxPool")
BATCH = 8


def write_int8(source: Path, target: Path, *, photos: NDArray[np.uint8]) -> None:
    """Writes the float32 graph `source` with quantised backbones.

    Args:
        photos: (n, S, S, 3) photos for calibration; about a hundred training photos.

    Raises:
        ExportError: there is no convolution to quantise.
    """
    exact, uncorrected = onnx.load(source), target.with_name(f".rough-{target.name}")
    nodes = [node for node in exact.graph.node if in_backbone(node) and node.op_type in QUANTISED]
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    if not convolutions:
        raise ExportError("export.precisions: int8 quantises convolutions only, and no backbone has one; omit int8")
    try:
        _quantise(source, uncorrected, [node.name for node in nodes], photos)
        model = onnx.load(uncorrected)
        means = _means(exact, {node.input[0] for node in convolutions}, photos, uncorrected)
    finally:
        for file in uncorrected.parent.glob(f"{uncorrected.name}*"):  # with its external data, if any
            file.unlink()
    _correct_biases(model, exact, convolutions, means)
    helper.set_model_props(model, read_metadata(source))
    save(model, target)


def has_vnni() -> bool:
    """True if this CPU accumulates products of uint8 and int8 in 32 bits.

    Other CPUs saturate at 16 bits, so weights have to be limited to 7 bits, which is less accurate.
    """
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _quantise(source: Path, target: Path, names: list[str], photos: NDArray[np.uint8]) -> None:
    """Quantises these nodes by ONNX Runtime, with the minimum and maximum of each activation."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preprocessing that is done already
    try:
        quantize_static(
            source, target, _reader(photos), quant_format=QuantFormat.QDQ, nodes_to_quantize=names, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=not has_vnni(),
            use_external_data_format=bool(external_files(source)),
        )  # fmt: skip
    finally:
        logging.disable(disabled)


def _reader(photos: NDArray[np.uint8]) -> Any:
    """Reader of the photos in batches, for ONNX Runtime's calibration."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(_batches(photos))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.batches, None)

    return Reader()


def _batches(photos: NDArray[np.uint8]) -> list[dict[str, NDArray[np.uint8]]]:
    """Inputs of a session, one per batch."""
    return [{"image": photos[start : start + BATCH]} for start in range(0, len(photos), BATCH)]


def _means(
    exact: onnx.ModelProto, names: set[str], photos: NDArray[np.uint8], probe: Path
) -> dict[str, NDArray[np.float64]]:
    """(channels,) mean of each of these tensors over photos and positions, by a graph that is written to `probe`."""
    model, tensors = onnx.ModelProto(), sorted(names)
    model.CopyFrom(exact)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "mean_axes"))
    for name in tensors:
        model.graph.node.append(helper.make_node("ReduceMean", [name, "mean_axes"], [f"{name}_mean"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}_mean", TensorProto.FLOAT, [None]))
    save(model, probe)
    session, batches = open_session(probe), _batches(photos)
    outputs = [session.run([f"{name}_mean" for name in tensors], batch) for batch in batches]
    share = np.array([len(batch["image"]) for batch in batches]) / len(photos)
    return {name: share @ np.stack(rows) for name, rows in zip(tensors, zip(*outputs, strict=True), strict=True)}


def _correct_biases(
    model: onnx.ModelProto,
    exact: onnx.ModelProto,
    convolutions: Sequence[onnx.NodeProto],
    means: dict[str, NDArray[np.float64]],
) -> None:
    """Subtracts from each quantised bias the mean shift caused by rounding the weights; ignores padding."""
    unquantised = {tensor.name: tensor for tensor in exact.graph.initializer}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def array(name: str) -> NDArray[Any]:
        return numpy_helper.to_array(stored[name])

    for node in convolutions:
        source, weight, *bias = node.input
        if not bias:  # a convolution without a bias cannot be corrected
            continue
        scale = array(f"{weight}_scale").astype(np.float64).reshape(-1, 1, 1, 1)
        added = (array(f"{weight}_quantized") * scale - numpy_helper.to_array(unquantised[weight])).sum((2, 3))
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        shift = np.einsum("goi,gi->go", added.reshape(groups, -1, added.shape[1]), means[source].reshape(groups, -1))
        name = f"{bias[0]}_quantized"
        steps = np.round(shift.ravel() / array(f"{name}_scale")).astype(np.int32)
        stored[name].CopyFrom(numpy_helper.from_array(array(name) - steps, name))
