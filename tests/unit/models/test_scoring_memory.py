"""Scoring passes at 50,030 classes take no more memory for many batches than for a few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows.run.launch import KEEP_MEMORY
from models.networks.results import collect

ROOT = Path(__file__).parents[3]
BATCHES = 20
MOST_MB = 80  # of growth from 2 to 20 batches; a buffer of 64 x 50,030 logits for each would be 231 MB


def peak_mb(name: str, *, batches: int) -> int:
    command = [sys.executable, "-m", "tests.scoring", name, str(batches)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | KEEP_MEMORY, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("name", ["score", "answers", "embeddings", "features", "notes"])
def test_memory_does_not_grow_with_the_number_of_batches(name: str) -> None:
    assert peak_mb(name, batches=BATCHES) - peak_mb(name, batches=2) < MOST_MB


def test_parts_are_collected_in_order() -> None:
    parts = (torch.full((number, 2), float(number)) for number in (1, 2))
    assert collect(parts, torch.empty(3, 2)).tolist() == [[1, 1], [2, 2], [2, 2]]
    assert collect((), torch.empty(0, 2)).shape == (0, 2)
