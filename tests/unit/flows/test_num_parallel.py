"""The number of trainings that run at a time."""

from __future__ import annotations

import os

import pytest

from flows.run import gpus, launch
from flows.run.launch import num_parallel, num_workers
from tests.pretend_gpus import pretend


def test_one_training_per_core_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", pretend(0))
    assert num_parallel(0) == os.cpu_count()
    assert num_parallel(5) == 5


def test_one_training_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", pretend(3))
    assert num_parallel(0) == 3
    assert num_parallel(2) == 2
    assert num_parallel(0, workers=num_workers(0)) == 1, "or all of them for one training"
    assert num_workers(2) == 2


def test_no_limit_makes_trainings_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "visible_gpus", pretend(3))
    assert num_parallel(5) == 3


@pytest.mark.parametrize("visible", ["", None])
def test_no_driver_is_asked_where_there_is_none(visible: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_usable", lambda: pytest.fail("asked"))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(gpus, "DRIVERS", ())
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.visible_gpus.__wrapped__() == ()
