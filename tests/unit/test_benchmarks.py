"""Conventions of benchmarks: the output of a benchmark, and the page that `make bench` writes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEB = {"photos": 4000, "few": 4000, "classes": 200, "points": 2000, "seconds": 1, "presses": 6, "kills": 2}
GOOD = """
from figure import figure, header, unmeasured

header("one and one is two")
unmeasured("sum, on a GPU", "there is none")
figure("sum, pieces", 2, target="== 2", met=True, baseline=None)
figure("time | s", 0.123456, target=0.1, met=False, baseline=0.5)
figure("share", 0.5, target="told", met=True, baseline=None)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the benchmarks folder with one good benchmark."""
    copy = tmp_path / "with space" / "benchmarks"
    copy.mkdir(parents=True)
    (copy.parent / "docs" / "figures").mkdir(parents=True)
    for name in ("figure.py", "run.py"):
        (copy / name).write_bytes((ROOT / "benchmarks" / name).read_bytes())
    (copy / "good.py").write_text(GOOD)
    return copy


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)


def page(folder: Path) -> str:
    """The page that the runner wrote, with the load of the machine, which changes between runs, replaced by 1.0."""
    text = (folder.parent / "docs" / "figures" / "benchmarks.md").read_text(encoding="utf-8")
    return re.sub(r"load [\d.]+", "load 1.0", text)


def test_a_benchmark_runs_alone_and_names_its_machine_and_versions(folder: Path) -> None:
    done = run(folder / "good.py")
    claim, hardware, versions, unmeasured, *figures = done.stdout.splitlines()

    assert done.returncode == 0, done.stderr
    assert claim == "claim: one and one is two"
    assert hardware.startswith("hardware: ")
    assert " cores, GPU " in hardware
    assert f"python {sys.version.split()[0]}" in versions
    assert "numpy " in versions
    assert unmeasured == "unmeasured: sum, on a GPU: there is none"
    assert json.loads(figures[0]) == {
        "figure": "sum, pieces",
        "value": 2,
        "target": "== 2",
        "met": True,
        "baseline": None,
    }


def test_a_figure_that_is_not_a_number_is_an_error(folder: Path) -> None:
    (folder / "good.py").write_text(GOOD.replace("0.123456", "float('nan')"))

    assert run(folder / "good.py").returncode != 0


def test_the_page_holds_every_figure(folder: Path) -> None:
    done = run(folder / "run.py")

    assert done.returncode == 0, done.stderr
    assert "## good" in page(folder)
    assert "- command: `python benchmarks/good.py`\n- claim: one and one is two" in page(folder)
    assert "- unmeasured: sum, on a GPU: there is none" in page(folder)
    assert "| sum, pieces | 2 | == 2 | yes |  |" in page(folder)
    assert "| time \\| s | 0.1235 | 0.1 | **no** | 0.5 |" in page(folder)
    assert "| share | 0.5 | told |  |  |" in page(folder)
    assert "## figure" not in page(folder)


def test_the_page_names_the_commit_of_the_code(folder: Path) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert run(folder / "run.py").returncode == 0
    assert f"- command: `python benchmarks/good.py`, commit {commit[:8]}\n" in page(folder)


def test_the_other_sections_stay_when_one_benchmark_is_repeated(folder: Path) -> None:
    (folder / "other.py").write_text(GOOD.replace('"time | s", 0.123456', '"pace", 7'))
    assert run(folder / "run.py").returncode == 0
    first = page(folder)
    (folder / "other.py").write_text(GOOD.replace('"time | s", 0.123456', '"pace", 8'))
    again = subprocess.run(
        [sys.executable, str(folder / "run.py"), "other"], capture_output=True, text=True, check=True
    )

    assert "== good.py" not in again.stdout
    assert page(folder) == first.replace("| pace | 7 |", "| pace | 8 |")
    unknown = subprocess.run(
        [sys.executable, str(folder / "run.py"), "gone"], capture_output=True, text=True, check=False
    )
    assert (unknown.returncode, unknown.stdout) == (2, "no benchmark gone; known are: good, other\n")
    assert page(folder) == first.replace("| pace | 7 |", "| pace | 8 |")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("raise SystemExit('no disk')", "ended with status 1: no disk"), ("print('hello')", "printed no figure")],
)
def test_a_benchmark_without_a_result_is_reported_and_the_others_still_run(
    folder: Path, text: str, reason: str
) -> None:
    (folder / "bad.py").write_text(text)

    assert run(folder / "run.py").returncode == 1
    assert f"**No result**: {reason}" in page(folder)
    assert "| sum, pieces | 2 |" in page(folder)


def test_a_benchmark_that_lacks_what_it_measures_is_a_result(folder: Path) -> None:
    (folder / "good.py").write_text("from figure import unmeasured\nunmeasured('speed', 'there is no GPU')\n")

    assert run(folder / "run.py").returncode == 0
    assert "- unmeasured: speed: there is no GPU" in page(folder)
    assert "No result" not in page(folder)


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (("loss_cost.py", "--names", "ce", "nce", "--classes", "1000"), "p_y alone: time / cross-entropy"),
        (
            ("many_classes.py", "--classes", "100", "--methods", "ce", "gce", "--epochs", "2"),
            "best accuracy at C = 100",
        ),
        pytest.param(
            ("serving_int8.py", "--rounds", "2", "--profile"),
            "top-1 of int8 less that of float32, 1 crop",
            marks=pytest.mark.slow,
        ),
        (("drift.py",), "called watch or drifted, of 1000 halvings of 2000 answers"),
        (("gates.py", "--draws", "2"), "refused, 9 classes of 8 photos, falls by 0.00"),
        pytest.param(
            ("web.py", *(f"--{name}={value}" for name, value in WEB.items())),
            "review of 360 label issues, first paint",
            marks=[pytest.mark.slow, pytest.mark.browser],
        ),
        pytest.param(("map_layout.py", "--photos", "500", "--width", "8"), "500 photos x 8, s", marks=pytest.mark.slow),
        pytest.param(("near_duplicates.py",), "drawn products: candidates", marks=pytest.mark.slow),
        (("data_versions.py", "--rows", "500", "--photos", "40", "--small", "500"), "labels-only version, s"),
    ],
)
def test_a_small_run_ends_with_figures(arguments: tuple[str, ...], first: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / arguments[0]), *arguments[1:]]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    figures = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert figures[0]["figure"].startswith(first)
    assert all(set(figure) == {"figure", "value", "target", "met", "baseline"} for figure in figures)
