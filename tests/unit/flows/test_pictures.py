"""Small pictures beside the answers: on terminals with colours, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.color import Color

from flows.report.pictures import COLUMNS, LINES, MOST, UPPER_HALF, half_blocks
from tests.command_line import ROOT
from tests.screen import on_terminal

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
SCRIPT = f"""
import sys
from pathlib import Path
from flows.report.pictures import has_space_for, print_pictured
product = {{"label": "tea [bold]", "probability": 0.9}}
answer = {{"image": "tea.png", "error": None, "known": True, "model_version": 3, "products": [product]}}
broken = {{"image": "broken.png", "error": "is not a photo", "known": None, "model_version": None, "products": []}}
print(has_space_for(2), has_space_for({MOST + 1}))
print_pictured([Path(sys.argv[1]), Path("broken.png")], [answer, broken])
"""


def test_a_character_holds_two_pixels() -> None:
    image = Image.new("RGB", (2, 3))
    image.putdata([RED, GREEN, BLUE, RED, GREEN, BLUE])
    text = half_blocks(image)
    assert text.plain == f"{UPPER_HALF * 2}\n{UPPER_HALF * 2}\n"
    styles = [(span.style.color, span.style.bgcolor) for span in text.spans]
    pixels = [(RED, BLUE), (GREEN, RED), (GREEN, None), (BLUE, None)]
    assert styles == [(Color.from_rgb(*upper), lower and Color.from_rgb(*lower)) for upper, lower in pixels]


@pytest.fixture
def tea(tmp_path: Path) -> Path:
    path = tmp_path / "tea.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def shown(tea: Path, **variables: str) -> list[str]:
    """Lines of the script on a terminal."""
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    known = plain | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | variables
    code, screen, _ = on_terminal([sys.executable, "-c", SCRIPT, str(tea)], columns=100, variables=known)
    assert code == 0
    return screen.shown()


def test_a_terminal_with_colours_shows_the_photo_beside_its_answer(tea: Path) -> None:
    first, *lines = shown(tea, COLORTERM="truecolor")
    assert first == "True False", "few photos, and many"
    pictured = [line for line in lines if UPPER_HALF in line]
    assert 1 < len(pictured) <= LINES
    assert max(line.count(UPPER_HALF) for line in pictured) == COLUMNS
    assert pictured[1].endswith("90%  tea [bold]"), "a label is not markup"
    assert any("no answer: is not a photo" in line for line in lines)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": "xterm"}])
def test_plain_terminals_show_none(tea: Path, variables: dict[str, str]) -> None:
    assert shown(tea, COLORTERM="", **variables)[0] == "False False"


def test_a_pipe_shows_none(tea: Path) -> None:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tea)], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False False\n")
    assert "\x1b" not in done.stdout
