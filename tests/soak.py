"""`make soak`: tests of kills and broken bytes with 20 kills of each operation; writes tables of docs/figures/reliability.md.

`python -m tests.soak PART...` runs some parts; the tables of the others stay as they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import hardware, item, versions

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "figures" / "reliability.md"
NUM_KILLS = 20
PARTS = {
    "models": ("kills_models", "kills_serving", "kills_flow", "power_loss_models"),
    "data": ("kills_data", "purge", "storage", "broken_data", "chain", "data_versions", "faults"),
}
COLUMNS = {
    "operation": "operation",
    "promises": "checked after each",
    "num_points": "fault points",
    "point": "killed at one",
    "moment": "killed at a moment",
    "early": "ended before its kill",
    "lost": "losses",
}


def main(parts: Sequence[str]) -> int:
    """Runs these parts, or all of them; returns the worst exit status of pytest."""
    return max(soak(part) for part in parts or PARTS)


def soak(part: str) -> int:
    """Runs the tests of one part, writes its table, returns the exit status of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "kills.jsonl"
        files = [f"tests/integration/test_{name}.py" for name in PARTS[part]]
        options = ["-m", "faults", "--kills", NUM_KILLS, "--kills-record", record, "--timeout", 7200]
        command = [sys.executable, "-m", "pytest", "-q", *files, *map(str, options)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        counts = [json.loads(line) for line in record.read_text().splitlines()]
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), part, table(counts)), encoding="utf-8")
    return done.returncode


def table(counts: Sequence[dict[str, Any]]) -> str:
    """Table of the page: machine, versions and seed, then a row per operation."""
    rows = [[str(count[column]) for column in COLUMNS] for count in counts]
    rows.append(["all", "", *(str(sum(count[column] for count in counts)) for column in [*COLUMNS][2:])])
    lines = [list(COLUMNS.values()), ["---", "---", *["--:"] * (len(COLUMNS) - 2)], *rows]
    named = {"hardware": hardware(), "versions": versions(), "seed of the moments and points": counts[0]["seed"]}
    facts = "".join(f"{item(f'{name}: {fact}')}\n" for name, fact in named.items()) + "\n"
    return facts + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def written(page: str, part: str, content: str) -> str:
    """The page with `content` between the marks of the part."""
    begin, end = f"<!-- soak: {part} -->\n", "<!-- end -->"
    before, _, rest = page.partition(begin)
    return before + begin + content + end + rest.partition(end)[2]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
