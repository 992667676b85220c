"""Rules of this repository: paths, sizes, names, links, decisions, import directions, and pages that match the code."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from models.errors import ConfigError
from models.recipe.config import RECIPES, Recipe, recipe_names
from models.recipe.registry import KINDS, Range, check

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
# The brackets keep this file from matching itself.
MACHINE = re.compile(r"(?<![\w.~])/(?:wor[k]|roo[t]|hom[e]/\w+|User[s]/\w+)/")
REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|nvcr\.io|docker\.(?:io|com)|ghcr\.io|quay\.io|\bgcr\.io|index-ur[l]"
)
VAGUE = re.compile(r"(?:^|_)(?:utils?|helpers?|managers?|common)(?:_|$)")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\(([^)#\s:]*)#([^)]+)\)")
INTERVAL = re.compile(r"`([\[(])(\S+), (\S+)([\])])`")


@cache
def tracked() -> tuple[Path, ...]:
    """Files in the work tree that git tracks."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    return tuple(ROOT / name for name in names if name and (ROOT / name).is_file())


def texts() -> Iterator[tuple[str, str]]:
    """Relative name and content of every tracked text file."""
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            yield path.relative_to(ROOT).as_posix(), content.decode(errors="replace")


@pytest.mark.parametrize("pattern", [MACHINE, REGISTRY], ids=["machine paths", "registry hosts"])
def test_no_text_names_a_place_outside(pattern: re.Pattern[str]) -> None:
    found = [f"{name}: {hit.group()}" for name, text in texts() if (hit := pattern.search(text))]

    assert found == []


@pytest.mark.parametrize("text", ["cd /wor" + "k/main", "'/hom" + "e/ann/data'", "(/roo" + "t/.cache)"])
def test_machine_paths_are_recognised(text: str) -> None:
    assert MACHINE.search(text)


def test_python_files_stay_short() -> None:
    lengths = {name: text.count("\n") for name, text in texts() if name.endswith(".py")}

    assert lengths
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_module_has_a_vague_name() -> None:
    parts = {
        part for path in tracked() if path.suffix == ".py" for part in path.relative_to(ROOT).with_suffix("").parts
    }

    assert {part for part in parts if VAGUE.search(part)} == set()


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "inside" / "decisions").glob("*.md"))]

    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_decisions_name_context_choice_and_price() -> None:
    for path in (ROOT / "docs" / "inside" / "decisions").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {path.name[:4]} "), path.name
        assert [part for part in ("**Context.**", "**Choice.**", "**Price.**") if part not in text] == [], path.name


def test_relative_links_lead_to_files() -> None:
    pages = [path for path in tracked() if path.suffix == ".md"]
    targets = [(page, target) for page in pages for target in LINK.findall(page.read_text(encoding="utf-8"))]

    assert targets
    assert [f"{page.name}: {target}" for page, target in targets if not (page.parent / target).exists()] == []


