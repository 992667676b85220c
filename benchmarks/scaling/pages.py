"""Pages of a run in a browser, and its plan against what it took."""

from __future__ import annotations

import json
from pathlib import Path

from browser.review_page import first_paint_s
from browser.told import at_most
from figure import figure, unmeasured

from tests.browser import CHROMIUM, chromium, served_pages

MEGABYTES, PAINT_S = 1.0, 1.0
LONG_S, OFF = 60.0, 25.0  # of a stage, and % that its plan may be off


def compare_plan(workspace: Path, at: str) -> None:
    """Prints how far the plan of the newest run was off, in % of the seconds taken; only long stages have a target."""
    runs = sorted(workspace.glob("runs/*-*/run.json"))
    figures = json.loads(runs[-1].read_bytes()).get("figures", ()) if runs else []
    rows = next((each["rows"] for each in figures if each["title"] == "Plan and time taken"), [])
    for row in rows:
        is_long = row["took s"] >= LONG_S
        figure(f"{at}: plan of {row['stage']}, off by %", row["off by %"],
               target=f"within {OFF:g}" if is_long else "told",
               met=not is_long or abs(row["off by %"]) <= OFF, baseline=row["took s"])  # fmt: skip


def measure(workspace: Path, at: str) -> None:
    """Prints the figures of the newest run that has a report; `at`: words before their names."""
    reports = sorted(workspace.glob("runs/*-*/report.html"))
    if not reports:
        unmeasured(f"{at}: page of a run", "no run has a report")
        return
    run = reports[-1].parent
    for name in ("report.md", "report.html"):
        at_most(f"{at}: {name}, MB", (run / name).stat().st_size / 1e6, MEGABYTES)
    if CHROMIUM is None:
        unmeasured(f"{at}: first paint", "there is no Chromium")
        return
    with served_pages(workspace) as address, chromium() as browser:
        tab = browser.new_page()
        places = {"home": f"{address}/", "page of the run": f"{address}/runs/{run.name}",
                  "report": (run / "report.html").as_uri()}  # fmt: skip
        for name, place in places.items():  # pages serve the report without scripts, and a script reads the time
            at_most(f"{at}: {name}, first paint, s", first_paint_s(tab, place), PAINT_S)
