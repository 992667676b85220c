"""Data versions that a rollback withdrew, and models on the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flows.data.history import Entry, descent, interleaved, withdrawn
from flows.registry.history import advice, newest_standing

STEPS = {"": "ingest", "<": "rollback", "-": "purge"}


def history(*steps: str) -> list[Entry]:
    """Entries, oldest first: "a" adds version a, "<a" rolls back to a, "-ab" purges photos of a, which makes b."""
    names = [step.lstrip("<-") for step in steps]
    return [
        Entry(number, name[-1], name[:-1] or None, STEPS[step.removesuffix(name)], "", "", {}, False)
        for number, (step, name) in enumerate(zip(steps, names, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("steps", "gone"),
    [
        ((), ""),
        (("a", "b", "c"), ""),
        (("a", "b", "c", "<a"), "bc"),
        (("a", "b", "c", "<b"), "c"),
        (("a", "b", "<b"), ""),
        (("a", "b", "c", "<a", "<c"), ""),
        (("a", "b", "c", "<a", "<b"), "c"),
        (("a", "b", "c", "<a", "d"), "bc"),
        (("a", "b", "c", "<a", "d", "<b"), "cd"),
        (("a", "b", "<a", "b"), ""),  # the same cleaning, done again
        (("a", "b", "-bc"), ""),
        (("a", "b", "-bc", "-ad"), "bc"),  # back to the first, without what was purged
        (("a", "b", "-bc", "-ad", "<c"), "d"),
        (("a", "b", "<y"), "b"),  # to a version that two rounds of a run on a made
        (("a", "b", "<y", "<b"), "y"),
        (("a", "b", "<y", "-yd"), "b"),
        (("a", "b", "<y", "<a"), "by"),
    ],
)
def test_a_rollback_withdraws_what_came_after(steps: tuple[str, ...], gone: str) -> None:
    made = [
        Entry(None, "x", "a", "clean-1", "", "", {}, False, "run"),
        Entry(None, "y", "x", "clean-2", "", "", {}, False),
    ]
    assert withdrawn(history(*steps), made) == set(gone)


def test_versions_that_runs_made_are_listed_where_they_were_made() -> None:
    entries = [replace(each, time=f"2026-01-0{each.number}T12:00:00+01:00") for each in history("a", "ab", "bc")][::-1]
    others = [
        replace(entries[0], id=name, number=None, time=f"2026-01-0{day}T12:00:00Z")
        for name, day in (("x", 2), ("a", 3))
    ]
    assert [entry.id for entry in interleaved(entries, others)] == ["c", "x", "b", "a"], "a selected one is listed once"


def test_descent_ends_where_the_history_does() -> None:
    entries = history("a", "ab", "bc", "<a", "xy")
    assert [descent(version, entries) for version in "cay"] == [["c", "b", "a"], ["a"], ["y", "x"]]
    assert descent("unheard of", entries) == ["unheard of"]


def entry(version: int, *, serving: bool = False, stale: bool = False) -> dict[str, Any]:
    return {"version": version, "serving": serving, "data_withdrawn": stale}


def test_a_stale_model_goes_on_and_the_newest_that_is_not_is_named() -> None:
    models = [entry(4, stale=True), entry(3, serving=True, stale=True), entry(2), entry(1)]
    assert newest_standing(models) == 2
    assert "version 3 stays the current model" in advice(models)
    assert "`cleanshelf model rollback 2`" in advice(models)
    assert "rollback" not in advice([entry(1, serving=True, stale=True)])
    assert advice([entry(2, stale=True), entry(1, serving=True)]) == advice([entry(1)]) == advice([]) == ""
