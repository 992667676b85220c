"""Work of the steps after training, counted in products: it does not grow with what only their result depends on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from models.decisions import fold_embeddings
from models.evaluation.scores import Scores
from models.recipe.config import Balance
from models.training import classifiers
from models.training.classifiers import Change, class_means, hits, hits_of_changes, prior_bias, tau_factors
from models.training.decoupling import Embedded, choose_option, options

CLASSES, WIDTH, PHOTOS = 40, 16, 600
WEIGHT = (
    torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.3, 3, CLASSES)[:, None]
)
TARGET: NDArray[np.int64] = np.arange(PHOTOS) % CLASSES
EMBEDDING = WEIGHT[TARGET] + torch.randn(PHOTOS, WIDTH, generator=torch.Generator().manual_seed(1))
COUNTS: NDArray[np.int64] = np.arange(CLASSES)
ALL_LOGITS = 2 * PHOTOS * CLASSES * WIDTH  # operations of one product of all photos with all classes


def flops(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def no_means() -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("this method has no use for class means")


@pytest.mark.parametrize("method", ["tau", "logit_adjustment"])
def test_all_strengths_of_a_method_are_tried_on_the_same_logits(method: str) -> None:
    known, validation = Embedded(EMBEDDING[:0], TARGET[:0]), Embedded(EMBEDDING, TARGET)

    def work() -> None:
        candidates = options(method, WEIGHT, known, means=no_means, counts=COUNTS, settings=Balance(), seed=0)
        choose_option(method, candidates, validation, counts=COUNTS, seed=0)

    assert flops(work) == 2 * ALL_LOGITS, "once for all strengths, and once for the figures of the chosen one"


@pytest.mark.parametrize("tau", [0.0, 0.7, 2.0])
def test_changed_logits_are_those_of_the_changed_classifier(tau: float) -> None:
    bias = prior_bias(COUNTS, 0.8)
    changes = [Change(), Change(tau_factors(WEIGHT, tau)), Change(None, bias), Change(tau_factors(WEIGHT, tau), bias)]
    rows = classifiers.tau_normalise(WEIGHT, tau)
    expected = [hits(weight, added, EMBEDDING, TARGET) for added in (None, bias) for weight in (WEIGHT, rows)]
    found = hits_of_changes(WEIGHT, changes, EMBEDDING, TARGET)
    assert np.array_equal(found[[0, 1, 2, 3]], np.stack(expected))
    assert found.any()
    assert not found.all()


def test_a_temperature_of_class_means_is_fitted_to_a_part_of_many_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, bias = class_means(EMBEDDING, TARGET, num_classes=CLASSES)
    monkeypatch.setattr(classifiers, "FITTED", PHOTOS // 4)
    assert flops(lambda: class_means(EMBEDDING, TARGET, num_classes=CLASSES)) < 0.3 * ALL_LOGITS
    few, few_bias = class_means(EMBEDDING, TARGET, num_classes=CLASSES)
    scale = float(few.norm() / rows.norm())
    torch.testing.assert_close(few, scale * rows)
    torch.testing.assert_close(few_bias, scale * bias)
    assert 0.6 < scale < 1.6


def test_embeddings_of_folds_keep_their_precision() -> None:
    ids = np.array(["a", "b", "c", "d"])
    parts = [scores_of(ids[[0, 2]]), scores_of(ids[[1, 3]])]
    halves = [np.full((2, 3), number, np.float16) for number in (1, 2)]
    found = fold_embeddings(halves, parts, scores_of(ids), shared=False)
    assert found.embeddings.dtype == np.float16
    assert found.embeddings[np.arange(4)][:, 0].tolist() == [1, 2, 1, 2]
    assert found.fold.tolist() == [0, 1, 0, 1]


def scores_of(ids: NDArray[np.str_]) -> Scores:
    none = np.zeros((len(ids), 1))
    return Scores(
        ids,
        np.zeros(len(ids), np.int64),
        np.zeros(len(ids), np.float32),
        none.astype(np.int64),
        none.astype(np.float32),
    )


def test_sums_of_classes_do_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = class_means(EMBEDDING, TARGET, num_classes=CLASSES)
    monkeypatch.setattr(classifiers, "ROWS", 7)
    torch.testing.assert_close(class_means(EMBEDDING, TARGET, num_classes=CLASSES)[0], whole)
