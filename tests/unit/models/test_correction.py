"""Forward correction: against a slow formula, and its effect on losses, gradients and trainings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.cleaning import Noise, estimate_noise
from models.data.confusion import NAME, read_confusion, write_confusion
from models.data.manifest import read_manifest
from models.errors import ManifestError
from models.losses import LOSSES, build_loss
from models.losses.correction import Correction
from models.recipe.config import Recipe
from models.training.job import Job
from models.training.train import train
from tests.unit.models.clusters import clusters


@pytest.fixture
def noise() -> Noise:
    """Label noise of eight classes with a quarter of the labels wrong."""
    given, _, probs, embeddings = clusters()
    return estimate_noise(given, probs, embeddings)


def never(num_classes: int) -> Noise:
    """Label noise of clean labels."""
    none = np.empty(0, np.int64)
    return Noise(0.0, num_classes, np.ones(num_classes), none, none, np.empty(0), np.zeros(num_classes))


def logits(num_classes: int = 8) -> torch.Tensor:
    return torch.randn(5, num_classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


def test_it_is_the_product_with_the_matrix(noise: Noise) -> None:
    slow = logits().softmax(1) @ torch.from_numpy(noise.matrix())
    found = Correction(noise).double()(logits())
    torch.testing.assert_close(found.exp(), slow, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_gradients_are_those_of_the_product(noise: Noise) -> None:
    target, matrix = torch.arange(5), torch.from_numpy(noise.matrix())
    corrected, reference = logits().requires_grad_(), logits().requires_grad_()
    loss = build_loss("ce", num_classes=8)
    loss.correction = Correction(noise)
    loss(corrected, target).sum().backward()
    torch.nn.functional.nll_loss((reference.softmax(1) @ matrix).log(), target, reduction="sum").backward()
    torch.testing.assert_close(corrected.grad, reference.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["ce", "gce", "nce+agce", "ce+sr", "bi_tempered"])
def test_without_confusion_every_loss_stays_what_it_is(name: str) -> None:
    plain, corrected = build_loss(name, num_classes=8), build_loss(name, num_classes=8)
    corrected.correction = Correction(never(8))
    # The logits are log-probabilities already: some losses take their norm.
    z, target = logits().log_softmax(1), torch.arange(5)
    torch.testing.assert_close(corrected(z, target), plain(z, target))


def test_a_label_that_is_often_given_for_the_prediction_pulls_less() -> None:
    """Three of ten photos of class 0 have the label 1: a network sure of 0 hardly learns from a label 1, but from 2."""
    swapped = dataclasses.replace(never(4), kept=np.array([0.7, 1, 1, 1]), true=np.array([0]), given=np.array([1]),
                                  share=np.array([0.3]))  # fmt: skip
    loss, z = build_loss("ce", num_classes=4), torch.tensor([[5.0, 0, 0, 0]] * 2, requires_grad=True)
    loss.correction = Correction(swapped)
    loss(z, torch.tensor([1, 2])).sum().backward()
    pull = z.grad.norm(dim=1)
    assert pull[0] < 0.05 < 1 < pull[1]


def test_extreme_logits_stay_finite_in_half_precision(noise: Noise) -> None:
    z = torch.tensor([[80.0, -80, 0, 0, 0, 0, 0, 0]], dtype=torch.bfloat16, requires_grad=True)
    loss = build_loss("gce", num_classes=8)
    loss.correction = Correction(noise)
    value = loss(z, torch.tensor([1]))
    value.sum().backward()
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert z.grad.isfinite().all()


def test_a_table_comes_back_in_any_order_of_classes(noise: Noise, tmp_path: Path) -> None:
    names = list("abcdefgh")
    write_confusion(noise, tmp_path, classes=names)
    back = read_confusion(tmp_path, classes=names[::-1])
    assert back.rate == noise.rate
    np.testing.assert_allclose(back.matrix()[::-1, ::-1], noise.matrix())
    with_new = read_confusion(tmp_path, classes=[*names, "new"]).matrix()
    np.testing.assert_allclose(with_new[:8, :8], noise.matrix())
    assert with_new[8].tolist() == [0] * 8 + [1]


def test_no_table_is_no_confusion_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_confusion(tmp_path, classes=["a"]) is None
    (tmp_path / NAME).write_bytes(b"broken")
    with pytest.raises(
        ManifestError, match=r"confusion\.parquet: not a confusion table of classes .*restore the data version"
    ):
        read_confusion(tmp_path, classes=["a"])


def test_half_a_million_pairs_of_fifty_thousand_classes_fit() -> None:
    draw, num = np.random.default_rng(0), 50_030
    true = np.repeat(np.arange(num), 10)
    pairs = Noise(
        0.3,
        num,
        np.full(num, 0.7),
        true,
        (true + draw.integers(1, num, len(true))) % num,
        np.full(len(true), 0.03),
        np.zeros(num),
    )
    found = Correction(pairs)(torch.zeros(2, num, requires_grad=True))
    found.sum().backward()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(LOSSES.components))
def test_every_loss_can_be_corrected(name: str, noise: Noise) -> None:
    loss = build_loss(name, num_classes=8)
    assert loss.correction is None
    loss.correction = Correction(noise)
    assert not any("correction" in key for key in loss.state_dict()), "checkpoints hold trainable parameters only"


def test_trainings_read_the_table_of_their_version_if_the_recipe_says_so(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    version = tmp_path / "version"
    version.mkdir()
    for path in data.rglob("*"):
        if path.is_file():
            copy = version / path.relative_to(data)
            copy.parent.mkdir(exist_ok=True)
            copy.symlink_to(path)
    classes = read_manifest(data).classes
    noise = Noise(0.3, len(classes), np.full(len(classes), 0.7), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0),
                  np.full(len(classes), 0.3 / (len(classes) - 1)))  # fmt: skip
    settings = dataclasses.replace(recipe.train, epochs=1, backbone_lr_scale=0.0)
    recipe = dataclasses.replace(recipe, train=settings)
    correcting = dataclasses.replace(recipe, clean=dataclasses.replace(recipe.clean, correct=True))
    jobs = []
    for name, chosen in (("plain", recipe), ("no table", correcting), ("table", correcting)):
        if name == "table":
            write_confusion(noise, version, classes=classes)
        out = tmp_path / name
        out.mkdir()
        jobs.append(Job(data=version, recipe=chosen, member=0, out=out))
        jobs[-1].key, train(jobs[-1])
    rows = [(job.out / "metrics.jsonl").read_text().split('"photos_per_s"')[0] for job in jobs]
    assert rows[0] == rows[1] != rows[2]
