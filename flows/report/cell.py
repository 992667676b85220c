"""A value as the text of a table's cell."""

from __future__ import annotations


def cell(value: object, *, false: str = "no") -> str:
    """Three decimals of a float, "-" for None, "yes" for True and `false` for False."""
    if isinstance(value, bool):
        return "yes" if value else false
    return f"{value:.3f}" if isinstance(value, float) else str("-" if value is None else value)
