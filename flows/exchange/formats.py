"""The formats of other tools: what writes an export, what reads decisions, and which of them a file has."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flows.errors import BadDelivery, InputError
from flows.exchange import fiftyone, labelstudio, lightly, sheet
from flows.exchange.choice import Choice
from flows.exchange.suspects import Suspect


class Format(NamedTuple):
    """A format. after: what to do with an export."""

    write: Callable[[Path, Sequence[Suspect]], None]
    read: Callable[[Path], Iterator[Choice]]
    after: str


FORMATS = {
    "csv": Format(sheet.write, sheet.read, "look at index.html and fill in `decision` or `label` in suspects.csv"),
    "labelstudio": Format(
        labelstudio.write, labelstudio.read, "make a project with labelling.xml and import tasks.json"
    ),
    "fiftyone": Format(fiftyone.write, fiftyone.read, "load the folder in FiftyOne as a FiftyOneDataset"),
    "lightly": Format(lightly.write, lightly.read, "run load.py where LightlyStudio is installed"),
}


def format_named(name: str) -> Format:
    """The format of this name.

    Raises:
        InputError: there is none.
    """
    if name not in FORMATS:
        raise InputError(f"format {name}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def read_choices(file: Path, format: str = "") -> Iterator[Choice]:
    """The choices in a file, or in the folder of an exported FiftyOneDataset; format "" finds out which one it is.

    Raises:
        BadDelivery: it cannot be read as this format.
        InputError: there is no such format.
    """
    file = file / fiftyone.SAMPLES if file.is_dir() else file
    chosen = format_named(format or _format_of(file))
    try:
        yield from chosen.read(file)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise BadDelivery(
            f"{file}: not a file that {format or _format_of(file)} exports ({error}); export it again"
        ) from None


def _format_of(file: Path) -> str:
    if file.suffix.lower() == ".json":
        return "fiftyone" if file.name == fiftyone.SAMPLES else "labelstudio"
    return "lightly" if file.is_file() and lightly.COLUMNS[0].encode() in _first_line(file) else "csv"


def _first_line(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.readline(4096)
