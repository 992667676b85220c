"""Maps of data versions: their embeddings, principal components, files and places in the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flows.errors import InputError
from flows.map.chart import chart_of
from flows.map.layout import lay_out
from flows.map.pca import principal_components
from flows.map.points import Points, file_of, read_points, write_points
from flows.map.sources import Source, Vectors, find_source, read_vectors
from flows.review.photos import Photos, Words, numbers, words
from flows.review.selections import KEPT, Selection, Selections
from models.evaluation.scores import Scores, write_scores

DRAW = np.random.default_rng(0)


def vectors_of(*tables: np.ndarray) -> Vectors:
    ids = np.arange(sum(map(len, tables)), dtype=np.uint64)
    return Vectors(ids, tables, [np.arange(len(table)) for table in tables])


def write_fold(folder: Path, ids: list[str], name: str, table: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    count = len(ids)
    scores = Scores(np.array(ids), np.zeros(count, np.int64), np.ones(count, np.float32),
                    np.zeros((count, 1), np.int64), np.ones((count, 1), np.float32))  # fmt: skip
    write_scores(scores, folder / "scores.parquet")
    np.save(folder / name, table)
    return folder


def ids_of(*values: int) -> list[str]:
    return [f"{value:016x}" for value in values]


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    table = (DRAW.standard_normal((400, 12)) * np.geomspace(3, 0.1, 12) + 5).astype(np.float32)
    found = principal_components([table[:150], table[150:151], table[151:]], most=4)
    _, _, axes = np.linalg.svd(table - table.mean(axis=0), full_matrices=False)
    assert np.abs(np.sum(found.axes.T * axes[:4], axis=1)) == pytest.approx(1, abs=1e-4)
    assert found.mean == pytest.approx(table.mean(axis=0), abs=1e-4)
    whole = principal_components([table], most=4)
    assert whole.axes == pytest.approx(found.axes, abs=1e-3), "signs too"


def test_components_leave_out_rows_of_nan_and_there_are_at_most_d() -> None:
    table = DRAW.standard_normal((50, 3)).astype(np.float32)
    holed = np.concatenate([table, np.full((2, 3), np.nan, np.float32)])
    found = principal_components([holed], most=50)
    assert found.axes.shape == (3, 3)
    assert found.axes == pytest.approx(principal_components([table], most=50).axes, abs=1e-5)
    assert np.isnan(found.of(holed)[-2:]).all()


def test_blocks_are_unit_vectors_in_order_and_mark_what_cannot_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.map.sources.BLOCK_BYTES", 4 * 3 * 2)  # two rows
    first, second = np.array([[2, 0], [0, 3], [0, 0]], np.float16), np.array([[np.nan, 1], [np.inf, 1]], np.float16)
    vectors = vectors_of(first, second)
    blocks = np.concatenate(list(vectors.blocks()))
    assert blocks[:2].tolist() == [[1, 0], [0, 1]]
    assert np.isnan(blocks[2:]).all()
    chosen = vectors.select(np.array([False, True, False, False, True]))
    assert (chosen.id.tolist(), [rows.tolist() for rows in chosen.rows]) == ([1, 4], [[1], [1]])


def test_few_photos_need_no_umap() -> None:
    assert lay_out(vectors_of(np.ones((1, 8), np.float16)), seed=0).tolist() == [[0, 0]]
    three = lay_out(vectors_of(np.eye(3, dtype=np.float16)), seed=0)
    assert np.abs(three).max() == pytest.approx(1)
    assert len({tuple(point) for point in three.round(3).tolist()}) == 3
    holed = lay_out(vectors_of(np.array([[1, 0], [np.nan, 0], [0, 1]], np.float16)), seed=0)
    assert np.isnan(holed[:, 0]).tolist() == [False, True, False]
    assert np.isnan(lay_out(vectors_of(np.zeros((2, 4), np.float16)), seed=0)).all()


def scored(folder: Path, *scored_by: str) -> Photos:
    """Photos of which each was scored by one of these."""
    photos = photos_of(folder, classes=2, count=len(scored_by))
    return dataclasses.replace(photos, scored_by=words(pa.chunked_array([scored_by])))


def test_features_that_all_folds_share_come_first_and_then_what_shows_most_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = scored(tmp_path, "fold-0-a", "fold-1-b", "fold-0-a fold-1-b", "person mixed up", "")
    small = write_fold(tmp_path / "fold-0-a", ids_of(1), "embeddings.npy", np.ones((1, 2)))
    large = write_fold(tmp_path / "fold-1-b", ids_of(2, 3), "embeddings.npy", np.ones((2, 2)))
    assert find_source(tmp_path, photos) == Source((large,), "embeddings.npy"), "one network, that saw most photos"
    (small / "network.pt").write_bytes(b"tensors")
    assert find_source(tmp_path, photos) == Source((small,), "network.pt"), "embeds all photos"
    monkeypatch.setattr("flows.map.sources.MOST_COMPUTED", 1)
    assert find_source(tmp_path, photos) == Source((large,), "embeddings.npy"), "more than a network would embed"
    np.save(small / "features.npy", np.ones((1, 4)))
    np.save(large / "features.npy", np.ones((2, 4)))
    assert find_source(tmp_path, photos) == Source((small, large), "features.npy")


def test_of_too_many_photos_the_label_issues_are_embedded_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photos_of(tmp_path, classes=2, count=90)  # 30 in doubt
    assert len(Source((), "network.pt").rows(photos, seed=0)) == 90
    monkeypatch.setattr("flows.map.sources.MOST_COMPUTED", 40)
    rows = Source((), "network.pt").rows(photos, seed=0)
    assert (len(rows), set(rows) >= set(range(60, 90)), rows.tolist()) == (40, True, sorted(rows.tolist()))
    assert rows.tolist() == Source((), "network.pt").rows(photos, seed=0).tolist()
    assert rows.tolist() != Source((), "network.pt").rows(photos, seed=1).tolist()
    assert len(Source((), "features.npy").rows(photos, seed=0)) == 90


def test_a_version_without_networks_says_the_way_out(tmp_path: Path) -> None:
    for photos in (scored(tmp_path, ""), scored(tmp_path, "person by hand"), scored(tmp_path)):
        with pytest.raises(InputError, match=r"no network has looked .* `cleanshelf clean RECIPE`"):
            find_source(tmp_path, photos)
    with pytest.raises(InputError, match=f"no longer in {tmp_path}; retrain"):
        find_source(tmp_path, scored(tmp_path, "fold-0-gone"))


def test_each_photo_of_the_version_is_read_once(tmp_path: Path) -> None:
    first = write_fold(tmp_path / "0", ids_of(5, 1, 9), "features.npy", np.array([[5, 0], [1, 0], [9, 0]]))
    second = write_fold(tmp_path / "1", ids_of(9, 7), "features.npy", np.array([[0, 9], [0, 7]]))
    vectors = read_vectors(Source((first, second), "features.npy"), np.array([1, 7, 9, 11], np.uint64))
    assert vectors.id.tolist() == [1, 9, 7]
    assert np.concatenate(list(vectors.blocks())).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert not len(read_vectors(Source((first,), "features.npy"), np.zeros(0, np.uint64)))


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY"])
def test_damaged_embeddings_are_named(tmp_path: Path, damage: bytes) -> None:
    fold = write_fold(tmp_path / "fold", ids_of(1), "features.npy", np.ones((1, 2)))
    (fold / "features.npy").write_bytes(damage)
    with pytest.raises(InputError, match=r"features\.npy cannot be read .* clean the labels again"):
        read_vectors(Source((fold,), "features.npy"), np.array([1], np.uint64))
    np.save(fold / "features.npy", np.ones((3, 2)))
    with pytest.raises(InputError, match=r"\(3, 2\) values for 1 photos"):
        read_vectors(Source((fold,), "features.npy"), np.array([1], np.uint64))


def test_a_map_is_named_by_its_photos_and_its_networks(tmp_path: Path) -> None:
    one = write_fold(tmp_path / "one", ids_of(1), "features.npy", np.ones((1, 2)))
    photos, fewer = (photos_of(tmp_path, classes=2, count=count) for count in (9, 8))
    shown = Source((one,), "features.npy")
    name = file_of(tmp_path, shown, photos)
    relabelled = dataclasses.replace(photos, version="w", label=Words(photos.label.codes[::-1], photos.classes))
    assert name == file_of(tmp_path, shown, relabelled), "the same photos on the same map"
    others = [file_of(tmp_path, shown, fewer), file_of(tmp_path, Source((tmp_path / "other",), "features.npy"), photos),
              file_of(tmp_path, Source((one,), "embeddings.npy"), photos)]  # fmt: skip
    (one / "done.json").write_text("{}")
    assert len({name, *others, file_of(tmp_path, shown, photos)}) == 5


def test_points_are_written_whole_and_a_damaged_file_counts_as_missing(tmp_path: Path) -> None:
    points = Points(numbers(pa.array(ids_of(1, 2**64 - 1))), np.array([[0, 1], [-1, 0.5]], np.float32))
    file = tmp_path / "maps" / "a.parquet"
    write_points(file, points)
    found = read_points(file)
    assert found
    assert (found.id.tolist(), found.xy.tolist()) == ([1, 2**64 - 1], [[0, 1], [-1, 0.5]])
    assert [path.name for path in file.parent.iterdir()] == ["a.parquet"]
    file.write_bytes(file.read_bytes()[:-9])
    assert read_points(file) is None
    assert read_points(tmp_path / "none") is None


def photos_of(folder: Path, *, classes: int, count: int) -> Photos:
    """Photos whose id is their row plus 100, of classes that get smaller; the last third is in doubt."""
    label = Words(
        (np.sqrt(np.linspace(0, 0.999, count)) * classes).astype(np.int32), [f"c{n:02}" for n in range(classes)]
    )
    zeros, row = np.zeros(count, np.int32), np.arange(count)
    return Photos(
        version="v", folder=folder, id=(row + 100).astype(np.uint64), given=label, label=label,
        split=Words((row % 2).astype(np.int32), ["train", "val", "test"]),
        decision=Words((row >= count * 2 // 3).astype(np.int32), ["", "doubted"]), scored_by=Words(zeros, ["f"]),
        source=Words(zeros, [""]), shard=Words(zeros, [""]), kept=np.ones(count, np.bool_),
        score=np.where(row % 7, np.linspace(0, 1, count), np.nan).astype(np.float32),
        offset=zeros.astype(np.int64), size=zeros,
    )  # fmt: skip


def test_a_chart_names_large_classes_and_merges_small_ones(tmp_path: Path) -> None:
    photos = photos_of(tmp_path, classes=30, count=3000)
    points = Points(photos.id[::2], DRAW.uniform(-1, 1, (1500, 2)).astype(np.float32))
    chart = chart_of(photos, points)
    by_class, by_decision, by_score, by_split = chart.colourings
    assert [value["name"] for value in by_class.legend[:2]] == ["c29", "c28"], "largest first"
    assert (by_class.names[-1], len(by_class.names)) == ("12 other classes", 19)
    label = photos.label.codes[chart.row]
    assert set(label[by_class.code == 0]) == {29}
    assert set(label[by_class.code == 18]) == set(range(12))
    assert sum(value["count"] for value in by_class.legend) == len(chart.row) == 1500
    assert np.flatnonzero(by_decision.code)[0] == 1000, "those in doubt are drawn last"
    assert by_decision.legend[2] == {"name": "in doubt", "count": 500}
    score = photos.score[chart.row]
    assert (np.isnan(score) == (by_score.code == 10)).all()
    assert by_score.code[score == score[~np.isnan(score)].max()] == 9
    assert by_split.legend == [
        {"name": "train", "count": 1500},
        {"name": "val", "count": 0},
        {"name": "test", "count": 0},
    ]


@pytest.mark.parametrize(("classes", "names"), [(1, 1), (18, 18), (19, 19), (20, 19)])
def test_one_small_class_is_named_itself(tmp_path: Path, classes: int, names: int) -> None:
    photos = photos_of(tmp_path, classes=classes, count=2000)
    chart = chart_of(photos, Points(photos.id, np.zeros((2000, 2), np.float32)))
    assert len(chart.colourings[0].names) == names
    assert chart.colourings[0].names[-1].endswith("other classes") == (classes == 20)


def test_a_chart_leaves_out_photos_that_the_version_lacks_and_travels_as_bytes(tmp_path: Path) -> None:
    photos = photos_of(tmp_path, classes=2, count=9)
    xy = np.array([[0.5, -0.25], [0, 1], [-1, 0]], np.float32)
    chart = chart_of(photos, Points(np.array([7, 101, 108], np.uint64), xy))
    assert (chart.row.tolist(), chart.xy.tolist()) == ([1, 8], [[0, 1], [-1, 0]])
    sent = chart.to_bytes()
    assert len(sent) == 2 * (8 + 4)
    assert np.frombuffer(sent, "<f4", 4).tolist() == [0, 1, -1, 0]
    assert np.frombuffer(sent, np.uint8, 2, 16).tolist() == chart.colourings[0].code.tolist()
    nothing = chart_of(photos_of(tmp_path, classes=1, count=0), Points(np.array([7], np.uint64), xy[:1]))
    assert (len(nothing.row), nothing.to_bytes(), nothing.colourings[0].names) == (0, b"", [])


def test_an_area_holds_the_photos_within_it(tmp_path: Path) -> None:
    photos = photos_of(tmp_path, classes=2, count=400)
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 20)), axis=2).reshape(-1, 2)
    chart = chart_of(photos, Points(photos.id, grid.astype(np.float32)))
    triangle = [(-1.1, -1.1), (1.15, -1.1), (-1.1, 1.15)]
    rows = chart.inside(triangle)
    assert rows.tolist() == np.flatnonzero(grid.sum(axis=1) < 0.05).tolist()
    assert not len(chart.inside([(2, 2), (3, 2), (3, 3)]))


def test_a_selection_marks_its_photos_until_newer_ones_replace_it() -> None:
    selections = Selections()
    token = selections.add(Selection("v", np.array([3, 5, 9], np.uint64)))
    assert selections.get(token).marks(np.array([1, 3, 9, 11], np.uint64)).tolist() == [False, True, True, False]
    assert (
        not selections.get(selections.add(Selection("v", np.zeros(0, np.uint64)))).marks(np.array([1], np.uint64)).any()
    )
    for _ in range(KEPT):
        selections.add(Selection("v", np.zeros(0, np.uint64)))
    with pytest.raises(InputError, match="choose the photos on the map again"):
        selections.get(token)
