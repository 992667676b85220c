"""Runs benchmarks and writes docs/figures/benchmarks.md from their output: `make bench`, or `python benchmarks/run.py NAME...`.

Sections of benchmarks that were not run stay as they are, each with the hardware and versions that it names.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figure import item

from contract.environment import process_variables

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
CONVENTIONS = ("figure.py", "run.py")
UNMEASURED = "unmeasured: "  # a benchmark may say that this machine lacks what it needs
FACTS = ("claim: ", "hardware: ", "versions: ", UNMEASURED)  # lines that are repeated above a table
TOLD = "told"  # target of a figure without one
PREAMBLE = """# Benchmarks

Written by `make bench`. Each file of `benchmarks/` also runs alone.
Figures hold for the hardware and versions named with them.
"""
TABLE = ("| figure | value | target | met | baseline |", "|---|--:|--:|---|--:|")


@dataclass(frozen=True)
class Outcome:
    """Output of one benchmark, its exit status, and how it was run."""

    name: str
    lines: tuple[str, ...]
    status: int
    command: str

    @property
    def figures(self) -> list[dict[str, Any]]:
        """The figures: lines of JSON."""
        return [json.loads(line) for line in self.lines if line.startswith('{"figure":')]

    @property
    def failure(self) -> str:
        """Reason why there is no result; "" if there is one."""
        if self.status:
            return f"ended with status {self.status}: {self.lines[-1] if self.lines else 'without a word'}"
        is_told = self.figures or any(line.startswith(UNMEASURED) for line in self.lines)
        return "" if is_told else "printed no figure"

    def section(self) -> str:
        """Section of the page."""
        facts = [f"command: {self.command}", *(line for line in self.lines if line.startswith(FACTS))]
        text = [f"## {self.name}", "", *map(item, facts), ""]
        if self.failure:
            text += [f"**No result**: {self.failure}", ""]
        if self.figures:
            text += [*TABLE, *map(row, self.figures), ""]
        return "\n".join(text)


def main(
    names: Sequence[str] = (), folder: Path = FOLDER, page: Path = ROOT / "docs" / "figures" / "benchmarks.md"
) -> int:
    """Runs the named benchmarks of `folder`, or all, and writes their sections of `page`; 1 if any gave no result, else 0."""
    there = {path.stem: path for path in sorted(folder.glob("*.py")) if path.name not in CONVENTIONS}
    if unknown := sorted(set(names) - set(there)):
        print(f"no benchmark {', '.join(unknown)}; known are: {', '.join(there)}")
        return 2
    sections, failed = read_sections(page), 0
    for name in names or there:
        outcome = run(there[name])
        sections[name] = outcome.section()
        failed |= bool(outcome.failure)
        kept = [sections[each] for each in there if each in sections]
        page.write_text("\n".join([PREAMBLE, *kept]), encoding="utf-8")
    print(f"written: {page}")
    return int(failed)


def read_sections(page: Path) -> dict[str, str]:
    """The sections that are on the page, by name."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {each.partition("\n")[0]: f"## {each.strip()}\n" for each in found}


def run(path: Path) -> Outcome:
    """Runs one benchmark and shows its output as it comes."""
    print(f"== {path.name}", flush=True)
    paths = os.pathsep.join([str(ROOT), str(FOLDER)])
    command, commit = [sys.executable, "-u", str(path)], _commit()
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          env=process_variables(PYTHONPATH=paths)) as child:  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return Outcome(path.stem, tuple(lines), child.returncode, f"`python benchmarks/{path.name}`{commit}")


def _commit() -> str:
    """ ", commit " and the commit of the code; "" outside a repository of git."""
    found = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    return f", commit {found.stdout.strip()}" if found.returncode == 0 else ""


def row(figure: Mapping[str, Any]) -> str:
    """Row of a figure below TABLE."""
    value, target, baseline = (_cell(figure[key]) for key in ("value", "target", "baseline"))
    met = "" if figure["target"] == TOLD else "yes" if figure["met"] else "**no**"
    return f"| {_cell(figure['figure'])} | {value} | {target} | {met} | {baseline} |"


def _cell(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
