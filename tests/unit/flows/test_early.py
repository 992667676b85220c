"""No import of Prefect or torch, and no server, for input that is refused and for verbs that change small things."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.workspace import Workspace
from tests.command_line import ROOT, snapshot
from tests.deliveries import deliver

EARLY = {
    ("ingest", "none"): "none: no such file or folder; give a folder per class, or a manifest",
    ("ingest", "columns.csv"): "columns.csv: unknown column 'price'; known are path, label",
    ("ingest", "columns.csv", "--dry-run"): "columns.csv: unknown column 'price'; known are path, label",
    ("feedback", "none.csv"): "none.csv",
    ("feedback", "columns.csv"): "columns.csv: unknown column 'price'; known are id, path, label, reason",
    ("retrain", "smoke", "--set", "members.1.backbone=resent18"): "no model 'resent18' (did you mean resnet18",
    ("clean", "smoke", "--set", "members.0.backbone=resent18"): "no model 'resent18' (did you mean resnet18",
    ("schedule", "smoke", "--set", "members.0.backbone=resent18"): "no model 'resent18' (did you mean resnet18",
    ("schedule", "smoke", "--every", "soon"): "--every 'soon' is not a period",
    ("publish", "7"): "'7' matches no run; there are: none yet",
    ("publish", "7", "--despite", " "): "--despite: the reason is blank",
    ("promote", "7"): "there is no model version 7",
    ("drift", "none"): "none: no such file or folder; give a folder of recent photos",
}

SCRIPT = """
import json, sys
from flows.cli import main
sys.modules |= dict.fromkeys(("prefect", "torch", "dvc.repo"))
for verb in json.loads(sys.argv[1]):
    sys.argv[1:] = verb
    try:
        main()
    except SystemExit as end:
        print(end.code, file=sys.stderr)
"""


def test_input_is_refused_before_prefect_or_torch_is_imported(tmp_path: Path) -> None:
    """Covers everything that would take seconds: neither can be imported, so that nothing can have been started."""
    shop = Workspace.init(tmp_path / "shop").root
    (tmp_path / "columns.csv").write_text("path,label,price\na.png,a,3\n")
    commands = json.dumps([[*verb, "-w", str(shop)] for verb in EARLY])
    before = snapshot(shop)
    done = subprocess.run([sys.executable, "-c", SCRIPT, commands], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(EARLY), done.stderr
    for verb, message, line, code in zip(EARLY, EARLY.values(), lines[::2], lines[1::2], strict=True):
        assert (message in line, code) == (True, "2"), (verb, line)
    assert snapshot(shop) == before


@pytest.mark.dvc
def test_verbs_that_change_small_things_import_neither_prefect_nor_torch_nor_the_repository_of_dvc(
    tmp_path: Path,
) -> None:
    """Each of the three takes as long as all else that they do."""
    shop = Workspace.init(tmp_path / "shop").root
    deliver(tmp_path / "delivery", {"tea": 4, "milk": 4})
    (tmp_path / "people.csv").write_text("path,label\ntea/photo 0.png,tea\n")
    verbs = [
        ["ingest", "delivery"], ["feedback", "people.csv"], ["data", "log"], ["data", "show"], ["data", "push"],
        ["data", "verify"], ["data", "rollback", "selected"],
    ]  # fmt: skip
    commands = json.dumps([[*verb, "-w", str(shop)] for verb in verbs])
    variables = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {
        "PYTHONPATH": str(ROOT)
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT, commands], cwd=tmp_path, env=variables,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert [line for line in done.stderr.splitlines() if line.isdecimal()] == ["0"] * len(verbs), done.stderr
