"""Answers beside small pictures of their photos, on terminals that show colours. A character holds two pixels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from pixels import BadPhoto, decode, read

MOST = 12  # photos that are pictured; the table of more photos is easier to read
COLUMNS, LINES = 24, 12  # of a picture at most
UPPER_HALF = "\N{UPPER HALF BLOCK}"  # its upper half has the colour of the text, its lower half that of the background
SHOWN = 5  # products of an answer


def has_space_for(photos: int) -> bool:
    """True if stdout is a terminal that can show pictures of that many photos."""
    console = Console()
    shows_colours = console.color_system in ("256", "truecolor") and not console.no_color
    return photos <= MOST and console.is_terminal and shows_colours and console.encoding.startswith("utf")


def print_pictured(images: Sequence[Path], answers: Sequence[Mapping[str, Any]]) -> None:
    """Prints the answer (flows.recognise) to each image beside its picture."""
    grid = Table.grid(padding=(0, 2, 1, 0))
    grid.add_column(no_wrap=True, width=COLUMNS)
    grid.add_column(overflow="fold")
    for image, answer in zip(images, answers, strict=True):
        grid.add_row(_picture(image), _in_words(answer))
    Console(markup=False, emoji=False, highlight=False).print(grid)


def _picture(image: Path) -> Text:
    """The picture; nothing of a file that is not a photo, whose answer says why."""
    try:
        photo = decode(read(image))
    except (BadPhoto, OSError):
        return Text("")
    photo.thumbnail((COLUMNS, 2 * LINES), Image.Resampling.LANCZOS)
    return half_blocks(photo)


def half_blocks(photo: Image.Image) -> Text:
    """An RGB photo as text, two rows of pixels per line; the last line of an odd number has an empty lower half."""
    text, lines = Text(), np.asarray(photo).tolist()
    for upper, lower in itertools.zip_longest(lines[::2], lines[1::2], fillvalue=[None] * photo.width):
        for above, below in zip(upper, lower, strict=True):
            background = Color.from_rgb(*below) if below else None
            text.append(UPPER_HALF, Style(color=Color.from_rgb(*above), bgcolor=background))
        text.append("\n")
    return text


def _in_words(answer: Mapping[str, Any]) -> Text:
    """Name of the file, what it shows, the next likely products, and who answered."""
    text = Text(f"{answer['image']}\n", "bold")
    if answer["error"]:
        return text.append(f"no answer: {answer['error']}", "red")
    products = [f"{each['probability']:4.0%}  {each['label']}\n" for each in answer["products"][:SHOWN]]
    text.append(products[0] if products else "none of ours\n", "green" if answer["known"] else "yellow")
    text.append("".join(products[1:]), "default")
    known = "known" if answer["known"] else "unknown: probably none of your products"
    version = answer["model_version"]
    return text.append(f"{known}; {f'model version {version}' if version else 'from the file'}", "dim")
