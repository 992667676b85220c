"""The benchmark of a whole retraining: a small size of it runs, and what it says of stages is what they took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scale import exponent_of, page
from scaling.assortment import FOLDER, SIDE, deliver, name_of
from scaling.stages import Place, Size, step_of
from scaling.watched import Taken, Watch

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
    assert exponent_of(Taken(processor_s=1), Taken(processor_s=10), 1000, 10_000, 10) == pytest.approx(0)
    assert exponent_of(Taken(processor_s=1), Taken(processor_s=100), 1000, 10_000, 10) == pytest.approx(1)


def test_the_page_has_a_row_for_each_stage(tmp_path: Path) -> None:
    small, large = (Place(tmp_path, Size(classes, 5 * classes)) for classes in (100, 1000))
    small.note({"export": Taken(12.0, 10.0, 2 * 10**9, 5 * 10**6), "draw": Taken(1.0, 0.5)})
    large.note({"export": Taken(150.0, 200.0, 3 * 10**9, 6 * 10**6)})
    rows = page([small, large]).splitlines()[-2:]
    assert rows == [
        "| export | 12.0 | 10.0 | 2.00 | 5 | 150.0 | 200.0 | 3.00 | 6 | +0.30 |",
        "| draw | 1.0 | 0.5 | 0.00 | 0 |  |  |  |  |  |",
    ]


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
    assert figures["12 x 120: cleaning, peak of any process, GB"]["target"] == "<= 4"
    assert (tmp_path / "12-120-1" / "workspace" / "data.dvc").exists()
    again = subprocess.run(words, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert again.stderr == ""
    assert again.stdout.splitlines()[3:] == done.stdout.splitlines()[3:]
