"""Review queue against a slow reading of the same photos (flows.review.queue, flows.review.filters)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.errors import InputError
from flows.review.classes import Classes, searched
from flows.review.decisions import KEEP, NONE, RELABEL, SKIP, TAKE, Decision, Decisions
from flows.review.evidence import evidence
from flows.review.filters import Filter
from flows.review.queue import STATES, Queue, decisions_on, label_of
from flows.review.selections import Selection, Selections
from models.cleaning.budget import worth_looking_at
from models.data.manifest import FLAGGED
from tests.reviewing import VERSION, photos_of, queue_of

CLASSES = ("a", "b", "c")
OF = {KEEP: "decided", SKIP: "skipped"}


def drawn(seed: int, count: int = 40) -> Any:
    draw = np.random.default_rng(seed)

    def pick(values: Any) -> list[Any]:
        return [values[i] for i in draw.integers(0, len(values), count)]

    given, decision = pick(CLASSES), pick(["", "dropped", "doubted", "relabelled", "checked"])
    label = [
        other if each == "relabelled" else own for own, other, each in zip(given, pick(CLASSES), decision, strict=True)
    ]
    return photos_of(given, label=label, decision=decision, score=pick([0.1, 0.2, 0.3, 0.7, np.nan]),
                     source=pick(["x", "y"]), split=pick(["train", "val"]))  # fmt: skip


def slow(queue: Queue, wanted: Filter, states: dict[int, str], state: str) -> list[int]:
    """Rows that match, in the order of the review, read one photo at a time."""
    photos, found = queue.photos, queue.suggestions
    rows = []
    for row in range(len(photos)):
        suggested = photos.classes[found.suggested[row]] if found.suggested[row] >= 0 else ""
        fits = (
            (wanted.scope == "all" or photos.decision[row] in FLAGGED)
            and wanted.given in ("", photos.classes[found.asked[row]])
            and wanted.suggested in ("", suggested)
            and wanted.source in ("", photos.source[row])
            and wanted.split in ("", photos.split[row])
            and wanted.decision in ("", photos.decision[row])
            and (wanted.above is None or photos.score[row] >= wanted.above)
            and (wanted.below is None or photos.score[row] < wanted.below)
        )
        if fits and state in ("all", states.get(row, "open")):
            rows.append(row)
    return sorted(rows, key=lambda row: (np.isnan(photos.score[row]), float(np.nan_to_num(photos.score[row])), row))


filters = st.builds(
    Filter,
    scope=st.sampled_from(["issues", "all"]),
    given=st.sampled_from(["", *CLASSES]),
    suggested=st.sampled_from(["", "", *CLASSES, "unheard of"]),
    source=st.sampled_from(["", "x", "z"]),
    split=st.sampled_from(["", "train"]),
    decision=st.sampled_from(["", "dropped"]),
    above=st.sampled_from([None, None, 0.15]),
    below=st.sampled_from([None, None, 0.3]),
)


@settings(deadline=None)
@given(filters, st.sampled_from(STATES), st.integers(0, 5), st.dictionaries(st.integers(0, 39), st.sampled_from([*OF])))
def test_pages_and_counts_equal_a_slow_reading(
    tmp_path_factory: pytest.TempPathFactory, wanted: Filter, state: Any, seed: int, kinds: dict[int, str]
) -> None:
    folder = tmp_path_factory.mktemp("queue")
    queue, decisions = queue_of(drawn(seed), folder), Decisions(folder)
    for row, kind in kinds.items():
        decisions.add([Decision(queue.photos.name(row), kind, "a", "Ana", VERSION)])
    queue.refresh(decisions)
    states = {row: OF[kind] for row, kind in kinds.items()}
    expected = slow(queue, wanted, states, state)
    ranked = queue.ranked[wanted.scope]
    walked: list[int] = []
    while len(page := queue.page(wanted, state, after=walked[-1] if walked else -1, limit=3)):
        walked += page.tolist()
    back = queue.page_before(wanted, state, before=len(ranked), limit=5)
    assert ranked.rows[walked].tolist() == expected
    assert ranked.rows[back].tolist() == expected[-5:]
    assert sorted(queue.matching(wanted, state)) == sorted(expected)
    far = queue.progress(wanted)
    assert (far.total, far.decided, far.skipped, far.left) == tuple(
        len(slow(queue, wanted, states, each)) for each in ("all", "decided", "skipped", "open")
    )
    left = slow(queue, wanted, states, "open")
    names = [queue.photos.classes[queue.suggestions.asked[row]] for row in left]
    assert {each.given: each.left for each in queue.classes(wanted)} == {name: names.count(name) for name in names}
    scored = [row for row in reversed(left) if not np.isnan(queue.photos.score[row])]
    assert queue.cleanest(wanted, 4).tolist() == scored[:4]
    assert all(each.left <= each.total and each.suggested for each in queue.confusions(wanted))


def test_a_page_stays_valid_while_people_decide(tmp_path: Path) -> None:
    queue, decisions = queue_of(drawn(0), tmp_path), Decisions(tmp_path)
    first = queue.page(Filter(), "open", limit=3)
    rows = queue.ranked["issues"].rows[first]
    decisions.add([Decision(queue.photos.name(int(rows[0])), KEEP, "a", "Ben", VERSION)])
    queue.refresh(decisions)
    behind = queue.page(Filter(), "open", after=int(first[0]), limit=2)
    assert behind.tolist() == first[1:].tolist()


def test_undo_and_saving_open_and_close_photos(tmp_path: Path) -> None:
    queue, decisions = queue_of(drawn(0), tmp_path), Decisions(tmp_path)
    rows = queue.ranked["issues"].rows[:4].tolist()
    decisions.add(decisions_on(queue, rows[:2], KEEP, who="Ana"))
    decisions.add(decisions_on(queue, rows[2:], SKIP, who="Ben"))
    queue.refresh(decisions)
    assert (queue.progress(Filter()).decided, queue.progress(Filter()).skipped, queue.num_unsaved) == (2, 2, 2)
    decisions.undo("Ben")
    queue.refresh(decisions)
    assert (queue.progress(Filter()).decided, queue.progress(Filter()).skipped) == (2, 0)
    decisions.mark_saved("b" * 32, upto=9, left_out=[queue.photos.name(rows[0])])
    queue.refresh(decisions)
    assert queue.progress(Filter()).decided == 1


def test_photos_marked_on_the_map(tmp_path: Path) -> None:
    selections = Selections()
    queue = queue_of(drawn(0), tmp_path, selections)
    token = selections.add(Selection(VERSION, np.array([2, 4, 10**9], np.uint64)))
    assert sorted(queue.matching(Filter(scope="all", selection=token), "all")) == [1, 3]
    with pytest.raises(InputError, match="choose the photos on the map again"):
        queue.matching(Filter(selection="forged"), "all")


def test_labels_that_decisions_give(tmp_path: Path) -> None:
    photos = photos_of(
        ["a", "b", "new"], label=["b", "b", "new"], decision=["relabelled", "", ""], split=["train", "train", "test"]
    )
    queue = queue_of(photos, tmp_path)
    assert [label_of(queue, 0, kind) for kind in (KEEP, TAKE, NONE, SKIP)] == ["a", "b", "", ""]
    assert [label_of(queue, 1, kind, "a") for kind in (TAKE, RELABEL, "unknown")] == [None, "a", None]
    assert label_of(queue, 1, RELABEL, "new") is None  # no training photo shows it, so no network could learn it
    assert [each.label for each in decisions_on(queue, [0, 1], TAKE, who="Ana")] == ["b"]


def test_no_label_cannot_be_confirmed(tmp_path: Path) -> None:
    """A blank label would mean: none of the products."""
    queue = queue_of(photos_of(["a", ""], label=["a", ""], split=["train", "unlabelled"]), tmp_path)
    assert [label_of(queue, row, KEEP) for row in (0, 1)] == ["a", None]
    assert [each.label for each in decisions_on(queue, [0, 1], KEEP, who="Ana")] == ["a"]
    assert [label_of(queue, 1, kind, "a") for kind in (RELABEL, NONE)] == ["a", ""]


def test_search_folds_case_and_accents_and_puts_the_likely_first() -> None:
    names = ["Salt of Zoë", "Zoë's Salt", "Extra Zoe", "Tea", "SALTED ZOE"]
    photos = photos_of(names)
    code = {name: photos.label.code(name) for name in names}
    classes = Classes(photos)
    assert [photos.classes[each] for each in classes.search(" ZOE", likely=np.array([code["Tea"], code["SALTED ZOE"]]))] == [
        "SALTED ZOE", "Zoë's Salt", "Extra Zoe", "Salt of Zoë",
    ]  # fmt: skip
    assert next(photos.classes[each] for each in classes.search("", likely=np.array([code["Tea"], -1]))) == "Tea"
    assert searched("É ") == "e"


def test_samples_prefer_checked_photos_and_good_scores() -> None:
    photos = photos_of(
        ["a"] * 5, decision=["doubted", "", "checked", "", "dropped"], score=[0.4, 0.6, np.nan, 0.9, 0.1]
    )
    assert Classes(photos).samples(0) == (2, 3, 1, 0)


def test_evidence_of_a_photo(tmp_path: Path) -> None:
    photos = photos_of(
        ["a", "b", "b", "b"], label=["b"] * 4, decision=["relabelled", "", "", ""], score=[0.25, 0.9, 0.8, np.nan]
    )
    queue, decisions = queue_of(photos, tmp_path), Decisions(tmp_path)
    decisions.add([Decision(photos.name(0), RELABEL, "b", "Ana", VERSION)])
    (found,) = evidence(queue, decisions, [0], scope="issues", seen=0)
    assert (found.given.label, found.suggested and found.suggested.label, found.score, found.rank) == (
        "a",
        "b",
        0.25,
        0,
    )
    assert found.suggested is not None
    assert found.suggested.samples == [photos.name(row) for row in (1, 2, 3)]
    assert found.decided is not None
    assert (found.decided.who, found.decided.label) == ("Ana", "b")
    decisions.undo("Ana")
    (found,) = evidence(queue, decisions, [0], scope="all", seen=0)
    assert (found.decided, found.history[0].undone) == (None, True)


def test_photos_worth_looking_at_come_in_the_order_of_their_worth(tmp_path: Path) -> None:
    queue = queue_of(drawn(1), tmp_path)
    photos, found = queue.photos, queue.suggestions
    open_rows = [row for row in range(len(photos)) if photos.split[row] == "train" and photos.decision[row] != "checked"
                 and not np.isnan(photos.score[row])]  # fmt: skip
    rows = queue.ranked["worth"].rows[queue.page(Filter(scope="worth"), "open", limit=100)]
    assert sorted(rows) == open_rows
    issue = photos.decision.is_one_of(FLAGGED)[open_rows]
    best = worth_looking_at(
        found.asked[open_rows], photos.score[open_rows], found.suggested[open_rows], count=100, is_issue=issue
    )
    assert rows.tolist() == np.array(open_rows)[best].tolist()
    scores = photos.score[queue.cleanest(Filter(scope="worth"), 5)]
    assert scores.tolist() == sorted(photos.score[open_rows], reverse=True)[:5]


def test_the_number_of_photos_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.review.filters.LOOKS", 3)
    queue = queue_of(drawn(1), tmp_path)
    assert queue.progress(Filter(scope="worth")).total == 3
    assert queue.progress(Filter(scope="all")).total == 40
