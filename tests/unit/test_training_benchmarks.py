"""Benchmarks of the speed of trainings: their photos, their ratios, and that they run."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import distil
import noise_gap
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import train_loader
import train_loop
import train_timm
import train_workers
from pace.data import drawn_jpeg, write_data, write_folder
from pace.rounds import ratios, spread, told
from pace.trainings import Written, read_epochs, recipe_of
from PIL import Image

from durable import replacing
from flows.delivery.rows import read_delivery
from flows.run.launch import KEEP_MEMORY
from models.data.manifest import UNLABELLED, read_manifest
from models.errors import ConfigError
from models.recipe.config import RECIPES, load_recipe
from tests.deliveries import deliver

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = [drawn_jpeg(seed, width=40, height=30) for seed in range(3)]
LABELS = [f"class {row % 2}" for row in range(7)]


def test_a_drawn_photo_is_as_large_as_one_of_a_shop() -> None:
    photo = drawn_jpeg(0)
    assert photo == drawn_jpeg(0)
    assert photo != drawn_jpeg(1)
    assert Image.open(io.BytesIO(photo)).size == (500, 400)
    assert 30_000 < len(photo) < 80_000


def test_rows_of_a_data_version_share_the_bytes_of_a_few_photos(tmp_path: Path) -> None:
    given = ["class 1", *LABELS[1:]]
    data = write_data(tmp_path, PHOTOS, LABELS, ["train"] * 5 + ["val", "test"], given=given)
    manifest = read_manifest(data)
    assert [manifest.read_photo(row) for row in range(7)] == [PHOTOS[row % 3] for row in range(7)]
    assert manifest.label.tolist() == LABELS
    assert manifest.given_label.tolist() == given
    assert manifest.split.tolist() == ["train"] * 5 + ["val", "test"]
    assert manifest.kept.all()


def test_a_folder_per_class_has_the_same_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "jpegs", PHOTOS, LABELS)
    files = {int(file.stem): file for file in folder.glob("*/*.jpg")}
    assert [files[row].parent.name for row in range(7)] == LABELS
    assert [files[row].read_bytes() for row in range(7)] == [PHOTOS[row % 3] for row in range(7)]


def test_a_share_of_each_class_loses_its_label_and_nothing_else_changes(tmp_path: Path) -> None:
    source = deliver(tmp_path / "stock", {"apple": 10, "bean": 5})
    lines = [(str(file.relative_to(source)), file.parent.name) for file in sorted(source.glob("*/*"))]
    rows = [{"path": path, "label": label, "split": "val" if "photo 0" in path else "train"} for path, label in lines]
    (source / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled, bare = distil.halves(source, 0.4, folder=tmp_path)
    left, gone = read_delivery(labelled).rows.to_pylist(), read_delivery(bare, unlabelled=True).rows.to_pylist()
    assert [{name: row[name] for name in ("path", "label", "split")} for row in left] == [
        row for row in rows if row["path"] in {each["path"] for each in left}
    ]
    assert Counter(row["path"].split("/")[0] for row in gone) == {"apple": 3, "bean": 2}  # of 9 and 5 train photos
    assert {row["path"] for row in rows} == {row["path"] for row in (*left, *gone)}
    assert {(row["label"], row["split"]) for row in gone} == {("", UNLABELLED)}


def test_the_recovered_share_is_of_what_wrong_labels_cost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[tuple[str, bool]] = []

    def retrained(workspace: str, recipe: list[str], keys: tuple[str, ...]) -> dict[str, object]:
        asked.append((workspace, noise_gap.OFF in keys))
        return {"steps": [{"mean_class": 0.1}, {"mean_class": {1: 0.8, 2: 0.4, 3: 0.7}[len(asked)]}]}

    shops: dict[str, list[dict[str, object]]] = {}

    def shop(root: Path, source: Path) -> str:
        shops.setdefault(root.name, read_delivery(source).rows.to_pylist())
        return root.name

    monkeypatch.setattr(noise_gap, "retrained", retrained)
    monkeypatch.setattr(noise_gap, "shop", shop)
    noise_gap.main(["--workspace", str(tmp_path)])
    assert asked == [("right", True), ("wrong", True), ("wrong", False)]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["value"] == 75
    assert [row["path"] for row in shops["right"]] == [row["path"] for row in shops["wrong"]]
    differ = [one["split"] for one, other in zip(*shops.values(), strict=True) if one["label"] != other["label"]]
    assert 0.15 < len(differ) / len([row for row in shops["right"] if row["split"] != "test"]) < 0.35
    assert "test" not in differ


def test_a_manifest_is_delivered_with_its_labels_and_with_the_true_ones(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    given = {"path": ["images/a.jpg", "images/b.jpg", "images/c.jpg"], "label": ["x", "x", "x"], "split": ["train"] * 3}
    true = {"path": ["../b.jpg", "../a.jpg"], "label": ["y", "x"], "split": ["train"] * 2}
    pq.write_table(pa.table(given), shop / "m.parquet")
    pq.write_table(pa.table(true), tmp_path / "t.parquet")
    args = argparse.Namespace(data=shop, manifest="m", truth=tmp_path / "t.parquet", photos=tmp_path / "large")
    right, wrong = noise_gap.planted(args)
    assert [(row["path"].name, row["label"]) for row in right] == [("a.jpg", "x"), ("b.jpg", "y")]
    assert [(row["path"], row["label"]) for row in wrong] == [
        (tmp_path / "large" / "images" / f"{name}.jpg", "x") for name in "ab"
    ]


def test_each_of_ours_is_divided_by_those_before_and_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = iter([6.0, 10.0]), iter([1.0, 3.0, 7.0])
    found = ratios(lambda: next(ours), {"theirs": lambda: next(theirs)}, rounds=2)
    assert found == {"theirs": [3.0, 2.0]}
    assert told("speed", found["theirs"]) == 2.5
    assert spread(found["theirs"]) == "rounds: 2.000 to 3.000"
    assert capsys.readouterr().out == "speed, each round: 3.000 2.000\n"


def test_the_first_epoch_does_not_count(tmp_path: Path) -> None:
    lines = [{"photos_per_s": 1.0}, {"photos_per_s": 100.0, "waiting": 0.2}, {"photos_per_s": 50.0, "waiting": 0.4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    epochs = read_epochs(tmp_path)
    assert epochs.photos_per_s == pytest.approx(2 / (1 / 100 + 1 / 50))
    assert epochs.waiting == pytest.approx(0.3)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[0])))
    assert math.isnan(read_epochs(tmp_path).waiting)


def test_every_replacement_of_a_file_is_counted(tmp_path: Path) -> None:
    with Written(tmp_path / "checkpoint.pt", poll_s=0.001) as written:
        for number in range(4):
            with replacing(tmp_path / "checkpoint.pt") as file:
                file.write(bytes(number))
            time.sleep(0.03)
    assert len(written.seen) == 4


def test_settings_override_the_recipe_of_a_benchmark() -> None:
    recipe = recipe_of({"size": 32}, {"epochs": 2}, side=40, settings=["train.threads=3"])
    assert (recipe.members[0].size, recipe.train.epochs, recipe.train.threads) == (32, 2, 3)
    assert (recipe.loss.name, recipe.export.input_size) == ("ce", 40)
    with pytest.raises(ConfigError, match="thread"):
        recipe_of({}, {}, side=40, settings=["train.thread=3"])


def test_a_training_of_the_benchmark_draws_each_photo_once() -> None:
    for case in (*train_loop.CASES["cpu"], *train_loop.CASES["cuda"]):
        train = case.recipe(5, checkpoint_s=3.0).train
        assert train.epoch_length == 5 * case.batch
        assert train.epochs == train_loop.EPOCHS
        assert train.checkpoint_minutes == pytest.approx(0.05)


def test_the_default_is_every_device() -> None:
    assert train_loop.parse([]).device is None
    assert train_timm.parse(["--device", "cpu", "--set", "train.threads=2"]).set == ["train.threads=2"]
    with pytest.raises(SystemExit):
        train_loop.parse(["--device", "tpu"])
    assert set(train_loop.CASES) == set(train_timm.CASES) == {"cpu", "cuda"}


def test_a_fifth_of_the_drawn_shapes_is_labelled_wrong(tmp_path: Path) -> None:
    manifest = read_manifest(train_workers.shapes(tmp_path, num_train=60))
    classes = train_workers.drawn_set(num_train=6, num_test=6).classes
    is_wrong = manifest.label[:60] != np.array([classes[row % 6] for row in range(60)])
    assert is_wrong.mean() == pytest.approx(train_workers.WRONG, abs=0.05)
    assert manifest.split.tolist() == ["train"] * 60 + ["val"] * 30


def test_noise_of_a_difference_falls_with_the_number_of_photos() -> None:
    assert train_workers.noise(0.5, 200) == pytest.approx(0.1)
    assert train_workers.noise(1.0, 200) == 0


def test_three_backbones_differ_from_tuned_in_backbones_alone() -> None:
    three = load_recipe(str(ROOT / "benchmarks" / "recipes" / "three_backbones.toml"))
    tuned = load_recipe(str(RECIPES / "tuned.toml"))
    assert [member.backbone for member in three.members] == [
        "mobilenetv2_100", "tf_efficientnet_lite0", "tf_efficientnet_lite2"]  # fmt: skip
    for key in ("size", "seed", "train", "loss", "head"):
        assert [getattr(member, key) for member in three.members] == [getattr(member, key) for member in tuned.members]
    for table in ("loss", "train", "augment", "clean", "export", "balance", "ensemble", "proof"):
        assert getattr(three, table) == getattr(tuned, table)


@pytest.mark.slow
def test_a_training_ends_after_its_first_steps(tmp_path: Path) -> None:
    data = train_loader.data_version(tmp_path / "data", PHOTOS, num_rows=900)
    found = train_loader.start(900, data)
    assert found["seconds"] > 0
    assert found["loaders_mb"] > 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        pytest.param(
            ("train_loop.py", "--rounds", "1", "--steps", "2"), ["our loop / bare step"], marks=pytest.mark.slow
        ),
        pytest.param(
            ("train_loop.py", "--bf16", "--rounds", "1", "--steps", "1"),
            ["bare step in bfloat16 / in float32"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("train_timm.py", "--rounds", "1", "--steps", "1", "--size", "64"),
            ["our loop / timm's loop, equal precision", "our loop / timm's loop, defaults of both"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("train_workers.py", "--rounds", "1", "--steps", "2", "--photos", "120", "--epochs", "1", "--seeds", "2"),
            ["photos/s per core, 2 processes / 1", "same decision by 2 processes", "accuracy by 2 processes"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_small_run_ends_with_figures(arguments: tuple[str, ...], names: list[str]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / arguments[0]), *arguments[1:]]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    env = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    hidden = {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=env | hidden)
    figures = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    for figure, name in zip(figures, names, strict=False):
        assert figure["figure"].startswith(name)
        assert figure["value"] >= 0
    assert len(figures) >= len(names)
    is_compared_on_a_gpu = arguments[0] != "train_workers.py"
    assert ("\nunmeasured: our loop / " in ended.stdout) == is_compared_on_a_gpu
