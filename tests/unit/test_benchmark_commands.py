"""Every command of a benchmark that a page or a docstring shows is one that its command line understands."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"^```\w*\n(.*?)^```|``?([^`\n]+)``?", re.M | re.S)
CALL = re.compile(r"benchmarks/(\w+)\.py(.*)")
STAND_IN = {"$W": "--weights FILE"}  # of README.md, which says so
TYPES = {"int": int, "float": float}


class Refusing(argparse.ArgumentParser):
    """Raises what it would print."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parser(file: Path) -> argparse.ArgumentParser:
    """The parser of a benchmark, read from its source: importing all of them would take minutes."""
    tree, made = ast.parse(file.read_text(encoding="utf-8")), Refusing(exit_on_error=False)
    named = {target.id: node.value for node in tree.body if isinstance(node, ast.Assign)
             for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            made.add_argument(*map(ast.literal_eval, node.args), **keywords(node, named))
    if "sys.argv" in file.read_text(encoding="utf-8"):
        made.add_argument("names", nargs="*")
    return made


def keywords(call: ast.Call, named: dict[str, ast.expr]) -> dict[str, Any]:
    """Keywords that limit the words of an option; choices only if they are written in the file."""
    found: dict[str, Any] = {}
    for each in call.keywords:
        value = named.get(each.value.id, each.value) if isinstance(each.value, ast.Name) else each.value
        if each.arg == "type" and isinstance(each.value, ast.Name) and each.value.id in TYPES:
            found["type"] = TYPES[each.value.id]
        elif each.arg == "action":
            found["action"] = (
                getattr(argparse, value.attr) if isinstance(value, ast.Attribute) else ast.literal_eval(value)
            )
        elif each.arg == "nargs" or (each.arg == "choices" and isinstance(value, ast.Dict | ast.Tuple | ast.List)):
            found[each.arg] = (
                [ast.literal_eval(key) for key in value.keys if key]
                if isinstance(value, ast.Dict)
                else ast.literal_eval(value)
            )
    return found


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Name of the benchmark and words of every command; brackets around optional words are left out."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for name, rest in CALL.findall(line):
            for short, words in STAND_IN.items():
                rest = rest.replace(short, words)
            yield name, shlex.split(re.sub(r"[\[\]]", "", rest), comments=True)


def documents() -> Iterator[tuple[str, str]]:
    """Name and code of every page, and of the docstring of every benchmark."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield page.name, "\n".join(block or inline for block, inline in CODE.findall(page.read_text(encoding="utf-8")))
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines = re.sub(r"\\\n\s*", " ", text).splitlines()
        yield file.name, "\n".join(line for line in lines if re.match(r"\s+(\w+=\S+ )*python ", line))


def test_every_command_is_understood() -> None:
    shown = [(where, *each) for where, text in documents() for each in commands(text)]
    refused = []
    for where, name, words in shown:
        try:
            parser(ROOT / "benchmarks" / f"{name}.py").parse_args(words)
        except (ValueError, argparse.ArgumentError, OSError) as error:
            refused.append(f"{where}: benchmarks/{name}.py {shlex.join(words)}: {error}")

    assert len(shown) > 60
    assert refused == []


def test_a_command_of_several_lines_that_names_a_missing_option_is_refused() -> None:
    ((name, words),) = commands("python benchmarks/compare_opponents.py \\\n    --data shop [--cifar cifar]  # no such")

    assert words == ["--data", "shop", "--cifar", "cifar"]
    with pytest.raises((ValueError, argparse.ArgumentError), match="unrecognized arguments: --cifar cifar"):
        parser(ROOT / "benchmarks" / f"{name}.py").parse_args(words)


def test_a_benchmark_runs_without_the_tests() -> None:
    """`python benchmarks/NAME.py` finds the folder of the benchmarks and what is installed; tests are neither."""
    wrong = [
        f"{file.relative_to(ROOT)}: {node.lineno}"
        for file in (ROOT / "benchmarks").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
        if name.partition(".")[0] in ("tests", "benchmarks")
    ]

    assert wrong == []
