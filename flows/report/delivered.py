"""A report on a delivery in plain sentences for the manager of a shop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NAMED = 5  # reasons and products of one sentence


@dataclass(frozen=True)
class Sentence:
    """A sentence, and lines that belong to it."""

    says: str
    details: list[str] = field(default_factory=list)


def sentences(report: Mapping[str, Any]) -> list[Sentence]:
    """The report of an ingestion, or of a look at a delivery (`asdict` of flows.delivery.build.IntakeReport), in words."""
    return [*_photos(report), *_left_out(report), *_whole(report["splits"])] + [
        Sentence(f"{_first_upper(warning)}.") for warning in report["warnings"]
    ]


def _photos(report: Mapping[str, Any]) -> Iterator[Sentence]:
    yield Sentence(f"{_count(report['added'], 'photo is new', 'photos are new')}.")
    if number := report["labelled"]:
        yield Sentence(f"{_count(number, 'photo gets its', 'photos get their')} first label.")
    if number := report["duplicates"]:
        yield Sentence(f"{_count(number, 'photo is', 'photos are')} there already, and nothing changes for them.")
    if reasons := report["quarantined"]:
        shown = sorted(reasons.items(), key=lambda each: (-each[1], each[0]))
        details = [f"{number:,}: {reason}" for reason, number in shown[:NAMED]]
        more = [f"{len(shown) - NAMED:,} more reasons"] if len(shown) > NAMED else []
        yield Sentence(f"{_count(sum(reasons.values()), 'row', 'rows')} cannot be used:", [*details, *more])


def _left_out(report: Mapping[str, Any]) -> Iterator[Sentence]:
    if number := report["near"]:
        yield Sentence(
            f"{_count(number, 'photo shows', 'photos show')} the same picture as a test photo. Models do not learn from "
            "such photos, as the test would be too easy. The page Duplicates shows the pairs."
        )
    if number := report["conflicts"]:
        yield Sentence(
            f"{_count(number, 'photo', 'photos')} came with several labels, and models do not learn from such photos until "
            "someone chooses a label on the page Duplicates."
        )


def _whole(splits: Mapping[str, Any]) -> Iterator[Sentence]:
    photos = splits["photos"]
    yield Sentence(
        f"After that there are {_count(splits['classes'], 'product', 'products')}: {photos['train']:,} photos to learn from, "
        f"{photos['val']:,} to choose the best settings by, and {photos['test']:,} to measure models with."
    )
    for split, what in (("train", "photo to learn from"), ("test", "photo to measure models with")):
        if number := (found := splits["without"][split])["number"]:
            names = ", ".join(found["first"][:NAMED]) + (", …" if number > NAMED else "")
            yield Sentence(f"{_count(number, 'product has', 'products have')} no {what}: {names}.")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
