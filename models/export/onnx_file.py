"""Writing of graphs as self-describing ONNX files."""

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
MAX_BYTES = 1 << 30  # of weights in the graph's own file; protobuf allows 2 GB


def write_onnx(graph: DeployGraph, path: Path, *, input_size: int, metadata: Mapping[str, str]) -> None:
    """Exports, checks and writes the graph with its metadata, atomically.

    The example batch has two photos, because the exporter would silently fix a batch size of one.

    Raises:
        ExportError: the exporter or onnx's checker rejects the graph.
    """
    example = torch.randint(0, 256, (2, input_size, input_size, 3), dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        program = torch.onnx.export(
            graph.eval(), (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[INPUT], output_names=list(OUTPUTS), dynamic_shapes={INPUT: {0: batch}},
        )  # fmt: skip
        assert program is not None
    except Exception as error:  # the exporter raises a dozen kinds of exceptions
        raise ExportError(f"the graph cannot be exported: {error}") from error
    program.model.metadata_props.update(metadata)
    _write(path, program.save)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Checks and writes a model atomically, with its weights in a second file if they exceed MAX_BYTES.

    Raises:
        ExportError: onnx's checker rejects it.
    """
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_BYTES

    def write(target: Path) -> None:
        onnx.save(model, target, save_as_external_data=external, location=f"{path.name}.data")
        onnx.checker.check_model(target, full_check=True)  # checks types and shapes, too

    _write(path, write)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Moves the files that `write` makes in a temporary folder to the folder of `path`."""
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
            path.unlink(missing_ok=True)  # an old graph must never be read together with the new weights
        for file in files:
            file.replace(path.parent / file.name)
        sync(path.parent)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx's checker rejects the graph: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
