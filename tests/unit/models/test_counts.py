"""Counts of a data version: every photo has one outcome, whatever was decided about it, so that all sums hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.manifest import (
    CONFLICTS,
    DECISIONS,
    INDEX,
    KEPT,
    LABELS,
    LEFT_OUT,
    OUTCOMES,
    QUARANTINE,
    SPLITS,
    UNLABELLED,
    count,
    outcomes,
    read_table,
    write_table,
)

LABELLED = st.tuples(
    st.sampled_from("ab"), st.sampled_from("abc"), st.sampled_from(SPLITS), st.booleans(), st.sampled_from(DECISIONS)
)
BARE = st.tuples(st.just(""), st.just(""), st.just(UNLABELLED), st.booleans(), st.sampled_from(DECISIONS))
PHOTO = st.one_of(LABELLED, BARE)


def write(folder: Path, photos: list[tuple[str, str, str, bool, str]]) -> Path:
    columns = dict(zip(("given_label", "label", "split", "kept", "decision"), zip(*photos, strict=True), strict=False))
    number = len(photos)
    rest = {"id": [f"{n:016x}" for n in range(number)], "score": [None] * number, "round": [0] * number}
    labels = {name: [] for name in LABELS.names} | columns | rest | {"scored_by": [""] * number}
    write_table(folder, labels, name="labels")
    for name, schema in (("index", INDEX), ("conflicts", CONFLICTS), ("quarantine", QUARANTINE)):
        write_table(folder, {column: [] for column in schema.names}, name=name)
    return folder


@settings(deadline=None, max_examples=60)
@given(st.lists(PHOTO, max_size=60))
def test_the_counts_of_any_version_add_up_to_its_photos(photos: list[tuple[str, str, str, bool, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        counts = count(write(Path(folder), photos))
    assert counts["photos"] == len(photos) == sum(counts[outcome] for outcome in OUTCOMES)
    assert counts["kept"] == sum(photo[3] for photo in photos) == sum(counts[outcome] for outcome in KEPT)
    assert counts["kept"] == sum(counts[split] for split in (*SPLITS, UNLABELLED))
    assert counts["classes"] == len({label for photo in photos if photo[2] == "train" for label in photo[:2]})
    assert counts["photos"] - counts["kept"] == sum(counts[outcome] for outcome in LEFT_OUT)


@pytest.mark.parametrize(
    ("given_label", "label", "kept", "decision", "outcome"),
    [
        ("a", "a", True, "", "unchanged"),
        ("a", "a", True, "checked", "confirmed"),
        ("a", "b", True, "checked", "relabelled"),
        ("a", "b", True, "relabelled", "relabelled"),
        ("a", "a", True, "doubted", "doubted"),
        ("a", "a", False, "dropped", "dropped"),
        ("a", "a", False, "checked", "dropped"),
        ("a", "a", False, "conflict", "conflicts"),
        ("a", "a", False, "near-test", "near"),
        ("a", "a", False, "near-train", "near"),
        ("a", "a", True, "near-train", "unchanged"),
        ("a", "b", False, "", "dropped"),
    ],
)
def test_each_photo_has_one_outcome(
    tmp_path: Path, given_label: str, label: str, kept: bool, decision: str, outcome: str
) -> None:
    labels = read_table(write(tmp_path, [(given_label, label, "train", kept, decision)]), name="labels")
    assert [OUTCOMES[position] for position in outcomes(labels)] == [outcome]


def test_no_photo_has_no_outcome(tmp_path: Path) -> None:
    found = outcomes(read_table(write(tmp_path, []), name="labels"))
    assert (found.shape, np.issubdtype(found.dtype, np.integer)) == ((0,), True)
