"""Variants of a graph with other precisions and numbers of crops: their answers, and the choice of those offered."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from contract import OUTPUTS
from durable import sha256
from models.data.manifest import read_manifest
from models.errors import ExportError
from models.export.__main__ import export
from models.export.int8 import write_int8
from models.export.patch import external_files, read_metadata
from models.export.precision import HALVES, in_backbone, write_half, write_rounded
from models.export.variants import Variant, copy_graph, main, publish, undominated, why_refused
from models.recipe.config import Export, Recipe, to_dict
from models.training.train import save_network
from serving.signature import Signature
from tests.graphs import golden_images, write_graph
from tests.unit.models.test_export import trained

SETTINGS = Export(input_size=40, crops=2, variants=True, fall=1.0)


@pytest.fixture(scope="module")
def exported(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of exports by the number of crops."""
    out = tmp_path_factory.mktemp("levels")
    members = [trained(32, seed=1, tau=0.7), trained(24, seed=2)]
    files = [out / f"{i}.pt" for i in range(len(members))]
    for path, each in zip(files, members, strict=True):
        save_network(path, each.network, member=each.member, classes=each.classes, tau=each.tau)
    for crops in (1, 2):
        (out / str(crops)).mkdir()
        settings = dataclasses.replace(recipe, export=dataclasses.replace(SETTINGS, crops=crops))
        export(files, data=data, recipe=settings, card={"recipe": "tiny"}, out=out / str(crops))
    return {crops: out / str(crops) for crops in (1, 2)}


@pytest.fixture(scope="module")
def graph(exported: dict[int, Path]) -> Path:
    return exported[2] / "model.onnx"


@pytest.fixture(scope="module")
def photos(exported: dict[int, Path]) -> NDArray[np.uint8]:
    return np.load(exported[2] / "golden.npy")


