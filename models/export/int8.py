"""A graph whose convolutions compute with 8-bit integers, for CPUs: made of the float32 file and calibrated on photos.

Convolutions, and the activations, sums and maxima between them, are quantised: activations uint8 over the range that calibration
photos span, weights int8 with a scale for each channel. An activation such as ReLU6 becomes the saturation of the integers and
costs nothing; left in float32, it costs a third of the time and ten points of agreement.

Rounded weights shift what a channel gives on average. The biases take that back (Nagel et al., ICCV 2019, arXiv 1906.04721,
equation 16), by the means of the inputs over the calibration photos: it halves the answers that change (docs/tasks/export.md).
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
        photos: (n, S, S, 3) that calibrate; a hundred photos that were trained on.

    Raises:
        ExportError: there is no convolution to quantise.
    """
    exact, rough = onnx.load(source), target.with_name(f".rough-{target.name}")
    nodes = [node for node in exact.graph.node if in_backbone(node) and node.op_type in QUANTISED]
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    if not convolutions:
        raise ExportError("no backbone has a convolution, and only those are quantised; leave out int8")
    try:
        _quantise(source, rough, [node.name for node in nodes], photos)
        model = onnx.load(rough)
        means = _means(exact, {node.input[0] for node in convolutions}, photos, rough)
    finally:
        for file in rough.parent.glob(f"{rough.name}*"):  # with its weights, where they lie beside it
            file.unlink()
    _correct_biases(model, exact, convolutions, means)
    helper.set_model_props(model, read_metadata(source))
    save(model, target)


def has_vnni() -> bool:
    """Whether this CPU adds products of uint8 and int8 in 32 bits.

    Others saturate at 16 bits, and weights of 7 bits are what is safe for them: exact, and less accurate.
    """
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def _quantise(source: Path, target: Path, names: list[str], photos: NDArray[np.uint8]) -> None:
    """ONNX Runtime's own quantisation of these nodes, by the smallest and largest value of each activation."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises what was done already
    try:
        quantize_static(
            source, target, _reader(photos), quant_format=QuantFormat.QDQ, nodes_to_quantize=names, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=not has_vnni(),
            use_external_data_format=bool(external_files(source)),
        )  # fmt: skip
    finally:
        logging.disable(silenced)


def _reader(photos: NDArray[np.uint8]) -> Any:
    """The photos in batches, as ONNX Runtime's calibration asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(_batches(photos))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.batches, None)

    return Reader()


def _batches(photos: NDArray[np.uint8]) -> list[dict[str, NDArray[np.uint8]]]:
    return [{"image": photos[start : start + BATCH]} for start in range(0, len(photos), BATCH)]


def _means(
    exact: onnx.ModelProto, names: set[str], photos: NDArray[np.uint8], probe: Path
) -> dict[str, NDArray[np.float64]]:
    """(channels,) mean of each of these tensors over photos and places, by a graph that is written to `probe`."""
    model, asked = onnx.ModelProto(), sorted(names)
    model.CopyFrom(exact)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "places"))
    for name in asked:
        model.graph.node.append(helper.make_node("ReduceMean", [name, "places"], [f"{name}_mean"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(f"{name}_mean", TensorProto.FLOAT, [None]))
    save(model, probe)
    session, batches = open_session(probe), _batches(photos)
    found = [session.run([f"{name}_mean" for name in asked], batch) for batch in batches]
    share = np.array([len(batch["image"]) for batch in batches]) / len(photos)
    return {name: share @ np.stack(rows) for name, rows in zip(asked, zip(*found, strict=True), strict=True)}


def _correct_biases(
    model: onnx.ModelProto, exact: onnx.ModelProto, convolutions: Sequence[onnx.NodeProto], means: dict[str, NDArray[np.float64]],
) -> None:  # fmt: skip
    """Takes from each quantised bias what the rounded weights add on average; padding is disregarded."""
    usual = {tensor.name: tensor for tensor in exact.graph.initializer}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def array(name: str) -> NDArray[Any]:
        return numpy_helper.to_array(stored[name])

    for node in convolutions:
        source, weight, *bias = node.input
        if not bias:  # of a convolution without one nothing can be taken
            continue
        scale = array(f"{weight}_scale").astype(np.float64).reshape(-1, 1, 1, 1)
        added = (array(f"{weight}_quantized") * scale - numpy_helper.to_array(usual[weight])).sum((2, 3))
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        shift = np.einsum("goi,gi->go", added.reshape(groups, -1, added.shape[1]), means[source].reshape(groups, -1))
        name = f"{bias[0]}_quantized"
        steps = np.round(shift.ravel() / array(f"{name}_scale")).astype(np.int32)
        stored[name].CopyFrom(numpy_helper.from_array(array(name) - steps, name))
