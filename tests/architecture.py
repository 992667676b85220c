"""`make docs`: writes the list of rooms into docs/inside/architecture.md, from the import contracts and the docstrings."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "inside" / "architecture.md"
BEGIN, END = "<!-- rooms: written by `make docs` -->\n", "<!-- end of rooms -->"


def contracts() -> list[dict[str, list[str]]]:
    """The import contracts of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["tool"]["importlinter"]["contracts"])


def floors(package: str) -> list[list[str]]:
    """Rooms of a package, floor by floor from the top; empty if no contract orders them."""
    layers = next((each["layers"] for each in contracts() if package in each.get("containers", [])), [])
    return [[room.strip() for room in layer.split("|")] for layer in layers]


def packages() -> list[str]:
    """Names of the packages, those on top first."""
    layers = next(each["layers"] for each in contracts() if "layers" in each and "containers" not in each)
    return [name.strip() for layer in layers for name in layer.split("|")]


def first_line(path: Path) -> str:
    """First line of a module's docstring, fit for a cell of a table; empty if it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def modules(package: str) -> list[Path]:
    """Python files of a package, in the order of its floors, then of their paths."""
    order = {room: floor for floor, rooms in enumerate(floors(package)) for room in rooms}

    def key(path: Path) -> tuple[int, str]:
        room = path.relative_to(ROOT / package).with_suffix("").parts[0]
        return order.get(room, -1), path.with_suffix("").as_posix()

    return sorted((ROOT / package).rglob("*.py"), key=key)


def render() -> str:
    """The rooms of every package in Markdown: its floors, then each module with what it says of itself."""
    parts = []
    for package in packages():
        parts.append(f"### {package}\n")
        if drawn := floors(package):
            parts.append("```\n" + "".join(f"{' | '.join(rooms)}\n" for rooms in drawn) + "```\n")
        files = [path for path in modules(package) if path.stat().st_size]
        rows = (f"| `{path.relative_to(ROOT).as_posix()}` | {first_line(path)} |\n" for path in files)
        parts.append("| file | holds |\n|---|---|\n" + "".join(rows))
    return "\n".join(parts)


def written(page: str) -> str:
    """The page with the present rooms between its marks."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + render() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
