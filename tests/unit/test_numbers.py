"""Holds the code to the numbers of CONTRIBUTING.md: short functions, short files, docstrings, annotations, tests."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flows", "models", "serving", "pixels", "durable", "contract")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(*folders: str) -> Iterator[tuple[Path, str]]:
    for folder in folders:
        yield from ((path, path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py")))


def functions(tree: ast.AST, *, is_public: bool = True) -> Iterator[tuple[Function, bool]]:
    """Functions of a module, each with True if it is public: neither it nor what contains it is private."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node, is_public and not node.name.startswith("_")
            yield from functions(node, is_public=False)
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, is_public=is_public and not node.name.startswith("_"))
        else:
            yield from functions(node, is_public=is_public)


def length(function: Function) -> int:
    """Number of lines of the body without the docstring, whose length is free."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


@pytest.fixture(scope="module")
def defined() -> list[tuple[str, Function, bool]]:
    """File and line, function, and whether it is public, for all functions of the product."""
    return [
        (f"{path.relative_to(ROOT)}:{function.lineno}", function, is_public)
        for path, text in sources(*PACKAGES)
        for function, is_public in functions(ast.parse(text))
    ]


def test_functions_are_short(defined: list[tuple[str, Function, bool]]) -> None:
    lengths = {place: length(function) for place, function, _ in defined}

    assert median(lengths.values()) <= 8
    assert {place: lines for place, lines in lengths.items() if lines > 50} == {}


def test_files_are_short() -> None:
    lengths = {path: text.count("\n") for path, text in sources(*PACKAGES, "tests", "benchmarks")}

    assert {str(path): lines for path, lines in lengths.items() if lines > 400} == {}


def inherited(name: str, bases: Iterable[str], classes: Mapping[str, Sequence[ast.ClassDef]]) -> bool:
    """True if a class of the project from which these names lead upwards documents a method of this name."""
    for base in (each for name_of_base in bases for each in classes.get(name_of_base, ())):
        own = [each for each in base.body if isinstance(each, Function) and each.name == name]
        if any(ast.get_docstring(each) for each in own) or inherited(name, names_of_bases(base), classes):
            return True
    return False


def names_of_bases(node: ast.ClassDef) -> list[str]:
    return [each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in node.bases]


def test_public_functions_have_docstrings() -> None:
    trees = {path: ast.parse(text) for path, text in sources(*PACKAGES)}
    classes: dict[str, list[ast.ClassDef]] = {}
    for each in (node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        classes.setdefault(each.name, []).append(each)
    overrides = {
        method: inherited(method.name, names_of_bases(each), classes)
        for defined in classes.values()
        for each in defined
        for method in each.body
        if isinstance(method, Function)
    }
    public = [(path, function) for path, tree in trees.items() for function, is_public in functions(tree) if is_public]
    bare = [
        f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"
        for path, function in public
        if ast.get_docstring(function) is None and not overrides.get(function)
    ]

    assert len(bare) <= 0.05 * len(public), bare


def test_every_argument_and_result_is_annotated(defined: list[tuple[str, Function, bool]]) -> None:
    bare = []
    for place, function, _ in defined:
        given = function.args
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        plain = [each.arg for each in arguments if each.annotation is None and each.arg not in ("self", "cls")]
        bare += [f"{place} {function.name}: {name}" for name in plain]
        bare += [f"{place} {function.name}: result"] if function.returns is None else []

    assert bare == []


def code_lines(text: str) -> int:
    """Lines that are neither blank nor a comment nor part of a docstring."""
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            prose |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return sum(bool(line) and not line.startswith("#") and number not in prose for number, line in lines)


def test_there_is_a_line_of_tests_for_each_line_of_code() -> None:
    code, tests = (sum(code_lines(text) for _, text in sources(*each)) for each in (PACKAGES, ("tests",)))

    assert tests >= code > 0
