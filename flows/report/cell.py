"""A value as the text of a table's cell."""

from __future__ import annotations


def cell(value: object, *, false: str = "no") -> str:
    """Three decimals of a float, "-" for None, "yes" for True and `false` for False; "a to b" for a pair."""
    if isinstance(value, list | tuple) and len(value) == 2:
        return " to ".join(cell(each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else false
    return f"{value:.3f}" if isinstance(value, float) else str("-" if value is None else value)
