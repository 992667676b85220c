"""The benchmark of enrolled products: choice of new classes, and accuracies."""

from __future__ import annotations

import enrol
import numpy as np
import torch
from tail.sets import drawn_set


def test_each_seed_enrols_other_classes_and_none_of_those_that_the_rule_was_tuned_on() -> None:
    photos = drawn_set(imbalance=2, noise=0.0)
    splits = [enrol.split_of(photos, seed=seed) for seed in enrol.SEEDS]
    new = [set(photos.target[split.photos.target >= split.num_old]) for split in splits]
    tuned_on = set(np.random.default_rng(enrol.SPLIT_SEED).permutation(30)[:8])
    assert [len(each) for each in new] == [7, 7, 7]
    assert len(set.union(*new)) == 21
    assert not set.union(*new) & tuned_on
    assert all(len(set(split.photos.target)) == 30 for split in splits)


def test_few_photos_are_the_first_of_many_and_only_training_photos() -> None:
    split = enrol.split_of(drawn_set(imbalance=2, noise=0.0), seed=1)
    product = split.num_old + 2
    many = split.few(product, 10)
    assert split.few(product, 5).tolist() == many[:5].tolist()
    assert set(split.photos.split[many]) == {"train"}
    assert set(split.photos.target[many]) == {product}
    assert set(split.photos.target[split.train(0)]) == set(range(split.num_old))


def test_accuracy_is_given_for_new_and_old_classes_separately() -> None:
    split = enrol.split_of(drawn_set(imbalance=2, noise=0.0), seed=0)
    target = torch.from_numpy(split.photos.target)
    embedding = torch.nn.functional.one_hot(target, 30).float()[:, None] * 9
    eye = torch.eye(30)
    assert enrol.accuracy((eye, torch.zeros(30)), embedding, split) == (1.0, 1.0)
    greedy = torch.cat([torch.zeros(split.num_old), torch.full((1,), 99.0)])
    one = (eye[[*range(split.num_old), split.num_old + 3]], greedy)
    assert enrol.accuracy(one, embedding, split, product=3) == (1.0, 0.0)
