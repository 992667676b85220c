"""Review queue of a data version: pages of photos, worst score first, and how far people are. All of it on numpy arrays.

A page starts after a rank, so it stays valid while people decide: ranks depend on the version only.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from flows.review.classes import Classes
from flows.review.decisions import KEEP, KINDS, RELABEL, SKIP, TAKE, Decision, Decisions
from flows.review.filters import SCOPES, WORTH, Filter, Ranked, Scope
from flows.review.photos import Photos
from flows.review.selections import Selections
from flows.review.suggestions import Suggestions

OPEN, DECIDED, SKIPPED = range(3)  # states of a photo
State = Literal["open", "decided", "skipped", "all"]  # "all" stands for any state
STATES: tuple[State, ...] = get_args(State)
BLOCK = 65_536  # ranks that are searched at once for the next photos
GROUPS = 100  # classes and confusions that are listed


@dataclass(frozen=True)
class Progress:
    """Numbers of photos that match a filter: left = total - decided - skipped."""

    total: int
    decided: int
    skipped: int
    left: int


@dataclass(frozen=True)
class Group:
    """A class (suggested is empty) or a confusion, and its photos that match a filter."""

    given: str
    suggested: str
    total: int
    left: int


class Queue:
    """Photos of one version to review, with the decisions on them that are not saved yet. Threads may share it."""

    def __init__(self, photos: Photos, suggestions: Suggestions, selections: Selections) -> None:
        self.photos, self.suggestions, self.products = photos, suggestions, Classes(photos)
        self.state = np.zeros(len(photos), np.int8)
        self.ranked = {scope: Ranked(photos, suggestions, selections, scope=scope) for scope in SCOPES}
        self._states = {scope: np.zeros(len(ranked), np.int8) for scope, ranked in self.ranked.items()}
        self._read, self._lock = (0, 0), threading.Lock()
        self._totals = functools.lru_cache(8)(self._count_groups)

    def refresh(self, decisions: Decisions) -> int:
        """Takes over what was decided since the last call, by this server or another; returns the last decision's number."""
        with self._lock:
            last, pending = read = decisions.state()
            if read == self._read:
                return last
            only_added = last - self._read[0] == pending - self._read[1]
            changed = decisions.pending(after=self._read[0] if only_added else 0)
            if not only_added:
                self._set(np.flatnonzero(self.state), np.int8(OPEN))
            rows = self.photos.rows(list(changed))
            states = np.array([SKIPPED if each.kind == SKIP else DECIDED for each in changed.values()], np.int8)
            self._set(rows[rows >= 0], states[rows >= 0])
            self._read = read
        return last

    @property
    def num_unsaved(self) -> int:
        """Photos of this version with a decision that is not saved yet."""
        return int(np.count_nonzero(self.state == DECIDED))

    def sample(self, code: int) -> str | None:
        """Id of a good photo of a class."""
        rows = self.products.samples(code)
        return self.photos.name(rows[0]) if rows else None

    def page(self, wanted: Filter, state: State, *, after: int = -1, limit: int = 20) -> NDArray[np.int64]:
        """Ranks of the next photos behind rank `after`, at most `limit`."""
        mask, states = self._columns(wanted)
        found: list[NDArray[np.int64]] = []
        for start in range(after + 1, len(mask), BLOCK):
            block = slice(start, start + BLOCK)
            found.append(start + np.flatnonzero(mask[block] & _in_state(states[block], state)))
            if sum(map(len, found)) >= limit:
                break
        return np.concatenate(found)[:limit] if found else np.zeros(0, np.int64)

    def page_before(self, wanted: Filter, state: State, *, before: int, limit: int = 20) -> NDArray[np.int64]:
        """Ranks of the photos just before rank `before`, ascending, at most `limit`."""
        mask, states = self._columns(wanted)
        found: list[NDArray[np.int64]] = []
        for stop in range(min(before, len(mask)), 0, -BLOCK):
            block = slice(max(0, stop - BLOCK), stop)
            found.insert(0, block.start + np.flatnonzero(mask[block] & _in_state(states[block], state)))
            if sum(map(len, found)) >= limit:
                break
        return np.concatenate(found)[-limit:] if found else np.zeros(0, np.int64)

    def matching(self, wanted: Filter, state: State) -> NDArray[np.int64]:
        """Rows of all photos that match."""
        mask, states = self._columns(wanted)
        return self.ranked[wanted.scope].rows[mask & _in_state(states, state)].astype(np.int64)

    def cleanest(self, wanted: Filter, count: int) -> NDArray[np.int64]:
        """Rows of the `count` open photos with the highest scores among those that match, best first."""
        mask, states = self._columns(wanted)
        ranked = self.ranked[wanted.scope]
        fits = np.flatnonzero(mask & (states == OPEN) & ~np.isnan(ranked.score))
        best = (
            np.argsort(-ranked.score[fits], kind="stable")[:count]
            if wanted.scope == WORTH
            else slice(None, -count - 1, -1)
        )
        return ranked.rows[fits[best]].astype(np.int64)

    def progress(self, wanted: Filter) -> Progress:
        """Numbers of photos that match and are decided, skipped and left."""
        mask, states = self._columns(wanted)
        total, decided, skipped = (
            int(np.count_nonzero(each)) for each in (mask, mask & (states == DECIDED), mask & (states == SKIPPED))
        )
        return Progress(total, decided, skipped, total - decided - skipped)

    def classes(self, wanted: Filter) -> list[Group]:
        """The classes with most photos left among those that match."""
        names = self.photos.classes
        return [Group(names[code], "", *numbers) for code, *numbers in self._groups(wanted, "given")]

    def confusions(self, wanted: Filter) -> list[Group]:
        """The confusions with most photos left among those that match."""
        pairs, names = self.ranked[wanted.scope].confusions[0], self.photos.classes
        found = self._groups(wanted, "confusion")
        return [Group(names[pairs[code, 0]], names[pairs[code, 1]], *numbers) for code, *numbers in found]

    def _groups(self, wanted: Filter, by: str) -> list[tuple[int, int, int]]:
        """Code, photos and photos left of the groups with most photos left."""
        totals = self._totals(wanted, by)
        mask, states = self._columns(wanted)
        done = np.flatnonzero(mask & (states != OPEN))
        codes = self._codes(wanted.scope, by)[done]
        left = totals - np.bincount(codes[codes >= 0], minlength=len(totals))
        most = np.argsort(-left, kind="stable")[:GROUPS]
        return [(int(code), int(totals[code]), int(left[code])) for code in most if left[code]]

    def _count_groups(self, wanted: Filter, by: str) -> NDArray[np.int64]:
        ranked, codes = self.ranked[wanted.scope], self._codes(wanted.scope, by)
        size = len(self.photos.classes) if by == "given" else len(ranked.confusions[0])
        mask = ranked.mask(wanted)
        return np.bincount(codes[mask & (codes >= 0)], minlength=size)

    def _codes(self, scope: Scope, by: str) -> NDArray[np.int32]:
        ranked = self.ranked[scope]
        return ranked.given if by == "given" else ranked.confusions[1]

    def _columns(self, wanted: Filter) -> tuple[NDArray[np.bool_], NDArray[np.int8]]:
        return self.ranked[wanted.scope].mask(wanted), self._states[wanted.scope]

    def _set(self, rows: NDArray[np.int64], states: Any) -> None:
        self.state[rows] = states
        for scope, ranked in self.ranked.items():
            ranks = ranked.rank[rows]
            self._states[scope][ranks[ranks >= 0]] = self.state[rows[ranks >= 0]]


