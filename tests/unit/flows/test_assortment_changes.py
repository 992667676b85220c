"""An assortment that changed: new, renamed and single classes are told in one line each, with files for the rest."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from flows.delivery.build import build_version
from flows.delivery.changes import describe_changes
from flows.feedback import feedback
from flows.ingest import Ingested, ingest
from flows.workspace import Workspace
from models.data.manifest import CHECKED, read_manifest, write_table
from tests.deliveries import deliver

FIRST = {"Milk": 6, "Rice": 5, "Tea": 1, "Salt": 1, "Oil": 4}

pytestmark = pytest.mark.dvc


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with the first assortment."""
    made = Workspace.init(tmp_path / "shop")
    ingest(made, deliver(tmp_path / "first", FIRST))
    return made


def rows(workspace: Workspace, name: str) -> list[dict[str, str]]:
    with (workspace.state / "ingest" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def again(workspace: Workspace, folder: Path, names: dict[str, str]) -> Ingested:
    """The same photos once more, with some of the classes under new names."""
    deliver(folder, {names.get(label, label): number for label, number in FIRST.items()})
    return ingest(workspace, folder)


def test_many_single_classes_are_one_line(tmp_path: Path) -> None:
    report = build_version(deliver(tmp_path / "s", FIRST), base=None, out=tmp_path / "v")
    assert report.warnings == ["2 classes have one photo, which stays in train: 'Salt', 'Tea'"]


def test_new_classes_are_counted_and_listed(workspace: Workspace, tmp_path: Path) -> None:
    more = deliver(tmp_path / "more", {"Beer": 3, "Wine": 3, "Rum": 3, "Gin": 1}, first_seed=500)
    warnings = ingest(workspace, more).report.warnings
    (line,) = (each for each in warnings if "are new" in each)
    assert line.startswith("4 classes are new, such as 'Beer', 'Gin', 'Rum'; ")
    assert line.endswith("classes.csv lists them")
    (line,) = (each for each in warnings if "have no test photo" in each)
    assert line.startswith("6 classes have no test photo, such as ")
    notes = {row["class"]: row["note"] for row in rows(workspace, "classes.csv")}
    assert notes["Gin"] == "new; one photo; no test photo"
    assert notes["Wine"] == "new; no test photo"
    assert notes["Milk"] == ""
    assert not (workspace.state / "ingest" / "renamed.csv").exists()


def write_tables(folder: Path, label: list[str], conflicts: list[tuple[str, str]]) -> Path:
    """Tables of a version of kept train photos, photo i with label i; conflicts: ids and labels of claims."""
    folder.mkdir()
    count, ids = len(label), [f"{number:016d}" for number in range(len(label))]
    contested = {photo for photo, _ in conflicts}
    kept = [photo not in contested for photo in ids]
    decision = ["" if each else "conflict" for each in kept]
    labels = {"id": ids, "given_label": label, "label": label, "split": ["train"] * count, "kept": kept, "decision": decision,
              "score": [None] * count, "round": [0] * count, "scored_by": [""] * count}  # fmt: skip
    write_table(folder, labels, name="labels")
    names = {"id": [photo for photo, _ in conflicts], "label": [each for _, each in conflicts]}
    write_table(folder, names | dict.fromkeys(("source", "path"), [""] * len(conflicts)), name="conflicts")
    return folder


def test_ten_thousand_new_classes_and_half_an_assortment_renamed_are_a_line_each(tmp_path: Path) -> None:
    old = [f"Product {number // 2:05d}" for number in range(40_000)]
    base = write_tables(tmp_path / "base", old, [])
    claims = [(f"{i:016d}", label) for i in range(20_000) for label in (old[i], f"{old[i]}, new design")]
    out = write_tables(tmp_path / "out", old + [f"Novelty {number:05d}" for number in range(10_000)], claims)
    lines = describe_changes(base, out, tmp_path)
    heads = ("10,000 classes are new", "20,000 classes have no test photo", "10,000 classes look renamed")
    assert [head for line, head in zip(lines, heads, strict=True) if line.startswith(head)] == list(heads)
    assert all(len(line) < 400 + len(str(tmp_path)) * 2 for line in lines)
    assert len((tmp_path / "renamed.csv").read_text().splitlines()) == 20_001
    classes = (tmp_path / "classes.csv").read_text()
    assert len(classes.splitlines()) == 30_001
    assert classes.count("new; one photo; no test photo") == 10_000


def test_renamed_classes_are_told_and_feedback_takes_the_new_names(workspace: Workspace, tmp_path: Path) -> None:
    report = again(workspace, tmp_path / "again", {"Milk": "Milk 1 l", "Rice": "Rice 500 g"}).report
    (line,) = (each for each in report.warnings if "renamed" in each)
    assert line.startswith("2 classes look renamed, such as 'Milk' to 'Milk 1 l': their 11 photos came again")
    renamed = rows(workspace, "renamed.csv")
    assert len(renamed) == 11
    assert {row["label"] for row in renamed} == {"Milk 1 l", "Rice 500 g"}

    done = feedback(workspace, workspace.state / "ingest" / "renamed.csv")
    manifest = read_manifest(workspace.data)
    assert done.data_version is not None
    taken = manifest.kept & (manifest.decision == CHECKED)
    assert sorted(manifest.label[taken]) == ["Milk 1 l"] * 6 + ["Rice 500 g"] * 5
    assert "Milk" not in manifest.label[manifest.kept]


def test_a_few_photos_under_another_name_are_no_renaming(workspace: Workspace, tmp_path: Path) -> None:
    deliver(tmp_path / "few", {"Butter": 2})  # two photos of Milk
    report = ingest(workspace, tmp_path / "few").report
    assert report.conflicts == 2
    assert not any("renamed" in each for each in report.warnings)
    mixed = again(workspace, tmp_path / "known", {"Oil": "Rice"}).report
    assert not any("renamed" in each for each in mixed.warnings), "Rice is a product already"
