"""Reports on deliveries in words for the manager of a shop."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from flows.delivery.build import build_version
from flows.report.delivered import sentences
from tests.deliveries import deliver


def test_a_delivery_is_told_in_sentences(tmp_path: Path) -> None:
    source = deliver(tmp_path / "first", {"tea": 10, "milk": 10})
    (source / "tea" / "broken.png").write_text("not a picture")
    told = sentences(asdict(build_version(source, base=None, out=tmp_path / "one")))
    assert told[0].says == "20 photos are new."
    assert told[1].says == "1 row cannot be used:"
    [detail] = told[1].details
    assert detail.startswith("1: photo: not a picture")
    assert any(each.says.startswith("After that there are 2 products: ") for each in told)

    again = deliver(tmp_path / "second", {"tea": 1})
    deliver(again, {"soap": 3}, first_seed=700)
    told = sentences(asdict(build_version(again, base=tmp_path / "one", out=tmp_path / "two")))
    assert [each.says for each in told[:2]] == [
        "3 photos are new.",
        "1 photo is there already, and nothing changes for them.",
    ]
    assert any("1 product has no photo to measure models with: soap." in each.says for each in told)


def test_only_the_most_frequent_reasons_are_listed() -> None:
    splits = {"classes": 1, "photos": {"train": 1, "val": 0, "test": 0}, "without": {"train": {"number": 0, "first": []},
              "test": {"number": 1, "first": ["a"]}}}  # fmt: skip
    report = {"added": 1, "labelled": 2, "duplicates": 0, "near": 1, "conflicts": 1, "splits": splits, "warnings": ["few photos"],
              "quarantined": {f"reason {number}": number for number in range(1, 9)}}  # fmt: skip
    told = {each.says: each.details for each in sentences(report)}
    assert told["36 rows cannot be used:"] == [*(f"{n}: reason {n}" for n in (8, 7, 6, 5, 4)), "3 more reasons"]
    assert "2 photos get their first label." in told
    assert "Few photos." in told
    assert sum("Duplicates" in says for says in told) == 2
