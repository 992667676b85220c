"""Benchmarks of long tails and of techniques: their data, and that they run."""

from __future__ import annotations

import json
from pathlib import Path

import long_tail
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import techniques
import torch
from PIL import Image
from safetensors.torch import save_file
from tail.sets import drawn_set, read_set

from models.errors import ManifestError
from models.networks.network import build_network
from models.recipe.config import Member


def test_drawn_clusters_are_a_long_tail_with_wrong_labels_and_the_same_every_time() -> None:
    photos, again = drawn_set(), drawn_set()
    assert torch.equal(photos.views, again.views)
    counts = np.bincount(photos.true[photos.rows("train")])
    assert (counts.max(), counts.min()) == (100, 2)
    assert (np.diff(counts) <= 0).all()
    wrong = photos.target != photos.true
    assert not wrong[photos.split != "train"].any(), "labels of validation and test photos are right"
    assert wrong[photos.split == "train"].mean() == pytest.approx(0.2, abs=0.04)
    assert set((photos.target ^ photos.true)[wrong]) == {1}, "the label of a neighbour"


def test_it_measures_every_method_and_prints_the_figures_of_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {name: long_tail.TRAININGS[name] for name in (long_tail.PLAIN, "progressive=true", "har=1")}
    monkeypatch.setattr(long_tail, "TRAININGS", kept)
    monkeypatch.setattr(long_tail, "drawn_set", lambda: drawn_set(num_classes=6, imbalance=10, largest=20))
    assert long_tail.main(["--seeds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    assert rows[1:] == [*kept, *long_tail.BALANCINGS]
    figures = [json.loads(line) for line in lines if line.startswith('{"figure"')]
    assert [figure["met"] for figure in figures] == [
        figures[0]["value"] > figures[0]["baseline"],
        figures[1]["value"] >= figures[1]["baseline"] - 0.01,
    ]


def test_techniques_are_chosen_on_validation_photos_and_reported_on_test_photos(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {techniques.PLAIN: [""], "mixup": ["augment.mixup=0.2", "augment.mixup=4"]}
    figures = {0: (0.5, 0.6), 0.2: (0.7, 0.4), 4: (0.6, 0.9)}
    monkeypatch.setattr(techniques, "TECHNIQUES", few)
    monkeypatch.setattr(techniques, "measured", lambda photos, recipe, *, seed: figures[recipe.augment.mixup])
    assert techniques.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| mixup | augment.mixup=0.2 | 70.0 ± 0.0 | 40.0 ± 0.0 |" in lines
    (line,) = [json.loads(line) for line in lines if line.startswith('{"figure"')]
    assert (line["value"], line["baseline"], line["met"]) == (0.4, 0.6, False)


def test_every_setting_of_a_technique_trains_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = drawn_set(num_classes=6, imbalance=10, largest=20)
    monkeypatch.setattr(techniques, "TRAIN", techniques.TRAIN | {"epochs": 15, "batch_size": 32})
    found = {}
    for settings in techniques.TECHNIQUES.values():
        for setting in settings[:: max(len(settings) - 1, 1)]:
            found[setting] = techniques.measured(photos, techniques.recipe("ce", setting), seed=0)
            assert 0.3 < found[setting][0] <= 1, setting
    assert len(set(found.values())) > len(found) / 2, "settings differ"


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """Folder with two photos, a manifest, true labels, and weights of the right network."""
    for name, shade in (("a", 10), ("b", 200)):
        Image.new("RGB", (20, 20), (shade, shade, shade)).save(tmp_path / f"{name}.png")
    pq.write_table(
        pa.table({"path": ["a.png", "b.png"], "label": ["x", "y"], "split": ["train", "test"]}), tmp_path / "m.parquet"
    )
    pq.write_table(pa.table({"path": ["old/a.png"], "label": ["y"]}), tmp_path / "truth.parquet")
    backbone = build_network(Member(backbone="mobilenetv2_100"), num_classes=2).backbone
    save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path


def test_photos_become_features_once(delivery: Path) -> None:
    arguments = {"truth": None, "weights": delivery / "weights.safetensors", "cache": delivery / "cache"}
    photos = read_set(delivery, "m", **arguments)
    assert photos.views.shape == (2, 2, 1280)
    assert (photos.target.tolist(), photos.rows("test").tolist(), photos.true) == ([0, 1], [1], None)
    (kept,) = (delivery / "cache").iterdir()
    before = kept.stat().st_mtime_ns
    assert torch.equal(read_set(delivery, "m", **arguments).views, photos.views)
    assert kept.stat().st_mtime_ns == before


def test_a_missing_file_is_named(delivery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"weights": delivery / "weights.safetensors", "cache": delivery / "cache"}
    with pytest.raises(ManifestError, match=r"truth\.parquet knows no label of b\.png and 0 others"):
        read_set(delivery, "m", truth=delivery / "truth.parquet", **arguments)
    assert long_tail.main(["--data", str(delivery), "--manifest", "none"]) == 2
    assert "none.parquet does not exist" in capsys.readouterr().err
    assert long_tail.main(["--data", str(delivery), "--manifest", "m", "--weights", "none"]) == 2
    assert "members.weights: none does not exist" in capsys.readouterr().err
    assert techniques.main(["--data", str(delivery), "--manifest", "none"]) == 2
    assert "none.parquet does not exist" in capsys.readouterr().err
