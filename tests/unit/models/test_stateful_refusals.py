"""Losses with state: what they carry to another data version, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import BatchError, CheckpointMismatch, ConfigError
from models.losses import LOSSES, Samples, build_loss
from models.losses.memory import Counts
from models.losses.stateful import Stateful
from tests.unit.models.stateful import (
    NAMES,
    WIDTH,
    batch,
    begin_loss,
    car_formula,
    marvel_after,
    soft_label,
)


def test_a_soft_label_follows_its_classes_into_another_data_version(tmp_path: Path) -> None:
    logits, target, index, embedding = batch(classes=4)
    loss = begin_loss("car", target.numpy(), classes=4, start_epoch=0, every=1, m=0.5)
    loss.start_epoch(0)
    loss(logits, target, index, embedding)
    loss.end_epoch()
    loss.known.write(tmp_path / "samples.parquet", params={"m": 0.5})
    new = build_loss("car", num_classes=4, width=WIDTH, start_epoch=0)
    assert isinstance(new, Stateful)
    classes = ["new", "class 3", "class 0", "class 1"]  # class 2 is gone
    kept = np.flatnonzero(target.numpy() != 2)
    names = [f"class {y}" for y in target.numpy()[kept]]
    new.begin(Samples(loss.known.id[kept].astype(object), np.array([classes.index(name) for name in names]), classes))
    assert new.known.carry(tmp_path / "samples.parquet") == Counts(len(kept), 0, 12 - len(kept), 0)
    for row, before in enumerate(kept):
        old, now = soft_label(loss, int(before)), soft_label(new, row)
        np.testing.assert_allclose([now[classes.index(f"class {k}")] for k in (0, 1, 3)], [old[k] for k in (0, 1, 3)])
        assert now[0] == pytest.approx(old[2], abs=1e-3), "the share of a removed class goes to the rest"
    n = len(kept)
    value = new(logits[:n], torch.from_numpy(new.known.target), torch.arange(n), embedding[:n])
    expected = [car_formula(logits[row].tolist(), soft_label(new, row), 0.0, lam=10.0, beta=0.0) for row in range(n)]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=2e-3, atol=2e-3)


def test_abandoned_samples_stay_abandoned_within_the_guards_of_the_new_version(tmp_path: Path) -> None:
    loss = marvel_after([[-1.0] * 6 + [1.0] * 4] * 3)
    assert (loss.known["abandoned"] != -1).sum() == 6
    loss.known.write(tmp_path / "samples.parquet")
    fewer = begin_loss("marvel", [0] * 8, classes=2, relative="none", max_share=0.5, n_min=1)
    assert fewer.known.carry(tmp_path / "samples.parquet") == Counts(kept=8, reset=0, dropped=2, new=0)
    fewer.start_epoch(0)
    assert (fewer.known["abandoned"] != -1).tolist() == [True] * 4 + [False] * 4
    assert fewer.weight is not None
    assert fewer.weight.tolist() == [0, 0, 0, 0, 2, 2, 2, 2]


def test_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    marvel_after([[1.0, -1.0]]).known.write(tmp_path / "samples.parquet")
    other = begin_loss("marvel", [0, 0], classes=2, margin="probability", relative="none")
    with pytest.raises(
        CheckpointMismatch, match=r"params\.margin is 'logit', but this training has 'probability'; leave"
    ):
        other.known.carry(tmp_path / "samples.parquet")
    wrong = begin_loss("aum", [0, 0, 0, 0], classes=2)
    with pytest.raises(CheckpointMismatch, match=r"loss is 'marvel', but this training has 'aum'"):
        wrong.known.carry(tmp_path / "samples.parquet")


def test_marvel_plus_continues_from_the_state_of_marvel(tmp_path: Path) -> None:
    marvel_after([[-1.0, 1.0, 1.0]] * 2).known.write(tmp_path / "samples.parquet")
    plus = begin_loss("marvel+", [0, 0, 0], classes=2, relative="none")
    assert plus.known.carry(tmp_path / "samples.parquet").kept == 3
    assert plus.known["run"].tolist() == [2, -2, -2]


@pytest.mark.parametrize("name", NAMES)
def test_before_begin_a_loss_says_what_is_missing(name: str) -> None:
    logits, target, index, embedding = batch()
    params = {"width": WIDTH} if name in ("aum", "car") else {}
    loss = build_loss(name, num_classes=10, **params)
    assert loss.memory is None
    assert loss.figures() == {}  # type: ignore[attr-defined, operator]
    assert loss.needs_index
    loss.load_state_dict(loss.state_dict())  # before `begin`
    with pytest.raises(BatchError, match=r"does not know them yet; call begin\(samples\) first"):
        loss(logits, target, index, embedding)
    with pytest.raises(BatchError, match="index: this loss keeps state per sample"):
        loss(logits, target)
    with pytest.raises(BatchError, match=r"samples: 2 classes, but the loss was built for 10"):
        loss.begin(Samples(np.array(["a"], object), np.array([0]), ["x", "y"]))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("marvel", {"base": "car"}, r"loss\.params\.base: 'car' keeps state itself; choose a loss without"),
        ("marvel", {"base": "cee"}, r"no loss 'cee' \(did you mean 'ce'\?\)"),
        ("marvel", {"base_params": {"q": 0.5}}, r"loss\.params\.q: 'ce' has no such parameter"),
        (
            "marvel",
            {"base_params": {"logit_bias": 0.5}},
            r"base_params: logit_bias is an option of the whole loss; move it",
        ),
        ("marvel", {"gain": 1.0}, r"'marvel' has no such parameter"),
        ("marvel+", {"gain": 0.0}, r"loss\.params\.gain: 0\.0 is outside \(0, inf\]"),
        ("marvel", {"max_share": 1.0}, r"max_share: 1\.0 is outside \[0, 1\)"),
        ("truncated_gce", {"k": 0.0}, r"loss\.params\.k: 0\.0 is outside \(0, 1\)"),
        ("truncated_gce", {"every": 0}, r"loss\.params\.every: 0 is outside"),
        ("car", {"m": 1.0}, r"loss\.params\.m: 1\.0 is outside \[0, 1\)"),
        ("car", {"init_match": "batch"}, r"init_match: this loss supports only \"initial\""),
        ("aum", {"percentile": 101.0}, r"percentile: 101\.0 is outside \[0, 100\]"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(name, num_classes=10, **params)


def test_what_does_not_fit_the_samples_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_min: no class has more than 3 photos.*lower it"):
        begin_loss("aum", [0, 0, 1], classes=2)
    truncated = begin_loss("truncated_gce", [0, 1], classes=2)
    with pytest.raises(BatchError, match=r"log_p: shape \(3,\), but this loss began with 2 samples"):
        truncated.take_answers(torch.zeros(3), accuracy=0.5)
    car = begin_loss("car", [0, 1], classes=2)
    with pytest.raises(BatchError, match=r"embedding: shape \(1, 3\), expected \(N, 4\); set loss\.params\.width"):
        car(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(BatchError, match=r"index: 7 to 7, but this loss began with 2 samples"):
        car(torch.zeros(1, 2), torch.tensor([0]), torch.tensor([7]), torch.zeros(1, 4))


def test_every_stateful_loss_is_tested_here() -> None:
    stateful = [name for name in LOSSES.components if build_loss(name, num_classes=5).needs_index]
    assert sorted(stateful) == NAMES
