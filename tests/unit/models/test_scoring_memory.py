"""Scoring passes at 50,030 classes take no more memory for many batches than for a few."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from flows.run.launch import KEEP_MEMORY
from models.networks.results import collect

ROOT = Path(__file__).parents[3]
FEW, MANY = 2, 20
MOST_MB = 115  # of growth from few to many batches; a buffer of 64 x 50,030 logits for each would be 231 MB


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    command = [sys.executable, "-m", "tests.scoring", str(FEW), str(MANY)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | KEEP_MEMORY, capture_output=True, text=True, check=True)
    growth = json.loads(done.stdout)
    assert len(growth) == 5
    assert max(growth.values()) < MOST_MB, growth


def test_parts_are_collected_in_order() -> None:
    parts = (torch.full((number, 2), float(number)) for number in (1, 2))
    assert collect(parts, torch.empty(3, 2)).tolist() == [[1, 1], [2, 2], [2, 2]]
    assert collect((), torch.empty(0, 2)).shape == (0, 2)
