"""Writing the graph as an ONNX file that describes itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch

from models.errors import ExportError
from models.export.graph import Answers, DeployGraph

OPSET = 20
OUTPUTS = Answers._fields


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
            input_names=["image"], output_names=list(OUTPUTS), dynamic_shapes={"image": {0: batch}},
        )  # fmt: skip
        assert program is not None
    except Exception as error:  # the exporter raises a dozen kinds
        raise ExportError(f"the graph cannot be exported: {error}") from error
    program.model.metadata_props.update(metadata)
    _save(program, path)


def _save(program: torch.onnx.ONNXProgram, path: Path) -> None:
    folder = path.parent / f".{path.name}.{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        program.save(folder / path.name)
        onnx.checker.check_model(folder / path.name)
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in sorted(folder.iterdir(), key=lambda f: f.name == path.name):  # external data first, the graph last
            file.replace(path.parent / file.name)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"onnx's checker refuses the graph: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
