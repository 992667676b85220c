"""Class weights, photo weights, label confidence and HAR: against slow formulas, and in a real training."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional

from models.data.manifest import Manifest, read_manifest, write_labels
from models.errors import ConfigError
from models.recipe.config import Clean, Recipe, Train, from_dict
from models.training.check import check
from models.training.job import Job
from models.training.sample_weights import (
    class_weights,
    error_rates,
    har_weights,
    jacobian_norm,
    make_sample_weights,
    photo_weights,
)
from models.training.train import train


def test_class_weights_are_one_over_the_effective_number() -> None:
    """Cui et al., CVPR 2019: E_n = 1 + beta + ... + beta^(n - 1), the sum itself."""
    counts = np.array([1, 3, 40, 0])
    effective = [sum(0.9**i for i in range(max(n, 1))) for n in counts]
    assert class_weights(counts, kind="effective", beta=0.9) == pytest.approx(1 / np.array(effective))
    assert class_weights(counts, kind="inverse", beta=0.9) == pytest.approx([1, 1 / 3, 1 / 40, 1])
    assert class_weights(counts, kind="", beta=0.9).tolist() == [1, 1, 1, 1]
    assert class_weights(counts, kind="effective", beta=1 - 1e-9) == pytest.approx([1, 1 / 3, 1 / 40, 1], rel=1e-6)


def test_the_gradient_by_the_embedding_is_autograds() -> None:
    draw = torch.Generator().manual_seed(1)
    classifier = torch.randn(7, 5, generator=draw, dtype=torch.float32)
    embedding = torch.randn(20, 5, generator=draw).requires_grad_()
    target = torch.randint(7, (20,), generator=draw)
    logits = embedding @ classifier.T
    (slow,) = torch.autograd.grad(
        functional.cross_entropy(logits, target, reduction="sum"), embedding, retain_graph=True
    )
    torch.testing.assert_close(jacobian_norm(logits, target, classifier), slow.norm(dim=1))
    sure = torch.tensor([[100.0, 0.0]], requires_grad=True)
    jacobian_norm(sure, torch.tensor([0]), torch.eye(2)).sum().backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all(), "also where nothing is left to learn"


def test_har_weights_rise_with_errors_and_fall_with_photos() -> None:
    weights = har_weights(np.array([100, 10, 10]), np.array([0.5, 0.5, 0.1]))
    slow = np.array([0.5**0.6 / 100**0.4, 0.5**0.6 / 10**0.4, 0.1**0.6 / 10**0.4])
    assert weights == pytest.approx(slow / slow.max())
    assert har_weights(np.array([5, 5]), np.zeros(2)).tolist() == [0, 0]


def test_error_rates_are_of_photos_that_were_judged(data: Path) -> None:
    manifest = read_manifest(data)
    assert error_rates(manifest).tolist() == [1, 1, 1, 1], "never scored"
    apples = np.flatnonzero((manifest.split == "train") & (manifest.target == 0))
    score = np.where(manifest.split == "train", np.float32(1), np.nan)
    score[apples[:2]] = 0.4
    label = manifest.label.copy()
    label[apples[0]] = "bean"
    judged = dataclasses.replace(manifest, score=score, label=label)
    assert error_rates(judged) == pytest.approx([2 / len(apples), 0, 0, 0])


@pytest.fixture
def weights(data: Path, tmp_path: Path) -> Path:
    """Weights of three training photos."""
    manifest = read_manifest(data)
    path = tmp_path / "weights.csv"
    ids = manifest.id[manifest.split == "train"][:3]
    path.write_text("id,weight\n" + "".join(f"{photo},{w}\n" for photo, w in zip(ids, (0, 0.5, 4), strict=True)))
    return path


def test_photos_without_a_weight_count_as_one(data: Path, weights: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    rows = np.flatnonzero(manifest.split == "train")
    expected = [0, 0.5, 4, *[1] * (len(rows) - 3)]
    assert photo_weights(weights, manifest.id[rows]).tolist() == expected
    table = pa.table({"id": manifest.id[rows][:3].astype(str), "weight": [0, 0.5, 4]})
    pq.write_table(table, tmp_path / "weights.parquet")
    assert photo_weights(tmp_path / "weights.parquet", manifest.id[rows]).tolist() == expected


def test_weights_multiply_and_their_mean_is_one(data: Path, weights: Path) -> None:
    manifest = read_manifest(data)
    rows = np.flatnonzero(manifest.split == "train")
    made = make_sample_weights(
        Train(class_weights="inverse", photo_weights=str(weights)), manifest, rows, clean=Clean()
    )
    counts = np.bincount(manifest.target[rows])
    slow = np.array([0, 0.5, 4, *[1] * (len(rows) - 3)]) / counts[manifest.target[rows]]
    assert made.weight.numpy() == pytest.approx(slow / slow.mean(), rel=1e-6)
    assert made.har is None
    assert make_sample_weights(Train(), manifest, rows, clean=Clean()).weight.tolist() == [1.0] * len(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,weight\n0,-1\n",
            r"weights\.csv: row 1, field weight: -1\.0 of photo '0' is not a weight; give a number >= 0",
        ),
        ("id,weight\n0,nan\n", r"nan of photo '0' is not a weight"),
        ("id,weight\n0,inf\n", r"inf of photo '0' is not a weight"),
        ("id,weight\n0,heavy\n", r"row 1, field weight: 'heavy' is not a number; correct it"),
        ("id,weight\n0\n", r"row 1 has another number of cells"),
        ("photo,weight\n0,1\n", r"column 'id' is missing; it has photo, weight"),
        ("id,weight,Weight\n0,1,2\n", r"column 'weight' occurs 2 times \('weight', 'Weight'\)"),
        ("id,weight\n0,1\n1,1\n0,2\n", r"row 3, field id: photo '0' has the weight 1\.0 already; keep one row of it"),
        (None, r"train\.photo_weights: .*weights\.csv: no such file"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(
    data: Path, recipe: Recipe, tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "weights.csv"
    if text is not None:
        path.write_text(text)
    changed = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, photo_weights=str(path)))
    with pytest.raises(ConfigError, match=message):
        check(changed, data=data)


def test_all_weights_0_is_refused(data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    (tmp_path / "w.csv").write_text("id,weight\n" + "".join(f"{photo},0\n" for photo in manifest.id))
    with pytest.raises(ConfigError, match="gives every photo the weight 0"):
        make_sample_weights(
            Train(photo_weights=str(tmp_path / "w.csv")), manifest, np.arange(len(manifest)), clean=Clean()
        )


WEIGH = Clean(use="weigh", floor_count=1)


def test_labels_are_weighed_by_their_scores(data: Path) -> None:
    manifest = read_manifest(data)
    rows = np.flatnonzero(manifest.split == "train")
    score = np.where(manifest.split == "train", np.float32(0.9), np.nan)
    score[rows[:5]] = 0.8, 0.2, 0.1, np.nan, 0.0  # and the fifth is relabelled
    decision = manifest.decision.copy()
    decision[rows[4]] = "relabelled"
    judged = dataclasses.replace(manifest, score=score, decision=decision)
    made = make_sample_weights(Train(), judged, rows, clean=WEIGH)
    expected = np.array([0.8, 0.2, 0.1, 1, 1, *[0.9] * (len(rows) - 5)])
    assert made.weight.numpy() == pytest.approx(expected / expected.mean(), rel=1e-5)
    assert make_sample_weights(Train(), judged, rows, clean=Clean()).weight.tolist() == [1.0] * len(rows)
    unscored = make_sample_weights(Train(), manifest, rows, clean=WEIGH)
    assert unscored.weight.tolist() == [1.0] * len(rows)


def test_of_a_class_that_nobody_believes_the_best_still_count(data: Path) -> None:
    manifest = read_manifest(data)
    rows = np.flatnonzero((manifest.split == "train") & (manifest.target == 0))
    score = np.full(len(manifest), 0.01, np.float32)
    made = make_sample_weights(Train(), dataclasses.replace(manifest, score=score), rows, clean=WEIGH)
    weight = np.sort(made.weight.numpy())
    best = -(-3 * len(rows) // 10)  # clean.floor_share
    assert weight[-best:] == pytest.approx(50 * weight[0])
    assert weight[:-best] == pytest.approx(weight[0])


def test_weighed_labels_change_the_training_and_its_name(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    scored = Path(shutil.copytree(data, tmp_path / "scored"))
    manifest = read_manifest(data)
    score = np.linspace(0, 1, len(manifest)).astype(np.float32)
    write_labels(scored, dataclasses.replace(manifest, score=score, scored_by=np.full(len(manifest), "fold", object)))
    weighing = dataclasses.replace(recipe, clean=dataclasses.replace(recipe.clean, use="weigh"))
    keys = {Job(data=scored, recipe=each, member=0, out=tmp_path).key for each in (recipe, weighing)}
    assert len(keys) == 2
    assert figures(scored, recipe, tmp_path / "a") != figures(scored, weighing, tmp_path / "b")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"epoch_length": 31}, r"train\.epoch_length: 31 draws do not fill a batch of train\.batch_size = 32"),
        ({"epoch_length": -1}, r"train\.epoch_length: -1 is outside \[0, inf\]"),
        ({"balanced_epochs": 25}, r"train\.balanced_epochs: 25 is above train\.epochs = 24"),
        ({"best_epochs": 25}, r"train\.best_epochs: 25 is above train\.epochs = 24"),
        ({"best_photos": 0}, r"train\.best_photos: 0 is outside \[1, inf\]"),
        ({"class_beta": 1.0}, r"train\.class_beta: 1\.0 is outside \(0, 1\)"),
        ({"class_weights": "sqrt"}, r"train\.class_weights: 'sqrt' is not one of '', 'inverse', 'effective'"),
        ({"har": 1, "head_rows": 8}, r"train\.har: needs all logits of a batch at a time; set train\.head_rows=0"),
    ],
)
def test_training_keys_out_of_range_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"name": "", "train": table})


def figures(data: Path, recipe: Recipe, out: Path, **keys: Any) -> list[float]:
    """Loss per epoch of a training on frozen features with these keys."""
    out.mkdir()
    settings = dataclasses.replace(recipe.train, backbone_lr_scale=0.0, **keys)
    train(Job(data=data, recipe=dataclasses.replace(recipe, train=settings), member=0, out=out))
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_key_trains_and_changes_the_training(data: Path, recipe: Recipe, weights: Path, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {}, {"progressive": True}, {"balanced_epochs": 1}, {"best_epochs": 1, "best_photos": 1}, {"epoch_length": 16},
        {"class_weights": "inverse"}, {"class_weights": "effective", "class_beta": 0.9}, {"photo_weights": str(weights)},
        {"har": 1.0}, {"class_weights": "inverse", "head_rows": 3},
    ]  # fmt: skip
    losses = [figures(data, recipe, tmp_path / str(i), **keys) for i, keys in enumerate(settings)]
    assert len({tuple(each) for each in losses[:-1]}) == len(settings) - 1
    assert losses[-1] == pytest.approx(losses[5], rel=1e-5), "chunks have the same weights"


def test_a_class_of_one_photo_and_a_class_without_are_weighted(data: Path) -> None:
    manifest: Manifest = read_manifest(data)
    rows = np.flatnonzero((manifest.split == "train") & (manifest.target != 3))
    for kind in ("inverse", "effective"):
        made = make_sample_weights(Train(class_weights=kind, har=1.0), manifest, rows, clean=Clean())  # type: ignore[arg-type]
        assert made.weight.isfinite().all()
        assert made.har is not None
        assert made.har.isfinite().all()