def slugs(page: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_to_headings_lead_to_headings() -> None:
    pages = [path for path in tracked() if path.suffix == ".md"]
    links = [(page, *link) for page in pages for link in ANCHOR.findall(page.read_text(encoding="utf-8"))]
    broken = [
        f"{page.name}: {target}#{anchor}"
        for page, target, anchor in links
        if anchor not in slugs(page.parent / target if target else page)
    ]

    assert len(links) > 10
    assert {target == "" for _, target, _ in links} == {True, False}, "links within a page and to other pages"
    assert broken == []


def test_a_link_to_a_heading_that_does_not_exist_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n[there](page.md#one-two-three) [not there](#four)\n")

    assert ANCHOR.findall(page.read_text()) == [("page.md", "one-two-three"), ("", "four")]
    assert slugs(page) == {"one-two-three"}


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "statement", "caught"),
    [
        ("flows/data/columns.py", "from flows import cli", "flows.data is not allowed to import flows.cli"),
        ("flows/gate/gates.py", "import prefect", "flows.gate.gates -> prefect"),
        (
            "models/losses/lq.py",
            "import models.training.train",
            "models.losses is not allowed to import models.training",
        ),
        ("serving/wire.py", "import serving.client.client", "serving.wire is not allowed to import serving.client"),
        ("flows/new_room.py", "", "flows.new_room"),
    ],
)
def test_a_planted_import_is_caught_by_name(tmp_path: Path, module: str, statement: str, caught: str) -> None:
    for name in ("flows", "models", "serving", "pixels", "durable", "contract"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n\nif False:\n    {statement or 'pass'}\n")
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert caught in " ".join(done.stdout.split())


def test_changelog_names_the_versions_that_are_pinned() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    pins = (ROOT / "constraints.txt").read_text().splitlines()

    assert rows
    assert [f"{name}=={version}" for name, version in rows if f"{name}=={version}" not in pins] == []


def test_recipes_page_names_every_recipe() -> None:
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")

    assert set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", page, flags=re.MULTILINE)) == set(recipe_names())


def recipe_tables() -> Iterator[tuple[str, Any]]:
    """Name and dataclass of every table of a recipe."""
    for part, hint in typing.get_type_hints(Recipe).items():
        cls = typing.get_args(hint)[0] if typing.get_args(hint) else hint
        if dataclasses.is_dataclass(cls):  # all but the recipe's name
            yield part, cls


def recipe_hints() -> dict[str, Any]:
    """Dotted key -> annotation."""
    tables = {part: typing.get_type_hints(cls, include_extras=True) for part, cls in recipe_tables()}
    return {f"{part}.{name}": hint for part, hints in tables.items() for name, hint in hints.items()}


def recipe_keys() -> dict[str, tuple[str, Any]]:
    """Dotted key -> (type and range as docs/reference/recipes.md writes them, default)."""
    defaults = {
        f"{part}.{name}": value for part, cls in recipe_tables() for name, value in dataclasses.asdict(cls()).items()
    }
    return {key: (written(recipe_hints()[key]), default) for key, default in defaults.items()}


def written(hint: Any) -> str:
    """A type with its range, as docs/reference/recipes.md writes it."""
    kind, *rest = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f'`"{choice}"`' for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        rest = [*typing.get_args(typing.get_args(kind)[0])]
    bounds = [f"`{bound}`" for bound in rest if isinstance(bound, Range)]
    return " ".join([KINDS[typing.get_origin(kind) or kind], *bounds])


def documented_keys() -> dict[str, tuple[str, Any]]:
    """Dotted key -> (type and range, default), as docs/reference/recipes.md gives them."""
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+\.[a-z0-9_]+)` \| `(.+?)` \| (.+?) \|", page, flags=re.MULTILINE)
    return {key: (kind, tomllib.loads(f"v = {default}")["v"]) for key, default, kind in rows}


def test_recipes_page_gives_every_key_with_its_default_and_range() -> None:
    assert documented_keys() == {
        key: (kind, [*value] if isinstance(value, tuple) else value) for key, (kind, value) in recipe_keys().items()
    }


# One value of each documented type. Written down here, so that a wrong name in the product's own table is noticed.
EXAMPLES = {
    "integer": 1,
    "number": 0.5,
    "text": "a",
    "true or false": True,
    "table": {"a": 1},
    "list of numbers": [0.5],
}
# Types that a recipe converts to the documented type.
CONVERTED = {"number": ["integer"], "list of numbers": ["integer", "number"]}


def test_recipes_accept_the_documented_type_and_no_other() -> None:
    hints = recipe_hints()
    for key, (documented, _) in documented_keys().items():
        kind = INTERVAL.sub("", documented).strip()
        if kind in EXAMPLES and not INTERVAL.search(documented):
            check(key, EXAMPLES[kind], hints[key])
        for other in EXAMPLES.keys() - {kind, *CONVERTED.get(kind, ())}:
            with pytest.raises(ConfigError, match=re.escape(key)):
                check(key, EXAMPLES[other], hints[key])


def test_recipes_refuse_numbers_outside_the_documented_range() -> None:
    hints, count = recipe_hints(), 0
    for key, (documented, _) in documented_keys().items():
        for left, low, high, right in INTERVAL.findall(documented):
            number, step = (int, 1) if documented.startswith("integer") else (float, 1e-9)
            for text, closed, direction in ((low, left == "[", -1), (high, right == "]", 1)):
                if not math.isfinite(float(text)):
                    continue
                bound, count = number(text), count + 1
                outside = bound + direction * step * max(1, abs(bound)) if closed else bound
                if closed:
                    check(key, bound, hints[key])
                with pytest.raises(ConfigError, match=re.escape(key)):
                    check(key, outside, hints[key])

    assert count > 50


def keys_of_shipped_recipes() -> set[str]:
    """Dotted keys that any shipped recipe sets; keys of a member's own training count as keys of [train]."""
    found = set()
    for name in recipe_names():
        for part, value in tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8")).items():
            for table in value if isinstance(value, list) else [value]:
                if isinstance(table, dict):
                    found |= {f"{part}.{key}" for key in table}
                    found |= {f"train.{key}" for key in table.get("train", {})}
    return found


def test_recipes_page_marks_the_keys_that_no_recipe_sets() -> None:
    """Keys for a shop's own files, photos and servers are not marked, although no recipe can set them for all shops."""
    for_a_shop = {
        "members.weights_sha256",
        "members.name_vectors",
        "members.mean",
        "members.std",
        "proof.photos",
        "train.checkpoint_minutes",
    }
    for_a_shop |= {"augment.flip", "train.loaders", "train.micro_batch"}
    for_a_shop |= {key for key in recipe_keys() if key.startswith(("distil.", "export.", "gate."))}
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+\.[a-z0-9_]+)` \|.*\| (\*research\*: )?[^|]*\|$", page, flags=re.MULTILINE)

    assert {key for key, _ in rows} == set(recipe_keys())
    assert {key for key, mark in rows if mark} == set(recipe_keys()) - keys_of_shipped_recipes() - for_a_shop


@pytest.mark.parametrize("name", ["reference/faults.md", "figures/reliability.md"])
def test_a_page_names_existing_tests(name: str) -> None:
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    existing = {
        (path.name, test)
        for path in (ROOT / "tests").rglob("test_*.py")
        for test in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }

    assert len(named) > 20
    assert set(named) - existing == set()
