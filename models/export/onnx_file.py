"""Writing the graph as an ONNX file that describes itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
import torch

from models.errors import ExportError
from models.export.graph import Answers, DeployGraph

OPSET = 20
OUTPUTS = Answers._fields
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
            input_names=["image"], output_names=list(OUTPUTS), dynamic_shapes={"image": {0: batch}},
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
    """What `write` makes, and puts beside it. The graph names the digest of its weights file, so that its own stands for both."""
    folder = path.parent / f".{path.name}.{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        write(folder / path.name)
        onnx.checker.check_model(folder / path.name)
        if weights := external_files(folder / path.name):
            digests = [_sha256(folder / name) for name in weights]
            stamp(folder / path.name, {"weights_sha256": " ".join(digests)})
        for file in folder.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in sorted(folder.iterdir(), key=lambda f: f.name == path.name):  # external data first, the graph last
            file.replace(path.parent / file.name)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx's checker refuses the graph: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def external_files(path: Path) -> list[str]:
    """Names of the files beside a graph that hold its weights, sorted; most graphs have none."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return sorted({entry.value for each in tensors for entry in each.external_data if entry.key == "location"})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file, without its weights."""
    model = onnx.load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}


def stamp(path: Path, metadata: Mapping[str, str]) -> None:
    """Adds metadata to a written file, in place and whole; the weights are not touched."""
    model = onnx.load(path, load_external_data=False)
    entries = {entry.key: entry.value for entry in model.metadata_props} | dict(metadata)
    onnx.helper.set_model_props(model, entries)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("wb") as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def labels_json(labels: Sequence[str]) -> str:
    """Labels as they stand in the metadata."""
    return json.dumps(list(labels), ensure_ascii=False)
