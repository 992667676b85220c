"""Holds code, messages and documentation to the mechanical rules of tests/language.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.language import ROOT, avoided, checked, faults, markdown_faults, opening_faults, prose_faults, python_faults

PARTS = ("flows", "models", "serving", "pixels", "durable", "contract", "benchmarks", "tests", "docs")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


@pytest.mark.parametrize("part", [*PARTS, *PAGES])
def test_text_keeps_the_rules(part: str) -> None:
    paths = [path for path in checked([ROOT / part]) if path != Path(__file__)]

    assert paths
    assert [fault for path in paths for fault in faults(path)] == []


@pytest.mark.parametrize(
    ("docstring", "opening"),
    [
        ("What a run did.", "What"),
        ("(N,) which photos count.", "which"),
        ("Whether it is ready.", "Whether"),
        ("Of the version in `folder`.", "Of"),
        ("As JSON.", "As"),
    ],
)
def test_a_docstring_that_says_neither_result_nor_action_is_found(docstring: str, opening: str) -> None:
    assert list(opening_faults(docstring)) == [f"docstring opens with {opening!r}"]


@pytest.mark.parametrize("docstring", ["Hash of the file.", "(N,) probability of the label.", "Returns the version."])
def test_a_docstring_that_opens_with_a_noun_or_a_verb_passes(docstring: str) -> None:
    assert list(opening_faults(docstring)) == []


def test_words_of_the_glossary_are_found_in_prose_and_not_in_code() -> None:
    assert avoided().search("it is computed anew")
    assert list(prose_faults("somebody asked")) == ["avoid 'somebody'"]
    assert list(prose_faults("the option `anew`, [nobody](nobody.md)")) == ["avoid 'nobody'"]
    assert list(prose_faults("3 is no version")) == ["avoid 'is no'; write 'is not a'"]
    assert list(prose_faults("there is no version")) == []


def test_docstrings_comments_and_messages_are_read(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""Fine."""\nx = 1  # counted anew\nraise ValueError("nobody answers")\n')

    assert list(python_faults(file)) == [(3, "avoid 'nobody'"), (2, "avoid 'anew'")]


def test_long_lines_of_prose_are_found_outside_tables_and_code(tmp_path: Path) -> None:
    page, long = tmp_path / "page.md", "word " * 30
    page.write_text(f"{long}\n\n| {long} |\n\n```\n{long}\n```\n")

    assert list(markdown_faults(page)) == [(1, "150 characters, at most 120")]
