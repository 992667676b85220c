"""Lines of descent beside a list: who was made from whom, as lanes from each item down to what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LANE_PX = 16
LEFT_PX = 10
NODE_PX = 22  # from the top of an item to its dot


@dataclass(frozen=True)
class Lanes:
    """Drawing beside one item: x of its dot, and lines (x1, y1, x2, y2), whose y are lengths of SVG."""

    x: int
    lines: list[tuple[int, str, int, str]]
    width: int


def lanes(items: Sequence[tuple[str, str | None]]) -> list[Lanes]:
    """The drawing beside each item, which is named by its key and the key of the item that it was made from.

    An item comes before what it was made from. A parent that is not in the list is a line that goes on to the end.
    """
    waiting: list[str | None] = []  # per lane: the key that comes next in it
    found: list[Lanes] = []
    for key, parent in items:
        mine = [lane for lane, expected in enumerate(waiting) if expected == key]
        node = mine[0] if mine else _free(waiting)
        through = [lane for lane, expected in enumerate(waiting) if expected is not None and lane not in mine]
        lines = [(_x(lane), "0", _x(lane), "100%") for lane in through]
        lines += [(_x(lane), "0", _x(node), f"{NODE_PX}") for lane in mine]
        for lane in mine:
            waiting[lane] = None
        waiting[node] = parent
        if parent is not None:
            lines.append((_x(node), f"{NODE_PX}", _x(node), "100%"))
        found.append(Lanes(_x(node), lines, _x(max(node, *through, *mine, 0)) + LEFT_PX))
    widest = max((each.width for each in found), default=0)
    return [Lanes(each.x, each.lines, widest) for each in found]


def _free(waiting: list[str | None]) -> int:
    """The first free lane; a new one if there is none."""
    if None not in waiting:
        waiting.append(None)
    return waiting.index(None)


def _x(lane: int) -> int:
    return LEFT_PX + LANE_PX * lane
