"""A graph whose convolutions compute with 8-bit integers, for CPUs: made of the float32 file and calibrated on photos.

Convolutions, and the activations, sums and maxima between them, are quantised: activations uint8 over the range that calibration
photos span, weights int8 with a scale for each channel. Where an activation such as ReLU6 is part of it, it becomes the
saturation of the integers and costs nothing; left out, it costs a third of the time and 10 points of agreement (docs/variants.md).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models.errors import ExportError
from models.export.onnx_file import external_files, read_metadata, save
from models.export.precision import in_backbone

QUANTISED = ("Conv", "Clip", "Relu", "Add", "MaxPool")
BATCH = 8


def write_int8(source: Path, target: Path, *, photos: NDArray[np.uint8]) -> None:
    """Writes the float32 graph `source` with quantised backbones.

    Args:
        photos: (n, S, S, 3) uint8 that calibrate; a hundred photos that were trained on.

    Raises:
        ExportError: there is no convolution to quantise.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    nodes = [node for node in onnx.load(source, load_external_data=False).graph.node if in_backbone(node)]
    chosen = [node.name for node in nodes if node.op_type in QUANTISED]
    if not any(node.op_type == "Conv" for node in nodes):
        raise ExportError("no backbone has a convolution, and only those are quantised; leave out int8")
    rough = target.with_name(f".rough-{target.name}")
    silenced = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises what was done already
    try:
        quantize_static(
            source, rough, _reader(photos), quant_format=QuantFormat.QDQ, nodes_to_quantize=chosen, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=not has_vnni(),
            use_external_data_format=bool(external_files(source)),
        )  # fmt: skip
    finally:
        logging.disable(silenced)
    model = onnx.load(rough)
    for file in (rough, *(rough.parent / name for name in external_files(rough))):
        file.unlink()
    onnx.helper.set_model_props(model, read_metadata(source))
    save(model, target)


def _reader(photos: NDArray[np.uint8]) -> Any:
    """The photos in batches, as ONNX Runtime's calibration asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = ({"image": photos[start : start + BATCH]} for start in range(0, len(photos), BATCH))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return next(self.batches, None)

    return Reader()


def has_vnni() -> bool:
    """Whether this CPU adds products of uint8 and int8 in 32 bits.

    Others saturate at 16 bits, and weights of 7 bits are what is safe for them: exact, and less accurate.
    """
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
