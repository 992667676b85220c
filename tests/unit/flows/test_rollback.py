"""Which data versions a rollback withdrew."""

from __future__ import annotations

import pytest

from flows.data_version import Entry
from flows.rollback import withdrawn


def history(*steps: str) -> list[Entry]:
    """Oldest first; "a" adds version a, "<a" rolls back to it."""
    return [
        Entry(number, step.strip("<"), None, "rollback" if step.startswith("<") else "ingest", "", "", {}, False)
        for number, step in enumerate(steps, 1)
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
    ],
)
def test_a_rollback_withdraws_what_came_after(steps: tuple[str, ...], gone: str) -> None:
    assert withdrawn(history(*steps)) == set(gone)
