"""Graphs whose `known` has a row for each class: their file, and products that are added and removed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.export import parity
from models.export.discriminant import Discriminant, own_bias
from models.export.enrol import agreement, embeddings, enrol, new_mean, withdraw
from models.export.features import cut_to_classifiers
from models.export.graph import DeployGraph
from models.export.ood import DISCRIMINANT, Calibration
from models.export.patch import read_graph
from models.recipe.config import Export
from tests.unit.models.test_enrol import CLASSES, LABEL, SIZE, answers, network, photos, write

SETTINGS = Export(input_size=SIZE, crops=2, enlarge=(1.25,))


@pytest.fixture(scope="module", params=[False, True], ids=["answers all", "rejects"])
def graph(request: pytest.FixtureRequest) -> DeployGraph:
    members = [network(size, seed=number, classes=CLASSES) for number, size in enumerate((32, 24))]
    plain = DeployGraph(members, settings=SETTINGS, weights=[0.7, 0.3]).eval()
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        seen = [each.embedding.mean(0).numpy() for each in plain.output(torch.from_numpy(photos(40, seed=3)))]
    rows = tuple(
        Discriminant(each.mean(0), (np.eye(512) + 0.01 * draw.standard_normal((512, 512))).astype(np.float32),
                     draw.standard_normal((4, 512)).astype(np.float32) / 30)
        for each in seen
    )  # fmt: skip
    calibration = Calibration(score=DISCRIMINANT, slope=5.0, threshold=-0.25, discriminants=rows)
    settings = dataclasses.replace(SETTINGS, reject=request.param)
    return DeployGraph(members, settings=settings, weights=[0.7, 0.3], calibration=calibration).eval()


@pytest.fixture(scope="module")
def path(graph: DeployGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(graph, tmp_path_factory.mktemp("graph") / "model.onnx", CLASSES)


def known(file: Path, asked: NDArray[np.uint8]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = answers(file, asked)[2][:, 0]
    return found


def test_the_file_knows_as_the_module(graph: DeployGraph, path: Path) -> None:
    found = parity.measure_parity(graph, path, photos(9, seed=2))
    parity.require_parity(found)
    assert known(path, photos(9, seed=2)).std() > 0.001
    layers = read_graph(path).discriminants
    for layer, module in zip(layers, graph.known.discriminants, strict=True):
        np.testing.assert_array_equal(layer.rows, module.rows.weight.detach().numpy())


def test_an_enrolled_product_has_a_row_that_knows_it(graph: DeployGraph, path: Path, tmp_path: Path) -> None:
    own, asked = photos(3, seed=1), photos(9, seed=2)
    enrol(path, own, label=LABEL, sha256=["a", "b", "c"], out=tmp_path / "more.onnx")
    before, after = read_graph(path), read_graph(tmp_path / "more.onnx")
    whitened = embeddings(path, own)[2:]
    for old, new, seen in zip(before.discriminants, after.discriminants, whitened, strict=True):
        assert seen.shape == (3, 1, 512)
        row, bias = new_mean(old.rows, seen)
        np.testing.assert_allclose(new.rows[-1], row, atol=1e-6)
        assert new.bias[-1] == pytest.approx(bias, abs=1e-6)
        np.testing.assert_allclose(new.bias[:-1], own_bias(old.rows), atol=1e-6)
        assert np.linalg.norm(row) == pytest.approx(np.linalg.norm(old.rows, axis=1).mean())
    assert (known(tmp_path / "more.onnx", own) > known(path, own)).all()
    assert agreement(tmp_path / "more.onnx", path, label=LABEL, photos=asked).known < 1e-6
    enrol(tmp_path / "more.onnx", photos(2, seed=7), label="garlic", sha256=["d", "e"], out=tmp_path / "two.onnx")
    withdraw(tmp_path / "two.onnx", label="garlic", out=tmp_path / "one.onnx")
    withdraw(tmp_path / "one.onnx", label=LABEL, out=tmp_path / "back.onnx")
    for one, other in zip(answers(path, asked), answers(tmp_path / "back.onnx", asked), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_is_cut_before_its_classifiers(path: Path) -> None:
    """A product's effect on accuracy is measured on the inputs of the classifiers, whatever `known` needs."""
    whole = read_graph(path)
    cut_to_classifiers(whole)
    assert {each.name for each in whole.model.graph.input} == {each.source for each in whole.classifiers}
