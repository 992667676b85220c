"""The worst label issues, and where most of them are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flows.report.label_issues import label_figures, lower_bound, noisiest, num_issues, worst
from flows.review.photos import read_photos
from flows.workspace.results import DataFolder
from models.data.manifest import INDEX, write_table
from models.evaluation.scores import Scores, write_scores

# id: given label, label, split, decision, score, scored by, supplier
PHOTOS = {
    "0000000000000000": ("tea", "tea", "train", "dropped", 0.2, "fold-0", "north"),
    "0000000000000001": ("tea", "milk", "train", "relabelled", 0.1, "fold-0", "north"),
    "0000000000000002": ("milk", "milk", "train", "doubted", 0.3, "fold-1", ""),
    "0000000000000003": ("milk", "milk", "train", "", 0.9, "fold-1", "south"),
    "0000000000000004": ("soap", "soap", "train", "", 0.45, "gone", "south"),
    "0000000000000005": ("soap", "soap", "train", "checked", 0.05, "person", "south"),
    "0000000000000006": ("soap", "soap", "val", "", 0.4, "fold-0 fold-1", "south"),
    "0000000000000007": ("soap", "soap", "test", "", None, "", "south"),
    "0000000000000008": ("soap", "soap", "train", "near-test", 0.01, "fold-0", "south"),
}


def write_data(folder: Path, *, suppliers: bool = True) -> DataFolder:
    n, columns = len(PHOTOS), [*zip(*PHOTOS.values(), strict=True)]
    index = {field.name: ["x"] * n if str(field.type) == "string" else [1] * n for field in INDEX}
    folder.mkdir()
    write_table(folder, index | {"id": [*PHOTOS], "source": columns[6] if suppliers else [""] * n}, name="index")
    names = ("given_label", "label", "split", "decision", "score", "scored_by")
    rest = {"kept": [each != "dropped" for each in columns[3]], "round": [1] * n, "id": [*PHOTOS]}
    write_table(folder, dict(zip(names, columns, strict=False)) | rest, name="labels")
    return DataFolder(folder)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return write_data(tmp_path / "data")


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Scores of two folds; classes: milk, soap, tea."""
    for fold, photos, target, top in (
        (
            "fold-0",
            ["0000000000000000", "0000000000000001", "0000000000000006"],
            [2, 2, 1],
            [[2, 1, 0], [1, 0, 2], [2, 1, 0]],
        ),
        (
            "fold-1",
            ["0000000000000002", "0000000000000003", "0000000000000006"],
            [0, 0, 1],
            [[2, 0, 1], [0, 1, 2], [2, 0, 1]],
        ),
    ):
        (tmp_path / "stages" / fold).mkdir(parents=True)
        probs = np.tile(np.float32([0.6, 0.3, 0.1]), (3, 1))
        scores = Scores(np.array(photos), np.array(target), probs[:, 0], np.array(top), probs)
        write_scores(scores, tmp_path / "stages" / fold / "scores.parquet")
    return tmp_path / "stages"


def test_the_worst_come_first_with_what_the_networks_saw_instead(data: DataFolder, stages: Path) -> None:
    rows = [tuple(row.values()) for row in worst(read_photos(data, version="v"), stages)]
    assert [(photo, given, suggested, decision) for photo, given, suggested, _, decision in rows] == [
        ("0000000000000001", "tea", "milk", "relabelled"),
        ("0000000000000000", "tea", "soap", "dropped"),
        ("0000000000000002", "milk", "tea", "doubted"),
        ("0000000000000006", "soap", "tea", ""),
        ("0000000000000004", "soap", None, ""),
    ], "neither what a person checked nor what ingestion left out; the scores of the last are gone"
    assert [row[3] for row in rows] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.45])


def test_products_and_suppliers_are_ranked(data: DataFolder, stages: Path) -> None:
    issues, products, sources = label_figures(data, stages)
    assert (issues.name, len(issues.rows)) == ("label issues", 5)
    assert [tuple(row.values()) for row in products.rows] == [("tea", 2, 2, 1.0), ("milk", 2, 1, 0.5)]
    assert [tuple(row.values()) for row in sources.rows] == [("north", 2, 2, 1.0)], (
        "south has none, and one photo has no supplier"
    )
    assert num_issues(data) == 3


def test_without_suppliers_there_is_no_figure_of_them(tmp_path: Path, stages: Path) -> None:
    assert label_figures(write_data(tmp_path / "data", suppliers=False), stages)[2].rows == []


def test_a_share_of_few_photos_is_less_certain() -> None:
    code = np.repeat([0, 1, 2], [1, 100, 100])
    flagged = np.concatenate([[True], np.arange(100) < 60, np.arange(100) < 20])
    rows = noisiest(code, flagged, ["one", "many", "few"], named="product")
    assert [row["product"] for row in rows] == ["many", "one", "few"]
    assert rows[0] == {"product": "many", "photos": 100, "label issues": 60, "share": 0.6}
    # Wilson (1927): 1 of 1 at z = 1.645 is at least 1 / (1 + z^2)
    assert lower_bound(np.array([1, 0, 0]), np.array([1, 5, 0])) == pytest.approx([1 / (1 + 1.645**2), 0, 0], abs=1e-12)
