"""The number of trainings that run at a time."""

from __future__ import annotations

import os

import pytest

from flows.run import launch
from flows.run.launch import num_parallel, num_workers


def test_one_training_per_core_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: 0)
    assert num_parallel(0) == os.cpu_count()


def test_one_training_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: 3)
    assert num_parallel(0) == 3
    assert num_parallel(0, workers=num_workers(0)) == 1, "or all of them for one training"
    assert num_workers(2) == 2


def test_a_limit_counts_more_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_num_gpus", lambda: 3)
    assert num_parallel(5) == 5
