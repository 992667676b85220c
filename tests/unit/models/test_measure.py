"""Answers of a graph to the test photos of a data version, and its accuracy."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.data.manifest import Manifest, read_manifest
from models.export import measure
from models.export.__main__ import export
from models.recipe.config import Recipe
from models.training.train import save_network
from tests.unit.models.test_export import SETTINGS, trained

Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


@pytest.fixture(scope="module")
def exported(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of an export."""
    out, member = tmp_path_factory.mktemp("export"), trained(32, seed=1, tau=0.7)
    save_network(out / "0.pt", member.network, member=member.member, classes=member.classes, tau=member.tau)
    export(
        [out / "0.pt"], data=data, recipe=dataclasses.replace(recipe, export=SETTINGS), card={"recipe": "tiny"}, out=out
    )
    return out


def test_answers_of_the_test_photos_are_kept(exported: Path, data: Path) -> None:
    manifest = read_manifest(data)
    answers = np.load(exported / "answers.npz")
    rows = np.flatnonzero(manifest.split == "test")
    assert np.array_equal(answers["target"], manifest.target[rows])
    assert answers["ranked"].shape == (len(rows), 5)
    assert (answers["ranked"][:, 4] == -2).all(), "what pads the answers is never a class"
    assert ((answers["probability"] > 0.25) & (answers["probability"] <= 1)).all(), "the best of four classes"
    right = (answers["ranked"][:, 0] == answers["target"]).mean()
    assert json.loads((exported / "accuracy.json").read_text())["top1"] == pytest.approx(right, abs=1e-6)


Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


def test_an_older_graph_is_measured_by_the_names_of_its_labels(exported: Path, data: Path, variant: Variant) -> None:
    """The newer version lacks apple, has a new first class, and has a class that only exists in test."""
    names = {"apple": "aaa", "bean": "bean", "corn": "corn", "dill": "dill"}

    def renamed(labels: NDArray[np.object_]) -> NDArray[np.object_]:
        return np.array([names[label] for label in labels], dtype=object)

    def newer(manifest: Manifest) -> dict[str, Any]:
        label = renamed(manifest.label)
        label[(manifest.split == "test") & (label == "corn")] = "untrained"
        return {"label": label, "given_label": renamed(manifest.given_label)}

    manifest = read_manifest(variant(newer))
    assert manifest.classes == ["aaa", "bean", "corn", "dill"]
    ranked, _, target = measure.measure(exported / "model.onnx", manifest, measure.test_rows(manifest))
    before = np.load(exported / "answers.npz")["ranked"]
    assert np.array_equal(ranked, np.where(before == 0, -2, before)), (
        "apple is never right, the others keep their names"
    )
    assert set(target) == {0, 1, -1}
    assert not (ranked == -1).any()


@pytest.mark.parametrize("known", [0.0, 0.5, 1.0])
def test_only_photos_without_an_answer_are_asked_about(
    exported: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: float
) -> None:
    manifest, asked, ask = read_manifest(data), list[int](), measure.ask
    monkeypatch.setattr(measure, "ask", lambda graph, manifest, rows: (
        asked.append(len(rows)) or ask(graph, manifest, rows)))  # fmt: skip
    with np.load(exported / "answers.npz") as file:
        num, kept = len(file["photo"]), np.random.default_rng(0).permutation(len(file["photo"]))
        kept = kept[: round(known * num)]
        np.savez(tmp_path / "before.npz", **{name: file[name][kept] for name in file.files})
    measure.write_answers(exported / "model.onnx", manifest, tmp_path, before=tmp_path / "before.npz")
    assert asked == [num - len(kept)]
    before, after = (np.load(folder / "answers.npz") for folder in (exported, tmp_path))
    for name in ("photo", "ids", "ranked", "target"):
        np.testing.assert_array_equal(after[name], before[name])
    np.testing.assert_allclose(after["probability"], before["probability"], atol=1e-6)
    assert (tmp_path / "accuracy.json").read_bytes() == (exported / "accuracy.json").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"before.npz", "answers.npz", "accuracy.json"}


def test_a_version_without_test_photos_has_no_accuracy(exported: Path, variant: Variant, tmp_path: Path) -> None:
    manifest = read_manifest(variant(lambda m: {"split": np.full(len(m), "train", object)}))
    assert set(measure.write_answers(exported / "model.onnx", manifest, tmp_path).values()) == {None}
