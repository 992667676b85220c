"""The page for coding assistants agrees with the command, and llms.txt with the pages."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from flows.cli import app
from flows.cli.app import GATE, INPUT, WORLD
from tests.unit.test_reference import options

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "for-agents.md").read_text(encoding="utf-8")
CALL = re.compile(r"`cleanshelf ([^`]+)`")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def verb_of(call: str, known: set[str]) -> str:
    """The verb of a call, with that of its group before it; "" if there is none."""
    words = call.split()
    return next((name for name in (" ".join(words[:2]), words[0]) if name in known), "")


def test_every_call_names_a_verb_and_options_that_it_has() -> None:
    known = options(typer.main.get_command(app))
    calls = CALL.findall(PAGE)
    verbs = {call: verb_of(call, set(known)) for call in calls}

    assert len(calls) > 20
    assert [call for call, verb in verbs.items() if not verb] == []
    for call, verb in verbs.items():
        assert set(re.findall(r"--[a-z-]+", call)) <= known[verb], call


def test_every_verb_has_json_or_is_named_as_having_none() -> None:
    known = options(typer.main.get_command(app))
    without = {verb for verb, names in known.items() if "--json" not in names}

    assert without == {verb_of(call, set(known)) for call in CALL.findall(section("Verbs without JSON"))}


def test_calls_that_look_and_change_say_json_and_dry_run() -> None:
    known = options(typer.main.get_command(app))
    assert all("--json" in call for call in CALL.findall(section("Look")))
    for call in CALL.findall(section("Change, after asking")):
        assert ("--dry-run" in call) == ("--dry-run" in known[verb_of(call, set(known))]) or "retrain" in call, call


def test_every_exit_code_has_its_rule() -> None:
    assert {int(code) for code in re.findall(r"^\| (\d) \|", PAGE, re.M)} == {0, INPUT, WORLD, GATE}


def test_llms_txt_links_to_pages() -> None:
    text = (DOCS / "llms.txt").read_text(encoding="utf-8")
    targets = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S", text, re.M)

    assert text.startswith("# CleanShelf\n\n> ")
    assert len(targets) > 10
    assert [target for target in targets if not (DOCS / target).is_file()] == []
