"""The pages of docs/reference, and the rooms of the architecture, agree with the code that they describe."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer

import flows.errors
import models.errors
import serving.errors
from flows.cli import app
from flows.settings import Settings
from models.data.manifest import TABLES
from tests import architecture

ROOT = Path(__file__).resolve().parents[2]
VERB = re.compile(
    r"^\| `cleanshelf ([a-z]+(?: (?:log|show|diff|rollback|verify|gc|push|pull|purge|export|import|save))?)(?: .+?)?` \|",
    re.M,
)


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")


def verbs(group: typer.Typer, prefix: str = "") -> set[str]:
    """Every verb of the command, those of groups with the group before them."""
    own = {f"{prefix}{each.name or each.callback.__name__}" for each in group.registered_commands if each.callback}
    nested = [verbs(each.typer_instance, f"{each.name} ") for each in group.registered_groups if each.typer_instance]
    callback = group.registered_callback
    return own.union(*nested, {prefix.strip()} if callback and callback.invoke_without_command else ())


def test_commands_page_names_every_verb() -> None:
    assert set(VERB.findall(page("commands.md"))) == verbs(app)


def test_every_verb_has_an_existing_file() -> None:
    rows = re.findall(r"^\| `cleanshelf .+\| `([^`]+)` \|$", page("commands.md"), re.M)

    assert len(rows) == len(VERB.findall(page("commands.md")))
    assert [file for file in rows if not (ROOT / file).is_file()] == []


def test_a_file_of_a_verbs_name_is_the_one_that_the_page_names() -> None:
    for verb, file in re.findall(r"^\| `cleanshelf ([a-z]+)[^|]*` \|.+\| `([^`]+)` \|$", page("commands.md"), re.M):
        named = ROOT / "flows" / f"{verb}.py"
        assert not named.exists() or file in (f"flows/{verb}.py", "flows/endpoint/folder.py"), verb


def options(command: Any, prefix: str = "") -> dict[str, set[str]]:
    """Verb -> its options, of a command of Typer or a group of them."""
    if not hasattr(command, "commands"):
        return {prefix: {name for parameter in command.params for name in parameter.opts}}
    nested = [options(each, f"{prefix} {name}".strip()) for name, each in command.commands.items()]
    return {verb: names for each in nested for verb, names in each.items()}


@pytest.mark.parametrize("option", ["--dry-run", "--set", "--no-promote"])
def test_commands_page_names_the_verbs_of_an_option(option: str) -> None:
    row = re.search(rf"^\| `{option}[ `].*\| ([^|]+) \|$", page("commands.md"), re.M)
    found = {verb for verb, names in options(typer.main.get_command(app)).items() if option in names}

    assert row is not None
    assert set(re.findall(r"`([^`]+)`", row[1])) == found


def test_settings_page_names_every_variable() -> None:
    named = re.findall(r"^\| `CLEANSHELF_(\w+)` \|", page("settings.md"), re.M)

    assert {name.lower() for name in named} == {*Settings.model_fields, "side_by_side"}


def test_messages_page_names_every_error() -> None:
    modules = (flows.errors, models.errors, serving.errors)
    classes = (each for module in modules for each in inspect.getmembers(module, inspect.isclass))
    errors = {name for name, each in classes if issubclass(each, Exception)}

    assert errors - set(re.findall(r"`(\w+)`", page("messages.md"))) == set()


@pytest.mark.parametrize("name", TABLES)
def test_tables_page_names_every_column_with_its_type(name: str) -> None:
    section = re.split(r"\n###? ", page("tables.md").partition(f"## `{name}.parquet`")[2])[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.M))

    assert rows == {field.name: str(field.type) for field in TABLES[name]}


def test_architecture_page_lists_the_present_rooms() -> None:
    text = architecture.PAGE.read_text(encoding="utf-8")

    assert architecture.written(text) == text, "run `make docs`"


def test_every_module_but_empty_ones_is_listed() -> None:
    listed = set(re.findall(r"^\| `([^`]+)` \|", architecture.render(), re.M))
    files = {path for package in architecture.packages() for path in architecture.modules(package)}

    assert listed == {path.relative_to(ROOT).as_posix() for path in files if path.stat().st_size}


def test_architecture_page_names_existing_files() -> None:
    text = architecture.PAGE.read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:flows|models|serving|pixels|durable|contract)/[\w/]+\.py)`", text))
    names = set(re.findall(r"`((?:flows|models|serving)(?:\.\w+)+)`", text))

    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert [name for name in names if not any(exists(part) for part in (name, name.rpartition(".")[0]))] == []


def exists(name: str) -> bool:
    """True if this is a module or a package of the repository."""
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()
