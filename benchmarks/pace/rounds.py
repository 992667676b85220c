"""Ratios of two measurements in the same minutes, so that a slow moment of the machine hits both."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

Measure = Callable[[], float]


def ratios(ours: Measure, others: Mapping[str, Measure], *, rounds: int) -> dict[str, list[float]]:
    """Ratio of ours to each of the others in each round: others, ours, others, ours, ..., others.

    Each of ours is divided by the mean of the measurements before and after it.
    """
    found: dict[str, list[float]] = {name: [] for name in others}
    before = {name: measure() for name, measure in others.items()}
    for _ in range(rounds):
        own = ours()
        after = {name: measure() for name, measure in others.items()}
        for name, values in found.items():
            values.append(own / statistics.mean((before[name], after[name])))
        before = after
    return found


def spread(values: list[float]) -> str:
    """The lowest and the highest of the rounds."""
    return f"rounds: {min(values):.3f} to {max(values):.3f}"


def told(name: str, values: list[float]) -> float:
    """Median of the rounds; prints all of them."""
    print(f"{name}, each round: {' '.join(f'{value:.3f}' for value in values)}", flush=True)
    return statistics.median(values)
