"""Time that a run under way still needs, from the record of an earlier run of the same recipe; None if there is none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flows.run.history import RUNNING, RunState, RunStep, names, state_of
from flows.run.run import RECIPE
from flows.workspace import Workspace

LOOKED_AT = 20  # earlier runs
WHOLE = ("published", "staged", "judged", "refused", "finished")  # states of runs that went through all their steps
ONLY_JUDGES = ("name", "gate")  # parts of a recipe on which no duration depends
Key = tuple[str, int]  # name of a step, and how many steps of that name came before it


def with_time_left(workspace: Workspace, run: RunState) -> RunState:
    """The run with `seconds_left` and `last_seconds` if it is under way and an earlier one of its recipe tells them."""
    if run.state != RUNNING or (recipe := _recipe(workspace, run.run)) is None:
        return run
    for name in names(workspace)[:LOOKED_AT]:
        if name >= run.run or _recipe(workspace, name) != recipe:
            continue
        earlier = state_of(workspace, name)
        if earlier.verb == run.verb and earlier.state in WHOLE and earlier.seconds and _computed_as_much(earlier, run):
            left = seconds_left(run.steps, earlier.steps, now=datetime.now(UTC))
            return replace(run, seconds_left=left, last_seconds=earlier.seconds)
    return run


def seconds_left(steps: Iterable[RunStep], earlier: Iterable[RunStep], *, now: datetime) -> float:
    """Time that the steps of an earlier run took which this one has not finished, each second counted once.

    Of a step under way the share that is left counts, by its own progress or else by the time that it took earlier. Steps
    that ran side by side count once, so the estimate holds for as many side by side as then.
    """
    present = {key: step for key, step in _numbered(steps)}
    spans, longer = [], 0.0
    for key, step in _numbered(earlier):
        if step.seconds is None:
            continue
        start, rest = datetime.fromisoformat(step.started).timestamp(), step.seconds
        if found := present.get(key):
            rest, more = _rest(found, step.seconds, now)
            longer = max(longer, more)
        spans.append((start + step.seconds - rest, start + step.seconds))
    return _length(spans) + longer


def _rest(step: RunStep, earlier_s: float, now: datetime) -> tuple[float, float]:
    """Seconds of the earlier step that are still to come, and those by which this one takes longer."""
    if step.state != RUNNING:
        return 0.0, 0.0
    so_far = (now - datetime.fromisoformat(step.started)).total_seconds()
    if not step.share:
        return max(earlier_s - so_far, 0.0), 0.0
    left = so_far * (1 - step.share) / step.share
    return min(left, earlier_s), max(left - earlier_s, 0.0)


def _length(spans: list[tuple[float, float]]) -> float:
    """Length of the union of the spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _computed_as_much(earlier: RunState, run: RunState) -> bool:
    """True if the earlier run computed, and did not reuse, every step that this one has computed or computes now."""
    reused = {key for key, step in _numbered(earlier.steps) if step.is_reused}
    computed = {key for key, step in _numbered(run.steps) if step.is_reused is False}
    return not reused & computed


def _numbered(steps: Iterable[RunStep]) -> list[tuple[Key, RunStep]]:
    """The steps with their keys; members, for example, are trained a second time under the same name."""
    seen = Counter[str]()
    found = []
    for step in steps:
        found.append(((step.step, seen[step.step]), step))
        seen[step.step] += 1
    return found


def _recipe(workspace: Workspace, run: str) -> dict[str, Any] | None:
    """Recipe of a run as far as its durations depend on it: without the parts that only judge."""
    with suppress(OSError, ValueError, AttributeError):
        content = json.loads((workspace.runs / run / RECIPE).read_bytes())
        return {key: value for key, value in content.items() if key not in ONLY_JUDGES}
    return None
