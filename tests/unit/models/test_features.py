"""Answers from kept inputs of the classifiers, compared with answers of the whole graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import EnrolmentError
from models.export import features
from models.export.enrol import enrol, withdraw
from models.export.features import FEATURES, answers_from, in_classes_of, kept_rows, recorded
from models.export.patch import read_graph
from models.export.session import open_session
from tests.unit.models.test_enrol import CLASSES, LABEL, MANY, SIZE, graph_of, write

PHOTOS = np.random.default_rng(5).integers(0, 256, (13, SIZE, SIZE, 3)).astype(np.uint8)


def batches(size: int) -> Iterator[NDArray[np.uint8]]:
    return (PHOTOS[start : start + size] for start in range(0, len(PHOTOS), size))


def asked(graph: Path) -> NDArray[np.int64]:
    """Answers of the whole graph."""
    session = open_session(graph)
    return np.concatenate([session.run(["ids"], {"image": batch})[0] for batch in batches(4)])


@pytest.mark.parametrize(("classes", "crops"), [(CLASSES, 2), (MANY, 10), (CLASSES, 1)])
def test_a_graph_with_other_classes_is_answered_for_without_its_backbones(
    classes: list[str], crops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = write(graph_of(classes, crops=crops), tmp_path / "model.onnx", classes)
    ids = np.concatenate([*recorded(graph, batches(4), np.ones(len(PHOTOS), bool), tmp_path)])
    assert ids.tolist() == asked(graph).tolist()
    enrol(graph, PHOTOS[:2], label=LABEL, sha256=["a"], out=tmp_path / "more.onnx")
    withdraw(tmp_path / "more.onnx", label=classes[1], out=tmp_path / "other.onnx")
    monkeypatch.setattr(features, "LOGITS", 3 * 2 * crops * len(classes))  # a few photos at a time
    for each in (graph, tmp_path / "more.onnx", tmp_path / "other.onnx"):
        assert answers_from(tmp_path, each).tolist() == asked(each).tolist()
    new = in_classes_of([*classes, LABEL], tmp_path / "other.onnx", answers_from(tmp_path, tmp_path / "other.onnx"))
    assert (new[:2, 0] == len(classes)).all(), "the photos that the product was made of"
    assert 1 not in new[:, 0], "the class that was taken out"


def test_only_chosen_photos_are_kept(tmp_path: Path) -> None:
    graph = write(graph_of(CLASSES), tmp_path / "model.onnx", CLASSES)
    kept = np.arange(len(PHOTOS)) % 3 == 1
    list(recorded(graph, batches(5), kept, tmp_path))
    assert answers_from(tmp_path, graph).tolist() == asked(graph)[kept].tolist()
    assert np.load(tmp_path / FEATURES.format(0)).shape == (4, 2, 512)


def test_kept_photos_are_spread_over_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, target = np.arange(100, 160), np.repeat([0, 1, 2], 20)
    assert kept_rows(rows, target).all()
    monkeypatch.setattr(features, "PHOTOS", 6)
    assert np.bincount(target[kept_rows(rows, target)]).tolist() == [2, 2, 2]
    assert kept_rows(rows[:0], target[:0]).tolist() == []


def test_a_ranking_that_needs_the_photo_itself_cannot_be_cut(tmp_path: Path) -> None:
    whole = read_graph(write(graph_of(CLASSES), tmp_path / "model.onnx", CLASSES))
    ranking = next(node for node in whole.model.graph.node if "ids" in node.output)
    ranking.input[0] = "image"
    with pytest.raises(EnrolmentError, match="'image' goes past them"):
        features.cut_to_classifiers(whole)
