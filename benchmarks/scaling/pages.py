"""Contents of a workspace after a whole retraining: its files against their bounds, pages in a browser, its plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from browser.chromium import CHROMIUM, chromium, served_pages
from browser.review_page import first_paint_s
from browser.told import at_most, told
from figure import unmeasured

from flows.registry.versions import MODEL
from flows.workspace import Workspace
from scaling.stages import newest

MEGABYTES, PAINT_S = 1.0, 1.0
WEIGHTS = 1.1  # size of a graph, of its weights at most
LONG_S, OFF = 60.0, 25.0  # of a stage, and % that its plan may be off


def plan_rows(workspace: Path) -> list[dict[str, Any]]:
    """Rows of planned and taken seconds of the newest run."""
    runs = sorted(workspace.glob("runs/*-*/run.json"))
    figures = json.loads(runs[-1].read_bytes()).get("figures", ()) if runs else []
    return next((each["rows"] for each in figures if each["title"] == "Plan and time taken"), [])


def compare_plan(workspace: Path, at: str) -> None:
    """Prints how far the plan of the newest run was off, in % of the seconds taken; only long stages have a target."""
    rows = plan_rows(workspace)
    for row in rows:
        told(f"{at}: plan of {row['stage']}, off by %", row["off by %"], row["took s"])
    long = [abs(row["off by %"]) for row in rows if row["took s"] >= LONG_S]
    if long:
        at_most(f"{at}: plan of stages over a minute, off by % at most", max(long), OFF)


def weigh(workspace: Path, at: str) -> None:
    """Prints the size of the newest exported graph beside that of its weights, and that of config.pbtxt."""
    stages = workspace / "runs" / "stages"
    members = {folder.name.split("-")[1] for folder in stages.glob("balance-*")}
    weights = [newest(stages, f"balance-{member}-*/network.pt") for member in sorted(members)]
    weights.append(newest(stages, "calibrate-*/discriminants.npz"))
    needed = sum(file.stat().st_size for file in weights)
    graph = sum(file.stat().st_size for file in newest(stages, "export-*/model.onnx").parent.glob("model.onnx*"))
    at_most(f"{at}: graph, of the size of its weights", graph / needed, WEIGHTS, needed)
    config = Workspace(workspace).repository / MODEL / "config.pbtxt"
    at_most(f"{at}: config.pbtxt, MB", config.stat().st_size / 1e6, MEGABYTES)


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
