"""Figures with a bound."""

from __future__ import annotations

from figure import figure


def at_most(name: str, value: float, bound: float, baseline: float | None = None) -> None:
    """Prints a figure that should not be above a bound."""
    figure(name, round(value, 3), target=f"<= {bound:g}", met=value <= bound, baseline=_rounded(baseline))


def at_least(name: str, value: float, bound: float, baseline: float | None = None) -> None:
    """Prints a figure that should not be below a bound."""
    figure(name, round(value, 1), target=f">= {bound:g}", met=value >= bound, baseline=_rounded(baseline))


def told(name: str, value: float, baseline: float | None = None) -> None:
    """Prints a figure without a target."""
    figure(name, round(value, 3), target="told", met=True, baseline=_rounded(baseline))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