def label_of(queue: Queue, row: int, kind: str, label: str = "") -> str | None:
    """Class that a decision of this kind gives the photo; "" for none of the products; None if it cannot be taken."""
    names, suggestions = queue.photos.classes, queue.suggestions
    if kind == KEEP:
        return names[suggestions.asked[row]] or None  # a photo without a label has none to be right
    if kind == TAKE:
        code = int(suggestions.suggested[row])
        return names[code] if code >= 0 else None
    if kind == RELABEL:
        return label if queue.products.has(label) else None
    return "" if kind in KINDS else None


def kind_of(photos: Photos, row: int, label: str) -> str:
    """Kind of the decision that a photo shows this class, made where no suggestion is seen."""
    return KEEP if label == photos.given[row] else RELABEL


def decisions_on(queue: Queue, rows: Sequence[int], kind: str, *, who: str, label: str = "") -> list[Decision]:
    """One person's decisions of one kind on several photos; photos on which it cannot be taken are left out."""
    photos = queue.photos
    labels: Mapping[int, str | None] = {row: label_of(queue, row, kind, label) for row in rows}
    return [
        Decision(photos.name(row), kind, given, who, photos.version)
        for row, given in labels.items()
        if given is not None
    ]


def _in_state(states: NDArray[np.int8], state: State) -> NDArray[np.bool_]:
    return np.ones(len(states), bool) if state == STATES[-1] else states == STATES.index(state)
