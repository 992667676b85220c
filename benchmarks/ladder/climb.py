"""The ladder of one data set and one seed: each rung with its answers on the test photos and its cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tail.sets import FeatureSet

from ladder.shelf import CROPS, SIZES, Shelf
from ladder.steps import Belief, Lesson, asked, balance, judge, learn
from models.evaluation.scores import Scores, mean
from models.networks.network import Head
from models.recipe.config import Balance

BLEND = Balance(method="blend")
GIVEN = "cross-entropy on the given labels"
DROPPED, AGAIN, ALSO = "+ cleaning: label issues dropped", "+ a second round", "+ blend, on what is left"
WEIGHED = "weighed and corrected instead of dropped"
CRT, TAU, BEST, RECIPE = "+ cRT", "+ tau", "+ balance.method=best", "+ blend: **the recipe**"
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

    def total(self, *names: str, features: Iterable[tuple[int, int]] = ((SIZES[0], 2),)) -> float:
        """CPU seconds of these items and of these features, by (size, crops)."""
        return sum(self.items[name] for name in names) + sum(self.shelf.seconds[each] for each in features)


def climb(shelf: Shelf, *, seed: int) -> Iterator[Rung]:
    """Yields all rungs."""
    bill, photos = Bill(shelf), shelf.at(SIZES[0])
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
    ten = asked(head, photos, shelf.crops(SIZES[0]))
    features = [(SIZES[0], 2), (SIZES[0], CROPS)]
    yield Rung(TEN, RECIPE, ten, bill.total("belief", "training", RECIPE, features=features))
    yield from of_members(bill, belief, seed=seed)


def of_labels(photos: FeatureSet, bill: Bill, *, seed: int) -> Iterator[Rung]:
    """Yields rungs for the given labels, and after one and two rounds of cleaning with its defaults."""
    with bill.item(GIVEN):
        head = learn(Lesson(photos=photos, seed=seed))
    yield Rung(GIVEN, GIVEN, single(head, photos), bill.total(GIVEN))
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


def recipe(photos: FeatureSet, *, seed: int) -> Scores:
    """Answers of the recipe alone: one head, one view."""
    lesson = Lesson(photos=photos, seed=seed, belief=judge(photos, seed=seed))
    head = learn(lesson)
    balance(head, lesson, BLEND)
    return single(head, photos)


def given(photos: FeatureSet, *, seed: int) -> Scores:
    """Answers of cross-entropy on the labels as they are."""
    return single(learn(Lesson(photos=photos, seed=seed)), photos)


def single(head: Head, photos: FeatureSet) -> Scores:
    """Answers of one head on one view."""
    return asked(head, photos, photos.views[:1, photos.rows("test")])
