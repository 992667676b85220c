"""The history that rounds of cleaning make, and the rule that ends them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.data.history import Entry, made_by_cleaning, uncleaned
from flows.delivery.build import build_version
from flows.steps.clean import embeddings_of, name_vectors, settled
from models.data.manifest import read_manifest, write_labels
from models.evaluation.scores import Scores, concatenate
from models.recipe.config import Clean, Member, Recipe, Train
from tests.deliveries import deliver


def test_cleaning_starts_from_the_version_before_earlier_cleaning() -> None:
    def entry(version: str, parent: str | None, step: str) -> Entry:
        return Entry(0, version, parent, step, "", "", {}, False)

    history = [
        entry("sample", None, "adopt"),
        entry("delivered", "sample", "ingest"),
        entry("once", "delivered", "clean-1"),
        entry("twice", "once", "clean-2"),
        entry("delivered", "sample", "rollback"),
        entry("once", "delivered", "rollback"),
        entry("more", "twice", "ingest"),
    ]
    assert uncleaned("twice", history) == uncleaned("once", history) == "delivered"
    assert uncleaned("more", history) == "more", "a delivery on top keeps the decisions of before"
    assert uncleaned("sample", history) == "sample"
    assert made_by_cleaning("twice", history) == ["twice", "once", "delivered"]


@pytest.mark.parametrize(
    ("changed", "stop_share", "expected"), [(0, 0.0, True), (1, 0.0, False), (1, 0.11, True), (2, 0.11, False)]
)
def test_a_round_that_changes_little_is_the_last(
    tmp_path: Path, changed: int, stop_share: float, expected: bool
) -> None:
    shares = {"test_share": 0.0, "val_share": 0.0}
    build_version(deliver(tmp_path / "source", {"a": 5, "b": 5}), base=None, out=tmp_path / "before", **shares)  # type: ignore[arg-type]  # passed on
    build_version(tmp_path / "source", base=None, out=tmp_path / "after", **shares)  # type: ignore[arg-type]  # passed on
    manifest = read_manifest(tmp_path / "after")
    decision = np.where(np.arange(10) < changed, "doubted", "").astype(object)
    judged = {"score": np.zeros(10, np.float32), "scored_by": np.full(10, "fold", object), "decision": decision}
    write_labels(tmp_path / "after", dataclasses.replace(manifest, **judged))  # type: ignore[arg-type]  # columns
    assert settled(tmp_path / "before", tmp_path / "after", stop_share=stop_share) is expected


def test_photos_are_compared_by_shared_features_if_all_folds_left_them(tmp_path: Path) -> None:
    ids = np.array(["a", "b", "c"])
    parts = [
        Scores(ids[rows], np.zeros(len(rows), np.int64), np.ones(len(rows), np.float32), np.zeros((len(rows), 1), np.int64),
               np.ones((len(rows), 1), np.float32)) for rows in ([0, 2], [1])
    ]  # fmt: skip
    folders = [tmp_path / "0", tmp_path / "1"]
    for number, (folder, part) in enumerate(zip(folders, parts, strict=True)):
        folder.mkdir()
        np.save(folder / "embeddings.npy", np.full((len(part), 2), number, np.float16))
    own = embeddings_of(folders, parts, concatenate(parts))
    assert (own.embeddings[:][:, 0].tolist(), own.fold.tolist()) == ([0, 1, 0], [0, 1, 0])
    np.save(folders[0] / "features.npy", np.ones((2, 3), np.float16))
    assert embeddings_of(folders, parts, concatenate(parts)).fold.tolist() == [0, 1, 0], "one of two is not enough"
    np.save(folders[1] / "features.npy", np.ones((1, 3), np.float16))
    shared = embeddings_of(folders, parts, concatenate(parts))
    assert (shared.embeddings.shape, shared.fold.tolist()) == ((3, 3), [0, 0, 0])
    for number, (folder, part) in enumerate(zip(folders, parts, strict=True)):
        np.save(folder / "features-1.npy", np.full((len(part), 4), number, np.float16))
    assert [each[:].tolist() for each in embeddings_of(folders, parts, concatenate(parts)).more] == [
        [[0] * 4, [1] * 4, [0] * 4]
    ]


def test_each_encoder_gets_its_vectors_of_names_and_those_that_lack_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "names.parquet"
    pq.write_table(pa.table({"class": ["tea"], "vector": [[1.0, 2.0]]}), file)
    named = Member(weights="pretrained", name_vectors=str(file))
    recipe = Recipe(name="x", members=(dataclasses.replace(named, size=128, name_vectors=""), named),
                    train=Train(backbone_lr_scale=0.0), clean=Clean(rule="posterior"))  # fmt: skip
    with caplog.at_level(logging.INFO, "cleanshelf"):
        none, vectors = name_vectors(recipe, ["milk", "soap", "tea"])
    assert none is None
    assert vectors is not None
    assert vectors.tolist() == [[0, 0], [0, 0], [1, 2]]
    assert [line.rpartition("/")[2] for line in caplog.messages] == [
        "names.parquet: 2 of 3 classes have no vector, first milk; names say nothing about these"
    ]
