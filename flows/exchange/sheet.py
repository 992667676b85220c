"""CSV with an HTML contact sheet: a table to fill in, and a page to look at."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from durable import replacing
from flows.delivery.rows import read_records, text_in
from flows.errors import BadDelivery
from flows.exchange.choice import Choice, choice_of
from flows.exchange.suspects import Suspect
from models.data.records import guarded

NAME, PAGE = "suspects.csv", "index.html"
WRITTEN = ("id", "given_label", "suggested_label", "probability", "score", "split", "source", "version")
ANSWERS = ("decision", "label", "who")  # columns that a person fills in
HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Labels in doubt</title>
<style>
:root { color-scheme: light dark; font: 100%/1.4 system-ui, sans-serif; }
body { margin: 1rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem; list-style: none; padding: 0; }
li { break-inside: avoid; overflow-wrap: anywhere; }
img { width: 100%; height: 12rem; object-fit: contain; }
p { margin: .125rem 0; }
</style>
</head>
<body>
<h1>Labels in doubt</h1>
"""


def write(folder: Path, suspects: Sequence[Suspect]) -> None:
    """Writes suspects.csv, and index.html with the pictures in `photos`."""
    with (folder / NAME).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow((*WRITTEN, *ANSWERS))
        table.writerows([*map(guarded, _cells(each)), "", "", ""] for each in suspects)
    with replacing(folder / PAGE) as page:
        page.write(HEAD.encode())
        page.write(f"<p>{len(suspects):,} photos, the most doubtful first. Decide in {NAME}.</p>\n<ol>\n".encode())
        for each in suspects:
            page.write(_item(each).encode())
        page.write(b"</ol>\n</body>\n</html>\n")


def read(file: Path, name: str = "") -> Iterator[Choice]:
    """Choices of a table with the columns id, and decision or label; other columns of an export may be left out.

    Raises:
        BadDelivery: the table cannot be read, or a row contradicts itself.
    """
    for number, record in read_records(file, required=("id",), known=(*WRITTEN, *ANSWERS)):
        where = f"{name or file}: row {number}"
        text = {column: text_in(where, record, column) for column in ("id", "suggested_label", *ANSWERS)}
        if not text["id"]:
            raise BadDelivery(f"{where}, field id: it is blank; give the id of the photo, or delete the row")
        chosen = choice_of(
            where,
            text["id"],
            kind=text["decision"],
            label=text["label"],
            suggested=text["suggested_label"],
            who=text["who"],
        )
        if chosen:
            yield chosen


def _cells(suspect: Suspect) -> list[str]:
    numbers = ("" if value is None else f"{value:.6g}" for value in (suspect.probability, suspect.score))
    return [suspect.photo, suspect.given, suspect.suggested, *numbers, suspect.split, suspect.source, suspect.version]


def _item(suspect: Suspect) -> str:
    suggestion = f"<p>suggested: <b>{escape(suspect.suggested)}</b></p>" if suspect.suggested else ""
    score = "" if suspect.score is None else f"<p>score {suspect.score:.3f}</p>"
    return (
        f'<li><img src="{suspect.file}" alt="" loading="lazy"><p>given: <b>{escape(suspect.given)}</b></p>{suggestion}'
        f"{score}<p><code>{suspect.photo}</code></p></li>\n"
    )
