"""The order of the timeline, and who descends from whom (flows.pages.timeline)."""

from __future__ import annotations

from flows.pages.lanes import LEFT_PX, lanes
from flows.pages.timeline import DataRow, Timeline

ROLLBACKS = 50


def row(number: int, version: str, *, parent: str | None = None, is_again: bool = False) -> DataRow:
    return DataRow(
        number=number, version=version, parent=parent, step="ingest", says="", message="",
        time=f"2026-11-30T10:{number:02}:00+00:00", counts={}, selected=False, withdrawn=False, is_again=is_again,
        run="", models=[],
    )  # fmt: skip


def test_rollbacks_draw_no_lines_so_that_the_page_stays_narrow() -> None:
    made = [row(2, "b", parent="a"), row(1, "a")]
    again = [row(3 + number, "ab"[number % 2], is_again=True) for number in reversed(range(ROLLBACKS))]
    rows = Timeline(selected="a", current_model=None, data=[*again, *made], models=[], advice="").rows()
    assert [(key, origin) for key, origin, _ in rows[-2:]] == [("b", "a"), ("a", None)]
    drawn = lanes([(key, origin) for key, origin, _ in rows])
    assert {each.x for each in drawn} == {LEFT_PX}
    assert all(not each.lines for each in drawn[:ROLLBACKS])