def answers(path: Path, photos: NDArray[np.uint8]) -> dict[str, NDArray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": photos}), strict=True))


def weights(path: Path) -> dict[str, int]:
    """Type of each initialiser."""
    return {tensor.name: tensor.data_type for tensor in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("precision", list(HALVES))
def test_backbones_have_16_bits_and_all_else_has_32(
    graph: Path, photos: NDArray[np.uint8], precision: str, tmp_path: Path
) -> None:
    write_half(graph, tmp_path / "half.onnx", precision=precision)
    found = weights(tmp_path / "half.onnx")
    for name, kind in weights(graph).items():
        if ".backbone." in name and kind == TensorProto.FLOAT:
            assert found[f"{name}_half"] == HALVES[precision]
        else:
            assert found[name] == kind
    assert sum(".backbone." in name for name in found) > 10
    assert Signature.read(tmp_path / "half.onnx") == Signature.read(graph)
    assert read_metadata(tmp_path / "half.onnx") == read_metadata(graph)
    computed = onnx.load(tmp_path / "half.onnx").graph
    made = {name for node in computed.node if in_backbone(node) for name in node.output}
    kinds = {value.type.tensor_type.elem_type for value in computed.value_info if value.name in made}
    assert TensorProto.FLOAT not in kinds
    assert HALVES[precision] in kinds


def test_fp16_computes_what_rounding_promises(graph: Path, photos: NDArray[np.uint8], tmp_path: Path) -> None:
    exact = answers(graph, photos)
    write_half(graph, tmp_path / "half.onnx", precision="fp16")
    write_rounded(graph, tmp_path / "rounded.onnx", precision="fp16")
    half, rounded = (answers(tmp_path / f"{name}.onnx", photos) for name in ("half", "rounded"))
    off = np.abs(half["embedding"] - exact["embedding"]).max()
    assert 1e-6 < off < 5e-3
    assert np.abs(rounded["embedding"] - half["embedding"]).max() < off  # nearer to each other than to float32


def test_bf16_rounds_eight_times_as_coarsely(graph: Path, photos: NDArray[np.uint8], tmp_path: Path) -> None:
    exact, off = answers(graph, photos)["embedding"], {}
    for precision in HALVES:
        write_rounded(graph, tmp_path / "rounded.onnx", precision=precision)
        off[precision] = float(np.abs(answers(tmp_path / "rounded.onnx", photos)["embedding"] - exact).mean())
    assert 4 < off["bf16"] / off["fp16"] < 16  # 8 and 11 bits


def test_int8_keeps_the_contract_and_nearly_the_answers(graph: Path, photos: NDArray[np.uint8], tmp_path: Path) -> None:
    write_int8(graph, tmp_path / "int8.onnx", photos=photos)
    exact, found = answers(graph, photos), answers(tmp_path / "int8.onnx", photos)
    assert Signature.read(tmp_path / "int8.onnx") == Signature.read(graph)
    assert read_metadata(tmp_path / "int8.onnx").items() >= read_metadata(graph).items()
    assert 1e-5 < np.abs(found["embedding"] - exact["embedding"]).max() < 0.2
    kept, quantised = weights(graph), weights(tmp_path / "int8.onnx")
    convolutions = [name for name in kept if ".backbone." in name and "conv" in name and name.endswith(".weight")]
    assert convolutions
    assert {quantised[f"{name}_quantized"] for name in convolutions} == {TensorProto.INT8}
    assert quantised["branches.0.classifier.weight"] == TensorProto.FLOAT
    assert {path.name for path in tmp_path.iterdir()} == {"int8.onnx"}


def test_rounded_weights_add_nothing_on_average(
    graph: Path, photos: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, off = answers(graph, photos)["embedding"], []
    write_int8(graph, tmp_path / "int8.onnx", photos=photos)
    off.append(np.abs(answers(tmp_path / "int8.onnx", photos)["embedding"] - exact).mean())
    monkeypatch.setattr("models.export.int8._correct_biases", lambda *_: None)
    write_int8(graph, tmp_path / "int8.onnx", photos=photos)
    off.append(np.abs(answers(tmp_path / "int8.onnx", photos)["embedding"] - exact).mean())
    assert off[0] < off[1]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_large_weights_lie_beside_the_variant(
    graph: Path, photos: NDArray[np.uint8], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, large = tmp_path / "usual.onnx", tmp_path / "large" / f"{precision}.onnx"
    (tmp_path / "large").mkdir()
    make = {"fp16": partial(write_half, precision="fp16"), "int8": partial(write_int8, photos=photos)}[precision]
    make(graph, usual)
    monkeypatch.setattr("models.export.onnx_file.MAX_BYTES", 1000)
    make(graph, large)
    assert external_files(large) == [f"{precision}.onnx.data"]
    assert external_files(usual) == []
    copy_graph(large, tmp_path / "large")
    found, want = answers(tmp_path / "large" / "model.onnx", photos), answers(usual, photos)
    assert all(np.array_equal(found[name], want[name]) for name in OUTPUTS)
    assert read_metadata(large)["weights_sha256"] == sha256(large.with_name(f"{precision}.onnx.data"))


def test_a_graph_without_backbones_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "plain.onnx")
    with pytest.raises(ExportError, match="backbone"):
        write_half(path, tmp_path / "half.onnx", precision="fp16")
    with pytest.raises(ExportError, match="convolution"):
        write_int8(path, tmp_path / "int8.onnx", photos=golden_images())


VARIANT = Variant("int8", top1=0.60, mean_class=0.6, agreement=0.9, ms=1.0, fp32_ms=2.0)


@pytest.mark.parametrize(
    ("change", "before", "reason"),
    [
        ({}, 0.605, ""),
        ({}, 0.6051, "top-1 falls from 0.6051 to 0.6000"),
        ({"ms": 2.0}, 0.6, "2.00 ms"),
        ({"ms": None, "fp32_ms": None}, 0.6, "finds no GPU"),
        ({"top1": np.nan}, 0.6, "no validation photos"),
    ],
)
def test_a_precision_is_offered_if_it_is_as_accurate_and_faster(
    change: dict[str, float], before: float, reason: str
) -> None:
    refused = why_refused(dataclasses.replace(VARIANT, **change), before, largest_fall=0.005 + 1e-9)
    assert reason in refused
    assert bool(refused) == bool(reason)


def test_more_crops_are_offered_where_they_tell_more() -> None:
    levels = [dataclasses.replace(VARIANT, name=f"crops{n}", top1=top1, ms=float(n), fp32_ms=10.0)
              for n, top1 in ((10, 0.7), (5, 0.6), (2, 0.65), (1, 0.6))]  # fmt: skip
    assert {each.name for each in undominated(levels) if each.offered} == {"crops10", "crops2", "crops1"}


def make_variants(
    exported: dict[int, Path],
    data: Path,
    recipe: Recipe,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    **settings: object,
) -> dict[str, dict]:
    """Content of the variants.json of `python -m models.export.variants`, by name."""
    out.mkdir()
    asked = dataclasses.replace(recipe, export=dataclasses.replace(SETTINGS, **settings))  # type: ignore[arg-type]
    (out / "recipe.json").write_text(json.dumps(to_dict(asked)))
    words = ["--data", data, "--recipe", out / "recipe.json", "--graph", exported[2], "--levels", exported[1]]
    monkeypatch.setattr(sys, "argv", ["variants", *map(str, words), "--out", str(out)])
    main()
    return {each["name"]: each for each in json.loads((out / "variants.json").read_text())}


def test_the_float32_graph_is_published_where_a_precision_is_refused(
    exported: dict[int, Path], data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_variants(exported, data, recipe, tmp_path / "out", monkeypatch, precision="fp16")
    assert set(made) == {"fp16", "bf16", "int8", "crops1", "crops2"}
    assert made["crops2"]["agreement"] == 1
    assert made["crops2"]["ms"] > 0
    assert "golden answers" in made["bf16"]["refused"]
    assert "finds no GPU" in made["fp16"]["refused"] or made["fp16"]["ms"] > 0
    assert all(0 <= each["top1"] <= 1 and 0 <= each["agreement"] <= 1 for each in made.values())
    if not made["fp16"]["offered"]:
        assert (tmp_path / "out" / "model.onnx").read_bytes() == (exported[2] / "model.onnx").read_bytes()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in exported[2].iterdir()} <= left
    assert not [name for name in left if name.startswith(".")]


def test_the_variant_that_is_offered_is_published(exported: dict[int, Path], data: Path, tmp_path: Path) -> None:
    write_int8(exported[2] / "model.onnx", tmp_path / "int8.onnx", photos=np.load(exported[2] / "golden.npy"))
    settings = dataclasses.replace(SETTINGS, precision="int8")
    publish(settings, [VARIANT], exported[2], tmp_path, read_manifest(data))
    metadata = read_metadata(tmp_path / "model.onnx")
    assert json.loads(metadata["variant"]) == VARIANT.to_dict()
    assert json.loads(metadata["metrics"]) == json.loads((tmp_path / "accuracy.json").read_text())
    assert metadata["labels"] == read_metadata(exported[2] / "model.onnx")["labels"]
    assert weights(tmp_path / "model.onnx") == weights(tmp_path / "int8.onnx")
    assert (tmp_path / "parity.json").read_bytes() == (exported[2] / "parity.json").read_bytes()
