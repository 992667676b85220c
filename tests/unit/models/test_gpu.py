"""Training and re-balancing on a CUDA device; skipped, and said to be, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import Recipe, to_dict
from models.decoupling import rebalance
from models.job import Job
from models.scores import read_scores
from models.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def test_a_network_is_trained_and_balanced_on_the_gpu(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    trained, balanced = tmp_path / "trained", tmp_path / "balanced"
    for out in (trained, balanced):
        out.mkdir()
    before = torch.cuda.max_memory_allocated()
    train(Job(data=data, recipe=recipe, member=0, out=trained))
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    rebalance(trained / "network.pt", data=data, recipe=tmp_path / "recipe.json", member=0, out=balanced)
    assert torch.cuda.max_memory_allocated() > before
    for out in (trained, balanced):
        assert np.isfinite(read_scores(out / "scores.parquet").probs).all()
