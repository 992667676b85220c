"""Facts beside one photo of the review: its label and the suggested one with sample photos, scores, and decisions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flows.review.classes import SAMPLES
from flows.review.decisions import Decisions
from flows.review.filters import Scope
from flows.review.queue import Queue

OTHERS = 4  # further classes of a photo that are shown


@dataclass(frozen=True)
class Side:
    """A class with its number of kept photos and the ids of some of them. probability: the networks' for this photo."""

    label: str
    probability: float | None
    photos: int
    samples: list[str]


@dataclass(frozen=True)
class Event:
    """Decision of a person about the photo. saved: the data version that holds it, if one does."""

    kind: str
    label: str
    who: str
    at: str
    saved: str
    undone: bool


@dataclass(frozen=True)
class Evidence:
    """One photo to decide about.

    rank: its position in the order of its scope, -1 without one. given: the label in question. suggested: the class to take
    instead. others: further likely classes. seen: number of the last decision of anyone. decided: the decision that holds
    and is not saved yet. history: newest first.
    """

    photo: str
    rank: int
    given: Side
    suggested: Side | None
    others: list[Side]
    score: float | None
    decision: str
    split: str
    source: str
    is_kept: bool
    seen: int
    decided: Event | None
    history: list[Event]


def evidence(queue: Queue, decisions: Decisions, rows: Iterable[int], *, scope: Scope, seen: int) -> list[Evidence]:
    """Evidence of several photos, in their order."""
    return [_of(queue, decisions, int(row), scope=scope, seen=seen) for row in rows]


def _of(queue: Queue, decisions: Decisions, row: int, *, scope: Scope, seen: int) -> Evidence:
    photos, found = queue.photos, queue.suggestions
    asked, suggested = int(found.asked[row]), int(found.suggested[row])
    history = _history(decisions, photos.name(row))
    others = [int(code) for code in found.top[row] if code >= 0 and code not in (asked, suggested)][:OTHERS]
    score = float(photos.score[row])
    return Evidence(
        photo=photos.name(row),
        rank=int(queue.ranked[scope].rank[row]),
        given=_side(queue, row, asked, samples=SAMPLES),
        suggested=_side(queue, row, suggested, samples=SAMPLES) if suggested >= 0 else None,
        others=[_side(queue, row, code, samples=1) for code in others],
        score=None if math.isnan(score) else round(score, 4),
        decision=photos.decision[row],
        split=photos.split[row],
        source=photos.source[row],
        is_kept=bool(photos.kept[row]),
        seen=seen,
        decided=next((each for each in history if not each.undone and not each.saved), None),
        history=history,
    )


def _side(queue: Queue, row: int, code: int, *, samples: int) -> Side:
    photos, found = queue.photos, queue.suggestions
    at = np.flatnonzero(found.top[row] == code)
    probability = round(float(found.probs[row, at[0]]), 4) if len(at) else None
    shown = [photos.name(each) for each in queue.products.samples(code) if each != row][:samples]
    return Side(photos.classes[code], probability, len(photos.of_class(code)), shown)


def _history(decisions: Decisions, photo: str) -> list[Event]:
    return [
        Event(each["kind"], each["label"], each["who"], each["at"], each["saved"], bool(each["undone"]))
        for each in decisions.of(photo)
    ]
