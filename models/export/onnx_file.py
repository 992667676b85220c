"""Writing the graph as an ONNX file that describes itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch

from contract import INPUT, OUTPUTS
from durable import sync
from models.errors import ExportError
from models.export.graph import DeployGraph
from models.export.patch import stamp_weights

OPSET = 20
LARGEST = 1 << 30  # bytes of weights in the graph's own file; protobuf ends at 2 GB


def write_onnx(graph: DeployGraph, path: Path, *, input_size: int, metadata: Mapping[str, str]) -> None:
    """Exports, checks and writes the graph with its metadata; the path holds a whole file or none.

    The example batch has two photos, because a batch of one is silently specialised.

    Raises:
        ExportError: the exporter or onnx's checker refuses the graph.
    """
    example = torch.randint(0, 256, (2, input_size, input_size, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        program = torch.onnx.export(
            graph.eval(), (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[INPUT], output_names=list(OUTPUTS), dynamic_shapes={INPUT: {0: batch}},
        )  # fmt: skip
        assert program is not None
    except Exception as error:  # the exporter raises a dozen kinds
        raise ExportError(f"the graph cannot be exported: {error}") from error
    program.model.metadata_props.update(metadata)
    _write(path, program.save)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Checks and writes a model, its weights beside it where protobuf cannot hold them; the path holds a whole file or none.

    Raises:
        ExportError: onnx's checker refuses it.
    """
    beside = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST

    def write(target: Path) -> None:
        onnx.save(model, target, save_as_external_data=beside, location=f"{path.name}.data")
        onnx.checker.check_model(target, full_check=True)  # types and shapes too: the exporter did not see to them

    _write(path, write)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """What `write` makes, and puts beside it."""
    folder = path.parent / f".{path.name}.{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        write(folder / path.name)
        onnx.checker.check_model(folder / path.name)
        stamp_weights(folder / path.name)
        files = sorted(folder.iterdir(), key=lambda file: file.name == path.name)  # external data first, the graph last
        for file in files:
            sync(file)
        if len(files) > 1:
            path.unlink(missing_ok=True)  # a former graph must not be met beside these weights
        for file in files:
            file.replace(path.parent / file.name)
        sync(path.parent)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx's checker refuses the graph: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
