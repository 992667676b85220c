"""A training that is stopped in mid-epoch resumes to the same bits, including the state of its loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models.training.epochs
import models.training.train
from models.errors import ConfigError
from models.evaluation.scores import read_scores
from models.recipe.config import Augment, Loss, Member, Train
from models.training.epochs import num_steps, take_step
from models.training.train_state import Interval, seed_step
from tests.recording_loss import RECIPE, train, training_job


@pytest.fixture(scope="module", params=[1.0, 0.0], ids=["views", "features"])
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    out = tmp_path_factory.mktemp("whole") / str(request.param)
    train(training_job(data, out, backbone_lr_scale=request.param))
    return out


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("photos_per_s", "waiting")} for line in lines]


@pytest.mark.parametrize("steps", [1, 3, 5, 7])
def test_a_training_stopped_in_mid_epoch_resumes_to_the_same_bits(
    data: Path, whole: Path, tmp_path: Path, steps: int
) -> None:
    """An epoch has three steps; the loss takes answers after the first epoch."""
    job = training_job(data, tmp_path / "out", backbone_lr_scale=float(whole.name))
    train(job, halt_after=steps)
    saved = torch.load(job.out / "checkpoint.pt")
    assert (saved["epoch"], saved["step"]) == divmod(steps, 3)
    assert len(saved["loss"]["_extra_state"]["index"]) == 7 * (steps % 3), "what was seen in the epoch so far"
    train(job)
    assert metrics(job.out) == metrics(whole)
    resumed, uninterrupted = (torch.load(out / "network.pt")["state"] for out in (job.out, whole))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    assert np.array_equal(read_scores(job.out / "scores.parquet").probs, read_scores(whole / "scores.parquet").probs)


@pytest.mark.parametrize(
    "loss",
    [
        Loss(name="marvel", params={"start_epoch": 1, "run": 1}),
        Loss(name="truncated_gce", params={"start_epoch": 1, "every": 1}),
        Loss(name="car"),
        Loss(name="aum"),
    ],
    ids=lambda loss: loss.name,
)
def test_every_loss_with_state_resumes_in_mid_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: Loss
) -> None:
    recipe = dataclasses.replace(RECIPE, loss=loss)
    whole, halted = (training_job(data, tmp_path / name, recipe) for name in ("whole", "halted"))
    models.training.train.train(whole)
    steps_left = iter(range(5))

    def step_or_halt(*args: Any, **named: Any) -> torch.Tensor:
        if next(steps_left, None) is None:
            raise KeyboardInterrupt
        return take_step(*args, **named)

    monkeypatch.setattr(models.training.epochs, "take_step", step_or_halt)
    with pytest.raises(KeyboardInterrupt):
        models.training.train.train(halted)
    monkeypatch.undo()
    models.training.train.train(halted)
    assert metrics(halted.out) == metrics(whole.out)
    resumed, uninterrupted = (torch.load(job.out / "network.pt")["state"] for job in (halted, whole))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    assert (halted.out / "samples.parquet").read_bytes() == (whole.out / "samples.parquet").read_bytes()


ARCFACE = Member(backbone="test_resnet", size=32, seed=3, head="arcface", centres=2, margin_rad=0.2)
TECHNIQUES: dict[str, dict[str, Any]] = {
    "sgd in steps": {"train": {"optimizer": "sgd", "lr": 0.05, "schedule": "step", "step_epochs": (1.0, 2.0)}},
    "mixed": {"augment": Augment(mixup=0.5, cutmix=1.0)},
    "views": {"augment": Augment(blur=1.0, hue_deg=40.0, flip_vertical=True, holes=3)},
    "ema": {"train": {"ema": 0.9}, "augment": Augment(mixup=0.5)},
    "soup": {"train": {"soup_epochs": 2}},
    "arcface": {"members": (ARCFACE,)},
    "frozen": {"members": (ARCFACE,), "augment": Augment(mixup=0.5), "train": {"ema": 0.9, "backbone_lr_scale": 0.0}},
}


@pytest.mark.parametrize("halt_in", ["take_step", "update_bn"])
@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_resumes_in_mid_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, halt_in: str
) -> None:
    """Halted after the second step of the second epoch, or after the last step, before the average is applied."""
    keys = dict(TECHNIQUES[name])
    settings = Train(**vars(RECIPE.train) | keys.pop("train", {}))
    if halt_in == "update_bn" and not settings.averages:
        pytest.skip("nothing is averaged")
    recipe = dataclasses.replace(RECIPE, loss=Loss(name="gce"), train=settings, **keys)
    whole, halted, plain = (training_job(data, tmp_path / each, recipe) for each in ("whole", "halted", "plain"))
    models.training.train.train(whole)
    steps_left = iter(range(5 if halt_in == "take_step" else 0))
    go_on = getattr(models.training.epochs, halt_in)

    def proceed_or_halt(*args: Any, **named: Any) -> Any:
        if next(steps_left, None) is None:
            raise KeyboardInterrupt
        return go_on(*args, **named)

    monkeypatch.setattr(models.training.epochs, halt_in, proceed_or_halt)
    with pytest.raises(KeyboardInterrupt):
        models.training.train.train(halted)
    monkeypatch.undo()
    models.training.train.train(halted)
    models.training.train.train(dataclasses.replace(plain, recipe=dataclasses.replace(RECIPE, loss=Loss(name="gce"))))
    assert metrics(halted.out) == metrics(whole.out)
    resumed, uninterrupted, others = (torch.load(job.out / "network.pt")["state"] for job in (halted, whole, plain))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)
    weight = "head.classifier.weight"
    assert not torch.equal(uninterrupted[weight], others[weight]), "the technique changes something"


def test_a_loss_takes_answers_and_its_parameter_is_optimised(whole: Path) -> None:
    lines = metrics(whole)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[0]["kept"] == 1
    assert lines[1]["kept"] != 1, "answers were taken before the second epoch"
    assert len({line["gain"] for line in lines}) == 3, "the loss's parameter is optimised"


def test_pieces_of_a_batch_give_what_the_batch_gives(data: Path, whole: Path, tmp_path: Path) -> None:
    job = training_job(data, tmp_path / "out", backbone_lr_scale=float(whole.name), head_rows=3)
    train(job)
    in_pieces, at_once = (torch.load(out / "network.pt")["state"] for out in (job.out, whole))
    for key in at_once:
        torch.testing.assert_close(in_pieces[key], at_once[key], rtol=0, atol=1e-5)


def test_an_absolute_penalty_shrinks_weights(data: Path, tmp_path: Path) -> None:
    sizes = []
    for l1 in (0.0, 0.1):
        job = training_job(data, tmp_path / str(l1), l1=l1, weight_decay=0.0)
        train(job)
        state = torch.load(job.out / "network.pt")["state"]
        sizes.append(sum(float(state[key].abs().sum()) for key in ("backbone.0.weight", "head.classifier.weight")))
    assert sizes[1] < 0.9 * sizes[0]


def test_every_step_has_randomness_of_its_own() -> None:
    generator = torch.Generator()
    drawn = []
    for numbers in [(3, 0, 0), (3, 0, 1), (3, 1, 0), (4, 0, 0), (3, 0, 0)]:
        seed_step(generator, *numbers)
        drawn.append((float(torch.rand(1, generator=generator)), float(torch.rand(1))))
    assert drawn[0] == drawn[-1]
    assert len(set(sum(drawn, ()))) == 8


def test_an_interval_is_over_again_and_again() -> None:
    now = 0.0
    interval = Interval(0.5, clock=lambda: now)
    over = []
    for now in (29.0, 30.0, 31.0, 59.0, 61.0):  # noqa: B007  # the clock reads it
        over.append(interval.over())
    assert over == [False, True, False, False, True]
    assert Interval(0).over()


def test_a_batch_too_small_for_its_workers_is_refused() -> None:
    assert num_steps(21, Train(batch_size=4), workers=1) == 6
    message = r"train\.batch_size: 4 of 21 photos gives batches of 3, but each of 2 workers needs 2; .*train\.workers"
    with pytest.raises(ConfigError, match=message):
        num_steps(21, Train(batch_size=4), workers=2)
