"""Checks of the page that a published run leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

from flows.report.html.pictures import shown_photos
from flows.report.run_report import Report


def check_page(folder: Path, report: Report, *, num_test: int, again: bool) -> None:
    """Checks that report.html of a published run has every photo and every measurement.

    again: another run came before it, whose folds and first member it reuses.
    """
    page, pictures = (folder / "report.html").read_text(), json.loads((folder / "pictures.json").read_text())
    assert pictures.keys() == set(shown_photos(report)) >= {answer.photo for answer in report.seen}
    assert len(re.findall(r'<img [^>]*src="data:', page)) >= len(pictures)
    assert "no picture<" not in page
    assert f"in use as version {report.model_version}" in page
    rows = {figure.name: figure.rows for figure in report.figures}
    issues = rows["label issues"]
    assert [row["score"] for row in issues] == sorted(row["score"] for row in issues)
    assert all(row["suggested label"] not in (None, row["given label"]) for row in issues if row["decision"])
    assert sum(row["photos"] for row in rows["reliability"]) == num_test
    reused = {row["step"] for row in rows["cost"] if row["reused"]}
    assert {"train member 0", "score fold 1", "gate"} <= {row["step"] for row in rows["cost"]}
    assert ({"train member 0", "score fold 0", "score fold 1"} <= reused) == again
    assert ("changes" in rows) == again
    products = rows["last run"][0]
    assert (products["measure"], products["last run"] == products["this run"]) == ("products", again)
