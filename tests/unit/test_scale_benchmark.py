"""The benchmark of a whole retraining: a small size of it runs, and what it says of stages is what they took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scale
from scaling.assortment import FOLDER, SIDE, deliver, name_of
from scaling.page import exponent_of, stage_table, write
from scaling.stages import Place, Size, step_of
from scaling.watched import Taken, Watch, merged

from pixels import decode

ROOT = Path(__file__).resolve().parents[2]


def test_an_assortment_has_a_tail_wrong_labels_and_copies(tmp_path: Path) -> None:
    deliver(tmp_path / "d", classes=50, photos=2000)
    truth = pq.read_table(tmp_path / "d.truth.parquet")
    true, given = (np.array(truth[name]) for name in ("true", "label"))
    sizes = np.sort(np.unique(true, return_counts=True)[1])
    assert len(sizes) == 50
    assert sizes[-1] > 8 * sizes[0]
    assert 0.05 < np.mean(true != given) < 0.1
    assert given[0].startswith("Product ")
    assert name_of(7) == "Product 000007"
    pictures = [np.asarray(decode((tmp_path / "d" / path).read_bytes())) for path in truth["path"].to_pylist()[:FOLDER]]
    assert pictures[0].shape == (SIDE, SIDE, 3)
    own = [i for i in range(FOLDER) if true[i] == true[0]]
    other = [i for i in range(FOLDER) if true[i] != true[0]]
    middle = np.mean([pictures[i] for i in own], 0)
    near, far = (np.mean([np.abs(pictures[i] - middle).mean() for i in rows]) for rows in (own, other))
    assert near < 0.6 * far, "photos of a class are similar"


def test_what_a_command_takes_is_told_by_stage(tmp_path: Path) -> None:
    stage = ["first"]
    work = "import time; b = bytearray(200_000_000); time.sleep(1)\nwhile time.process_time() < 1: pass\ntime.sleep(1)"
    watch = Watch(lambda: stage[0])
    assert watch.run([sys.executable, "-c", work], log=tmp_path / "log", variables={}) == 0
    assert 2.5 < watch.taken["first"].seconds < 60
    assert 0.9 < watch.taken["first"].processor_s < 1.5
    assert 0.2 < watch.taken["first"].peak_bytes / 1e9 < 0.4
    assert watch.run([sys.executable, "-c", "raise SystemExit(7)"], log=tmp_path / "log", variables={}) == 7


def test_the_step_under_way_is_read_from_the_record(tmp_path: Path) -> None:
    assert step_of(tmp_path) == "between steps"
    record = tmp_path / "runs" / "20260101-000000-abc" / "events.jsonl"
    record.parent.mkdir(parents=True)
    events = [{"event": "started", "step": "a"}, {"event": "finished", "step": "a"}, {"event": "started", "step": "b"}]
    record.write_text("\n".join(map(json.dumps, events)) + '\n{"event": "fin')
    assert step_of(tmp_path) == "b"


def test_growth_is_that_of_the_time_per_photo() -> None:
    few, many = Size(10, 1000), Size(100, 10_000)
    assert exponent_of(Taken(processor_s=1), Taken(processor_s=10), few, many) == pytest.approx(0)
    assert exponent_of(Taken(processor_s=1), Taken(processor_s=100), few, many) == pytest.approx(1)


def test_folds_side_by_side_are_one_row() -> None:
    folds = {"score fold 1": Taken(20.0, 30.0, 5, 6), "gate": Taken(1.0), "score fold 0": Taken(0.5, 0.25, 7, 8)}
    assert merged(folds) == {"score fold": Taken(20.5, 30.25, 7, 14), "gate": Taken(1.0)}
    assert folds["score fold 1"] == Taken(20.0, 30.0, 5, 6)


def test_the_page_has_a_row_for_each_stage_with_the_growth_from_each_size(tmp_path: Path) -> None:
    small, middle, large = (Place(tmp_path, Size(classes, 5 * classes)) for classes in (100, 1000, 10_000))
    small.note({"export": Taken(12.0, 10.0, 2 * 10**9, 5 * 10**6), "draw": Taken(1.0, 0.5)})
    middle.note({"export": Taken(150.0, 200.0, 3 * 10**9, 6 * 10**6)})
    large.note({"export": Taken(1500.0, 2000.0, 3 * 10**9, 6 * 10**6)})
    assert stage_table([small, middle, large])[2:] == [
        "| export | 12.0 | 10.0 | 2.00 | 5 | 150.0 | 200.0 | 3.00 | 6 | 1,500.0 | 2,000.0 | 3.00 | 6 | +0.15 | +0.00 |",
        "| draw | 1.0 | 0.5 | 0.00 | 0 |  |  |  |  |  |  |  |  |  |  |",
    ]


def test_a_page_keeps_the_sections_that_were_not_measured(tmp_path: Path) -> None:
    page, place = tmp_path / "page.md", Place(tmp_path, Size(1000, 5000, members=2))
    page.write_text("# Old\n\n## Notes\n\nJobs ran beside it.\n\n## Plan\n\nold\n\n## Further\n\nkept\n")
    place.note({"export": Taken(12.0, 10.0, 10**9), "gate": Taken(2.0)})
    (place.folder / "balance.profile.json").write_text(json.dumps({"aten::mm": 3.0, "aten::exp": 1.0}))
    run = place.workspace / "runs" / "20260101-000000-abc" / "run.json"
    run.parent.mkdir(parents=True)
    rows = [{"stage": "calibrate", "planned s": 130.0, "took s": 100.0, "off by %": 30}]
    run.write_text(json.dumps({"figures": [{"title": "Plan and time taken", "rows": rows}]}))
    before = len(scale.PRINTED)
    scale.tell(place)
    scale.pages.compare_plan(place.workspace, place.at)
    write(page, [place], scale.PRINTED[before:])
    text = page.read_text()
    headings = [line.strip("# ") for line in text.splitlines() if line.startswith("#")]
    assert headings == ["A whole retraining at any size", "Targets", "Stages", "Plan", "Profile", "Notes", "Further"]
    assert "python benchmarks/scale.py --classes 1000 --members 2 --page" in text
    assert "| export, parity and gate, min | 0.233 | <= 5 | yes |  |" in text
    assert "| plan of stages over a minute, off by % at most | 30 | <= 25 | **no** |  |" in text
    assert "| calibrate | 130.0 | 100.0 | +30 | **no** |" in text
    assert "| balance | aten::mm | 3.0 | 75% |" in text
    assert "\n## Notes\n\nJobs ran beside it.\n" in text
    write(page, [place], scale.PRINTED[before:])
    assert page.read_text() == text

    cleaning = Place(tmp_path, Size(1000, 6000))
    cleaning.note({"cleaning": Taken(660.0, 600.0, 10**9)})
    scale.tell(cleaning)
    write(page, [cleaning], scale.PRINTED[before:])
    after = page.read_text()
    assert "| cleaning, min | 11 | <= 10 | **no** |  |" in after
    assert (
        "`python benchmarks/scale.py --classes 1000 --photos 6000 --members 1 --page --stage cleaning`"
        in after.replace("\n", " ")
    )
    assert max(len(line) for line in after.splitlines() if not line.startswith("|")) <= 120
    assert after.replace(after[after.index("## A round") : after.index("## Notes")], "") == text


def test_what_ended_is_remembered(tmp_path: Path) -> None:
    place = Place(tmp_path, Size(10, 50))
    place.note({"draw": Taken(1.0, 0.5, 2, 3)})
    place.note({"ingest": Taken(2.0)})
    assert Place(tmp_path, Size(10, 50)).taken == {"draw": Taken(1.0, 0.5, 2, 3), "ingest": Taken(2.0)}
    assert Place(tmp_path, Size(11, 50)).taken == {}


@pytest.mark.dvc
def test_a_small_size_runs_and_what_ended_is_not_run_again(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/scale.py", "--classes", "12", "--photos", "120", "--place", str(tmp_path)]
    words += ["--stage", "draw", "ingest", "cleaning"]
    done = subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = {line["figure"]: line for line in map(json.loads, done.stdout.splitlines()[3:])}
    assert {"12 x 120: ingest, s", "12 x 120: cleaning, peak of any process, GB"} <= figures.keys()
    assert figures["12 x 120: cleaning, min"]["target"] == "<= 10"
    assert (tmp_path / "12-120-1" / "workspace" / "data.dvc").exists()
    again = subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert again.stderr == ""
    assert again.stdout.splitlines()[3:] == done.stdout.splitlines()[3:]


@pytest.mark.slow
@pytest.mark.dvc
@pytest.mark.prefect
@pytest.mark.triton
@pytest.mark.timeout(1200)
def test_a_whole_retraining_of_a_small_size_is_measured_and_makes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    words = [sys.executable, "benchmarks/scale.py", "--classes", "12", "--photos", "600", "--members", "2"]
    words += ["--epoch-length", "256", "--place", str(tmp_path / "scale"), "--page", str(page)]
    words += ["--stage", "draw", "ingest", "retrain", "profile", "serve"]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    figures = {line["figure"].removeprefix("12 x 600: "): line["value"] for line in lines}
    for name in ("ingest", "plan", "train member", "score fold", "balance member", "calibrate", "export", "serve"):
        assert figures[f"{name}, s"] > 0, name
    assert figures["plan of train member, off by %"] > -100
    assert 0 < figures["config.pbtxt, MB"] < 0.1
    assert 0 < figures["report.md, MB"] < 1
    assert 1 < figures["graph, of the size of its weights"] < 2
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Targets",
        "## Stages",
        "## Plan",
        "## Profile",
    ]
    for row in ("| export, parity and gate, min |", "| load and check of the version, s |", "| config.pbtxt, MB |"):
        assert row in text
    assert "| score fold |" in text
    assert "| score fold 0 |" not in text
    assert "| train member |" in text.partition("## Plan")[2]
