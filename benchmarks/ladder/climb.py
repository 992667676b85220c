"""The ladder of one data set and one seed: each rung with its answers on the test photos and its cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tail.sets import FeatureSet
from torch import Tensor

from ladder.shelf import CROPS, SIZES, Shelf
from ladder.steps import Belief, Lesson, asked, balance, judge, learn
from models.evaluation.scores import Scores, mean
from models.networks.network import Head
from models.recipe.config import Balance

BLEND = Balance(method="blend")
GIVEN, UNCLEANED = "cross-entropy on the given labels", "+ blend, without cleaning"
DROPPED, AGAIN, ALSO = "+ cleaning: label issues dropped", "+ a second round", "+ blend, on what is left"
WEIGHED = "weighed and corrected instead of dropped"
CRT, TAU, BEST, RECIPE = "+ cRT", "+ tau", "+ balance.method=best", "+ blend: **the recipe**"
TEN_UNCLEANED = "+ ten crops, without cleaning"
TEN, LARGE, THREE, EIGHT = "+ ten crops", f"+ at {SIZES[1]} px", "+ 3 members", "+ 8 members"
WAYS = {CRT: Balance(method="crt"), TAU: Balance(method="tau"), BEST: Balance(), RECIPE: BLEND}

ENSEMBLES = {1: (LARGE, TEN), 3: (THREE, LARGE), 8: (EIGHT, THREE)}

# Members differ in size, seed, loss, sampler and data version.
MEMBERS: tuple[tuple[int, dict[str, Any]], ...] = (
    (SIZES[1], {}),
    (SIZES[0], {"loss": "gce", "params": {"q": 0.3}}),
    (SIZES[2], {"train": {"sampling_power": 0.5}}),
    (SIZES[2], {"drop": True}),
    (SIZES[0], {"params": {"label_smoothing": 0.1}}),
    (SIZES[1], {"train": {"progressive": True}, "loss": "gce", "params": {"q": 0.3}}),
    (SIZES[1], {"train": {"class_weights": "effective", "class_beta": 0.9}}),
    (SIZES[2], {"params": {"logit_adjustment": 0.5}}),
)


@dataclass(frozen=True)
class Rung:
    """Scores of the test photos; `over`: the rung that it is compared with; seconds: CPU seconds from the photos on."""

    name: str
    over: str
    scores: Scores
    seconds: float


@dataclass
class Bill:
    """CPU seconds by what they were spent on; the shelf counts those of the features."""

    shelf: Shelf
    items: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def item(self, name: str) -> Iterator[None]:
        """Adds the CPU seconds of the block to an item."""
        start = time.process_time()
        yield
        self.items[name] = time.process_time() - start

    def total(self, *names: str, features: Iterable[tuple[int, int]] = ()) -> float:
        """CPU seconds of these items and of these features, by (size, crops); by default those of the first size."""
        used = [*features] or [(self.shelf.sizes[0], 2)]
        return sum(self.items[name] for name in names) + sum(self.shelf.seconds[each] for each in used)


def climb(shelf: Shelf, *, seed: int) -> Iterator[Rung]:
    """Yields all rungs."""
    size = shelf.sizes[0]
    bill, photos = Bill(shelf), shelf.at(size)
    yield from of_labels(photos, bill, seed=seed)
    with bill.item("belief"):
        belief = judge(photos, seed=seed)
    lesson = Lesson(photos=photos, seed=seed, belief=belief)
    with bill.item("training"):
        head = learn(lesson)
    yield Rung(WEIGHED, AGAIN, single(head, photos), bill.total("belief", "training"))
    trained = head.classifier
    for name, settings in WAYS.items():
        head.classifier = trained
        with bill.item(name):
            balance(head, lesson, settings)
        yield Rung(name, WEIGHED, single(head, photos), bill.total("belief", "training", name))
    ten = asked(head, photos, shelf.crops(size))
    features = [(size, 2), (size, CROPS)]
    yield Rung(TEN, RECIPE, ten, bill.total("belief", "training", RECIPE, features=features))
    if shelf.sizes == SIZES:
        yield from of_members(bill, belief, seed=seed)


def of_labels(photos: FeatureSet, bill: Bill, *, seed: int) -> Iterator[Rung]:
    """Yields rungs for the given labels, and after one and two rounds of cleaning with its defaults."""
    lesson = Lesson(photos=photos, seed=seed)
    with bill.item(GIVEN):
        head = learn(lesson)
    yield Rung(GIVEN, GIVEN, single(head, photos), bill.total(GIVEN))
    with bill.item(UNCLEANED):
        balance(head, lesson, BLEND)
    yield Rung(UNCLEANED, GIVEN, single(head, photos), bill.total(GIVEN, UNCLEANED))
    belief: Belief | None = None
    rounds: list[str] = []
    for name, over in ((DROPPED, GIVEN), (AGAIN, DROPPED)):
        rounds.append(f"belief {name}")
        with bill.item(rounds[-1]):
            belief = judge(photos, seed=seed, before=belief)
        lesson = Lesson(photos=photos, seed=seed, belief=belief, drop=True)
        with bill.item(name):
            head = learn(lesson)
        yield Rung(name, over, single(head, photos), bill.total(*rounds, name))
    with bill.item(ALSO):
        balance(head, lesson, BLEND)
    yield Rung(ALSO, AGAIN, single(head, photos), bill.total(*rounds, AGAIN, ALSO))


def of_members(bill: Bill, belief: Belief, *, seed: int) -> Iterator[Rung]:
    """Yields rungs with a larger size, then three members, then eight, all in ten crops.

    Members share the label scores of the first size.
    """
    shelf, answers, features = bill.shelf, list[Scores](), {(SIZES[0], 2)}
    for number, (size, kind) in enumerate(MEMBERS):
        photos, crops = shelf.at(size), shelf.crops(size)
        lesson = Lesson(photos=photos, seed=seed + 100 * number, belief=belief, **kind)
        with bill.item(f"member {number}"):
            head = learn(lesson)
            balance(head, lesson, BLEND)
            answers.append(asked(head, photos, crops))
        features |= {(size, 2), (size, CROPS)}
        if number + 1 in ENSEMBLES:
            spent = bill.total("belief", *(f"member {each}" for each in range(number + 1)), features=features)
            yield Rung(*ENSEMBLES[number + 1], mean(answers), spent)


def ends(shelves: Sequence[Shelf], *, seed: int, crops: bool = False) -> Iterator[Rung]:
    """Yields the ends of the ladder for one head on each camera, averaged: without cleaning and with it; then both in ten crops.

    All cameras together score the labels.
    """
    size = shelves[0].sizes[0]
    photos = [shelf.at(size) for shelf in shelves]
    whole = [each.views[:1, each.rows("test")] for each in photos]
    ten = [shelf.crops(size) for shelf in shelves] if crops else []

    def answers(heads: Sequence[Head], views: Sequence[Tensor]) -> Scores:
        said = [asked(*each) for each in zip(heads, photos, views, strict=True)]
        return mean(said) if len(said) > 1 else said[0]

    for name, belief, after in ((UNCLEANED, None, TEN_UNCLEANED), (RECIPE, judge(*photos, seed=seed), TEN)):
        lessons = [Lesson(photos=each, seed=seed + 100 * number, belief=belief) for number, each in enumerate(photos)]
        heads = [learn(lesson) for lesson in lessons]
        if name == UNCLEANED:
            yield Rung(GIVEN, GIVEN, answers(heads, whole), 0.0)
        for head, lesson in zip(heads, lessons, strict=True):
            balance(head, lesson, BLEND)
        yield Rung(name, GIVEN if name == UNCLEANED else UNCLEANED, answers(heads, whole), 0.0)
        if crops:
            yield Rung(after, name, answers(heads, ten), 0.0)


def single(head: Head, photos: FeatureSet) -> Scores:
    """Answers of one head on one view."""
    return asked(head, photos, photos.views[:1, photos.rows("test")])
