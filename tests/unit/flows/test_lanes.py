"""Lines of descent beside a list of versions."""

from __future__ import annotations

from flows.pages.lanes import LEFT_PX, lanes

FIRST, SECOND = LEFT_PX, LEFT_PX + 16


def test_a_chain_is_one_line() -> None:
    newest, older, oldest = lanes([("c", "b"), ("b", "a"), ("a", None)])
    assert newest.lines == [(FIRST, "22", FIRST, "100%")]
    assert older.lines == [(FIRST, "0", FIRST, "22"), (FIRST, "22", FIRST, "100%")]
    assert oldest.lines == [(FIRST, "0", FIRST, "22")]
    assert {each.width for each in (newest, older, oldest)} == {2 * LEFT_PX}


def test_children_of_one_version_meet_in_it() -> None:
    second, first, parent = lanes([("b", "a"), ("c", "a"), ("a", None)])
    assert (second.x, first.x, parent.x) == (FIRST, SECOND, FIRST)
    assert (FIRST, "0", FIRST, "100%") in first.lines
    assert parent.lines == [(FIRST, "0", FIRST, "22"), (SECOND, "0", FIRST, "22")]


def test_a_lane_is_used_again_and_a_parent_outside_the_list_leads_to_its_end() -> None:
    drawn = lanes([("d", "elsewhere"), ("c", "a"), ("a", None), ("b", None)])
    assert [each.x for each in drawn] == [FIRST, SECOND, SECOND, SECOND]
    assert all((FIRST, "0", FIRST, "100%") in each.lines for each in drawn[1:])
    assert lanes([]) == []
