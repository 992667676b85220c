"""Checks the mechanical rules of the project's English: `python -m tests.language [PATH...]` lists every breach.

Docstrings, comments and the texts of messages are read from Python files, prose from Markdown files. What stands in
backticks or in a code block is not prose.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
MAX_LINE = 120  # characters of a line of prose in Markdown
BAD_OPENINGS = {
    *(
        "what",
        "of",
        "by",
        "as",
        "where",
        "whether",
        "for",
        "from",
        "in",
        "on",
        "to",
        "with",
        "at",
        "how",
        "which",
        "who",
    ),
    *("when", "if", "until", "that", "than", "is", "are", "does", "can"),
}
SHAPE = re.compile(r"^\([^)]*\)[,:]?\s*")
IS_NO = re.compile(r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!longer|more|less|fewer|larger|smaller|way\b)")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
LINK = re.compile(r"\]\([^)]*\)")


@cache
def avoided() -> re.Pattern[str]:
    """The words of the last column of every table of the glossary."""
    rows = re.findall(r"^\|(.+)\|$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [row.split("|")[-1].strip() for row in rows]
    words = [word for cell in cells for word in cell.split(", ") if word and set(word) != {"-"} and word != "not"]
    return re.compile(
        rf"\b(?:{'|'.join(map(re.escape, sorted(set(words) - {'is no'}, key=len, reverse=True)))})\b", re.I
    )


def prose_faults(text: str) -> Iterator[str]:
    """The avoided words in a piece of prose."""
    plain = LINK.sub("]", CODE.sub("``", text))
    yield from (f"avoid {found[0]!r}" for found in avoided().finditer(plain))
    yield from (f"avoid {found[0].strip()!r}; write 'is not a'" for found in IS_NO.finditer(plain))


def opening_faults(docstring: str) -> Iterator[str]:
    """A docstring has to open with what is returned or done."""
    first = SHAPE.sub("", docstring.strip()).split(maxsplit=1)
    if first and first[0].lower().rstrip(",;:.") in BAD_OPENINGS:
        yield f"docstring opens with {first[0]!r}"


def python_faults(path: Path) -> Iterator[tuple[int, str]]:
    """Line and fault of every breach in a Python file."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstrings = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings[id(first.value)] = first.value
    for each in docstrings.values():
        for fault in opening_faults(each.value):
            yield each.lineno, fault
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from ((node.lineno, fault) for fault in prose_faults(node.value))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from ((token.start[0], fault) for fault in prose_faults(token.string))


def markdown_faults(path: Path) -> Iterator[tuple[int, str]]:
    """Line and fault of every breach in a Markdown file."""
    in_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            if path != GLOSSARY:
                yield from ((number, fault) for fault in prose_faults(line))
            if len(line) > MAX_LINE and not line.startswith("|"):
                yield number, f"{len(line)} characters, at most {MAX_LINE}"


def faults(path: Path) -> list[str]:
    """Every breach in a file, one a line, with file and line number."""
    found = markdown_faults(path) if path.suffix == ".md" else python_faults(path)
    return [f"{path.relative_to(ROOT)}:{line}: {fault}" for line, fault in found]


def checked(paths: list[Path]) -> list[Path]:
    """The Python and Markdown files at or below these paths."""
    below = [path for root in paths for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    return [path for path in below if path.suffix in (".py", ".md") and "__pycache__" not in path.parts]


if __name__ == "__main__":
    listed = [fault for path in checked([Path(each).resolve() for each in sys.argv[1:]]) for fault in faults(path)]
    print("\n".join(listed) or "no faults")
    sys.exit(bool(listed))
