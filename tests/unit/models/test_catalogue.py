"""The catalogue of losses: complete, and the same in the docs, on the terminal and in the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from models.losses import LOSSES, build_loss
from models.losses.base import common_parameters
from models.losses.catalogue import Entry, catalogue, markdown, options
from models.recipe.registry import written

DOCS = Path(__file__).resolve().parents[3] / "docs" / "reference"
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")


def entry(name: str) -> Entry:
    (found,) = [e for e in catalogue() if e.name == name]
    return found


def test_the_page_holds_the_generated_tables() -> None:
    tables = PAGE.split("<!-- losses -->\n")[1].split("\n<!-- /losses -->")[0]
    assert tables == markdown(), (
        "put the output of `cleanshelf losses --markdown` between the marks of docs/reference/losses.md"
    )


def test_every_loss_is_listed_with_all_its_parameters() -> None:
    listed = {e.name: [s.name for s in e.parameters] for e in catalogue()}
    assert listed == {name: list(component.parameters) for name, component in LOSSES.components.items()}
    assert [s.name for s in options()] == list(common_parameters())


def test_nothing_is_left_unexplained() -> None:
    for e in catalogue():
        assert e.formula, e.name
        assert e.source, e.name
        assert e.needs, e.name
        assert [s.name for s in e.parameters if not s.meaning] == [], e.name
    assert [s.name for s in options() if not s.meaning] == []


@pytest.mark.parametrize("name", ["gce", "nce+aul", "ce+sr", "bi_tempered", "eps_ce+mae"])
def test_listed_defaults_are_the_real_ones(name: str) -> None:
    """Defaults that a recipe sets explicitly build the same loss."""
    given = {s.name: json.loads(s.default) for s in entry(name).parameters if s.default != "unset"}
    plain, same = build_loss(name, num_classes=10), build_loss(name, num_classes=10, **given)
    assert given
    assert [vars(part).get("terms") for part in plain.modules()] == [vars(part).get("terms") for part in same.modules()]
    for own, other in zip(plain.modules(), same.modules(), strict=True):
        numbers = {key: value for key, value in vars(own).items() if isinstance(value, float | int | str)}
        assert {key: vars(other)[key] for key in numbers} == numbers


def test_what_a_loss_needs() -> None:
    assert entry("gce").needs == "p_y alone"
    assert entry("nce+agce").needs == "a sum over the classes"
    assert entry("bi_tempered").needs == "several passes over the classes"


def test_composed_losses_name_their_parts() -> None:
    assert entry("nfl+aul").formula == "alpha nfl + beta aul"
    assert entry("anl_ce").formula == "alpha nce + beta nnce"
    assert entry("gce+sr").formula.startswith("gce(u, y) + lam(t) sum_k")
    for e in catalogue():
        parts = re.findall(r"^alpha (\w+) \+ beta (\w+)$", e.formula)
        assert all(part.lower() in LOSSES.components for pair in parts for part in pair), e.name


def test_ranges_are_listed_as_the_messages_write_them() -> None:
    ranges = {s.name: s.range for s in (*entry("gce+sr").parameters, *options())}
    assert ranges["q"] == "(0, 1]"
    assert ranges["tau"] == "(0, inf]"  # although it may be unset
    assert ranges["every"] == "integer [1, inf]"
    assert ranges["rescale"] == "true or false"
    assert ranges["init_match"] == '"", "initial", "batch"'
    assert (written(str), written(int), written(float)) == ("text", "integer", "number")


def test_meanings_come_from_the_docstrings() -> None:
    settings = {s.name: s for s in entry("nce+mae").parameters}
    assert settings["alpha"].meaning == settings["beta"].meaning == "weights of the first and the second loss, >= 0"
    assert "sum over the classes of |e_y - p|" in settings["scale"].meaning
    assert "`alpha` 1, `beta` 1; [0, inf]: weights of the first and the second loss |" in markdown()
    assert "\\|e_y - p\\|" in markdown()  # a bar would end the cell


def test_the_verb_prints_them_all() -> None:
    shown = CliRunner().invoke(app, ["losses", "--json"])
    assert [e["name"] for e in json.loads(shown.stdout)] == sorted(LOSSES.components)
    table = CliRunner().invoke(app, ["losses"]).stdout
    assert set(LOSSES.components) <= {line.split()[0] for line in table.splitlines() if line.strip()}
    assert CliRunner().invoke(app, ["losses", "--markdown"]).stdout == markdown() + "\n"


def test_the_recipes_page_points_to_the_table() -> None:
    section = (DOCS / "recipes.md").read_text(encoding="utf-8").split("## Loss:")[1].split("\n## ")[0]
    assert "(losses.md)" in section
    assert "`agce`" not in section
    named = set(re.findall(r"`([a-z_+]+)`", PAGE.split("<!-- losses -->")[0]))
    assert {"gce", "nce+agce", "eps_ce+mae", "ce+sr"} <= named & set(LOSSES.components)
