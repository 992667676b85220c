"""Cleaning looks at photos through every frozen member."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import timm
import torch

from models.recipe.config import Recipe
from models.training.job import Job
from models.training.train import train


def test_folds_leave_the_features_of_every_frozen_member(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(timm.create_model(recipe.members[0].backbone, pretrained=False).state_dict(), file)
    first = dataclasses.replace(recipe.members[0], weights=str(file))
    sizes = [first, dataclasses.replace(first, seed=9), dataclasses.replace(first, size=first.size + 32)]
    learnt = dataclasses.replace(first, size=first.size + 64, train={"backbone_lr_scale": 1.0})
    asking = dataclasses.replace(recipe, members=(*sizes, learnt), train=dataclasses.replace(recipe.train, backbone_lr_scale=0),
                                 clean=dataclasses.replace(recipe.clean, rule="posterior"))  # fmt: skip
    assert asking.other_encoders == [2], "another seed is the same encoder, and a backbone that learns is none"
    (tmp_path / "fold").mkdir()
    train(Job(data=data, recipe=asking, member=0, out=tmp_path / "fold", fold=0, features=tmp_path / "shared"))
    own, other = (np.load(tmp_path / "fold" / name) for name in ("features.npy", "features-1.npy"))
    assert own.shape == other.shape
    assert not np.allclose(own, other)
    assert not (tmp_path / "fold" / "features-2.npy").exists()
