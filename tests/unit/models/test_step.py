"""A step in parts, out of memory, with a loss that is not finite; a training that is asked to stop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import models.training.epochs
import models.training.train
from models.errors import BatchError, ConfigError
from models.recipe.config import Loss, Recipe, to_dict
from models.training import checkpoint
from models.training.checkpoint import Writer
from models.training.saving import EXIT_CODE, stop_requested
from models.training.step import Losses, most_parts, parts_of, take_step
from models.training.watch import EVERY, LossWatch
from tests.recording_loss import RECIPE, train, training_job

PLAIN = dataclasses.replace(RECIPE, loss=Loss(name="gce"), train=dataclasses.replace(RECIPE.train, l1=1e-3))


def weights(out: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(out / "network.pt")["state"]
    return state


def assert_same(found: Path, expected: Path) -> None:
    for key, value in weights(expected).items():
        torch.testing.assert_close(weights(found)[key], value, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = training_job(data, tmp_path_factory.mktemp("whole"), PLAIN)
    train(job)
    return job.out


def test_parts_of_a_batch_give_what_the_batch_gives(data: Path, whole: Path, tmp_path: Path) -> None:
    train(training_job(data, tmp_path, PLAIN, micro_batch=3))
    assert_same(tmp_path, whole)


def test_a_batch_is_cut_into_parts_of_two_photos_at_least() -> None:
    assert [len(range(7)[part]) for part in parts_of(7, most_parts(99, 7))] == [3, 2, 2]
    assert most_parts(2, 1) == 1


def lacking_memory(monkeypatch: pytest.MonkeyPatch, *, photos: int) -> list[int]:
    """Makes the network run out of memory with more photos than these at a time; returns the numbers that it was given."""
    seen: list[int] = []

    def step(state: Any, *args: Any, **named: Any) -> torch.Tensor:
        def refuse(_: Any, given: Any) -> None:
            seen.append(len(given[0]))
            if len(given[0]) > photos:
                raise torch.OutOfMemoryError("CUDA out of memory")

        with state.network.register_forward_pre_hook(refuse):
            return take_step(state, *args, **named)

    monkeypatch.setattr(models.training.epochs, "take_step", step)
    return seen


def test_a_device_without_memory_gets_smaller_parts(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = lacking_memory(monkeypatch, photos=3)
    train(training_job(data, tmp_path, PLAIN))
    assert seen[:5] == [7, 4, 3, 2, 2], "the first batch is refused twice"
    assert max(seen[5:]) <= 3, "later batches are not tried whole again"
    assert "out of memory on cpu: batches pass through the network in 3 parts from now on" in caplog.text
    assert_same(tmp_path, whole)


def refusing_a_part(monkeypatch: pytest.MonkeyPatch, *, backward: bool) -> None:
    """Makes the second part of the first step run out of memory after its losses, or in its backward pass."""
    passes = itertools.count(1)

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def after(_: Any, __: Any, losses: Losses) -> None:
        is_second = next(passes) == 2
        if is_second and backward:
            losses.values.register_hook(refuse)
        elif is_second:
            refuse()

    def step(state: Any, *args: Any, **named: Any) -> torch.Tensor:
        with state.learner.register_forward_hook(after):
            return take_step(state, *args, **named)

    monkeypatch.setattr(models.training.epochs, "take_step", step)


@pytest.mark.parametrize(
    ("loss", "head_rows", "backward"), [("marvel", 0, False), ("car", 0, True), ("marvel", 2, True)]
)
def test_passes_without_memory_leave_nothing_behind(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, head_rows: int, backward: bool
) -> None:
    """Neither notes of the loss nor batch norm statistics nor another dropout: as if the parts had been that small."""
    (member,) = RECIPE.members
    recipe = dataclasses.replace(
        RECIPE,
        members=(dataclasses.replace(member, args={"drop_rate": 0.3}),),
        loss=Loss(name=loss, params={"start_epoch": 1}),
    )
    outs = []
    for micro_batch in (3, 4):
        job = training_job(data, tmp_path / str(micro_batch), recipe, micro_batch=micro_batch, head_rows=head_rows)
        if micro_batch == 4:
            refusing_a_part(monkeypatch, backward=backward)
        models.training.train.train(job)
        outs.append(job.out)
    small, refused = outs
    torch.testing.assert_close(weights(refused), weights(small), rtol=0, atol=0)
    assert pq.read_table(refused / "samples.parquet").equals(pq.read_table(small / "samples.parquet"))


def test_a_device_without_any_memory_is_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_memory(monkeypatch, photos=0)
    with pytest.raises(
        ConfigError, match=r"train\.micro_batch: cpu has too little memory for . photos of 32 px at a time"
    ):
        train(training_job(data, tmp_path, PLAIN))


def test_photos_whose_loss_is_not_finite_are_named() -> None:
    watch = LossWatch(["a" * 9, "b" * 9, "c" * 9], room=2, device=torch.device("cpu"))
    for _ in range(EVERY - 1):
        watch.add(torch.tensor([1.0, 2.0]), np.array([0, 1]), lr=0.1)
    with pytest.raises(
        BatchError, match=r"the loss is not finite at the learning rate 0\.1 for photo .b+., .c+.; lower train\.lr"
    ):
        watch.add(torch.tensor([torch.nan, torch.inf]), np.array([2, 1]), lr=0.1)
    watch.add(torch.tensor([4.0]), np.array([0]), lr=0.1)
    watch.check()


def test_a_training_that_diverges_ends_and_leaves_a_state_worth_keeping(data: Path, tmp_path: Path) -> None:
    job = training_job(data, tmp_path, PLAIN, lr=1e30, warmup_epochs=0.0, l1=0.0)
    with pytest.raises(BatchError, match="the loss is not finite"):
        train(job)
    if (job.out / "checkpoint.pt").exists():
        saved = checkpoint.load(job.out / "checkpoint.pt")
        assert np.isfinite(saved["total"])


@pytest.mark.faults
def test_sigterm_saves_and_exits(data: Path, whole: Path, tmp_path: Path, recipe: Recipe) -> None:
    """Not killed but asked to stop: the state after the step is on the disk, and the run goes on from there."""
    long = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, epochs=500, checkpoint_minutes=10.0))
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(long)))
    command = [
        sys.executable,
        "-m",
        "models.training.train",
        "--data",
        data,
        "--recipe",
        tmp_path / "recipe.json",
        "--out",
        tmp_path,
    ]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        while not (tmp_path / "metrics.jsonl").exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=30)
    assert running.returncode == EXIT_CODE, said
    saved = checkpoint.load(tmp_path / "checkpoint.pt")
    assert f"stopped by SIGTERM after epoch {saved['epoch']} and {saved['step']} steps of the next" in said


def test_the_former_handler_of_sigterm_returns() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with stop_requested() as is_stopped:
        assert not is_stopped()
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stopped()
    assert signal.getsignal(signal.SIGTERM) is former


def test_checkpoints_are_written_beside_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, save = threading.Event(), checkpoint.save

    def slow(path: Path, content: dict[str, Any]) -> None:
        assert may_write.wait(10)
        save(path, content)

    monkeypatch.setattr(checkpoint, "save", slow)
    weight = torch.ones(3)
    with Writer(tmp_path / "checkpoint.pt") as writer:
        writer.save({"weight": weight, "steps": [1]})
        weight += 1
        assert not (tmp_path / "checkpoint.pt").exists(), "the step goes on before the file is written"
        may_write.set()
    saved = checkpoint.load(tmp_path / "checkpoint.pt")
    assert saved["weight"].tolist() == [1, 1, 1], "as it was when it was saved"
    assert saved["steps"] == [1]


def test_a_checkpoint_that_cannot_be_written_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), Writer(tmp_path / "file" / "checkpoint.pt") as writer:
        writer.save({"step": 1})


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(data: Path, whole: Path, tmp_path: Path) -> None:
    train(training_job(data, tmp_path, PLAIN, compile=True))
    assert_same(tmp_path, whole)


def test_timms_optimisers_learn(data: Path, whole: Path, tmp_path: Path) -> None:
    train(training_job(data, tmp_path, PLAIN, optimizer="lamb"))
    with pytest.raises(AssertionError, match="not close"):
        assert_same(tmp_path, whole)


def test_an_unknown_optimiser_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer: timm has no 'lam' \(did you mean 'lamb'\?\)"):
        train(training_job(data, tmp_path, PLAIN, optimizer="lam"))
