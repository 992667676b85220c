"""Selection photos, trusted photos, and batches of these."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.manifest import UNLABELLED, read_manifest
from models.data.trusted import Draws, read_ids, selection_photos, trusted_rows, with_selection_photos
from models.errors import ConfigError


def test_batches_of_trusted_photos_are_balanced_and_repeatable() -> None:
    uneven = Draws(np.repeat([0, 1, 2], [80, 15, 5]), batch_size=32, seed=3)
    drawn = np.concatenate([uneven[n] for n in range(60)])
    assert np.bincount(uneven.target[drawn]) / len(drawn) == pytest.approx([1 / 3] * 3, abs=0.05)
    assert np.array_equal(uneven[7], Draws(uneven.target, batch_size=32, seed=3)[7])
    even = Draws(np.repeat([0, 1], 5), batch_size=5, seed=0)
    assert sorted([*even[0], *even[1]]) == list(range(10)), "every photo once in a pass"
    assert len(Draws(np.array([0, 1]), batch_size=64, seed=0)[9]) == 2


def test_ids_are_read_from_text_csv_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x1\n\n x2 \n")
    (tmp_path / "a.csv").write_text("label,id\nbean,x1\ncorn,x2\n")
    pq.write_table(pa.table({"id": ["x1", "x2"], "more": [1, 2]}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text('{"id": "x1"}\n{"id": "x2"}\n')
    for kind in ("txt", "csv", "parquet", "jsonl"):
        assert read_ids(tmp_path / f"a.{kind}", key="any") == ["x1", "x2"]
    with pytest.raises(ConfigError, match=r"^any: /dev/null: is a pipe or a device; give"):
        read_ids(Path("/dev/null"), key="any")
    (tmp_path / "a.csv").write_text("id,ID\nx1,x2\n")
    with pytest.raises(ConfigError, match=r"^any: .*a\.csv: column 'id' occurs 2 times \('id', 'ID'\); keep one"):
        read_ids(tmp_path / "a.csv", key="any")


def test_missing_classes_are_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = read_manifest(data)
    trusted_rows(
        "val", dataclasses.replace(manifest, split=np.where(manifest.label == "corn", "train", manifest.split))
    )
    assert "2 of 4 classes have no trusted photo" in caplog.text


def test_without_a_file_the_validation_photos_judge(data: Path) -> None:
    manifest = read_manifest(data)
    assert with_selection_photos(manifest, "") is manifest
    doubted = dataclasses.replace(manifest, kept=np.zeros(len(manifest), bool))
    assert np.array_equal(selection_photos(doubted), manifest.split == "val"), "whatever cleaning says"
    unknown = dataclasses.replace(manifest, label=np.where(manifest.split == "val", "new", manifest.label))
    assert not selection_photos(unknown).any()


def test_trusted_photos_judge_and_the_others_are_learnt_from(data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    train = np.flatnonzero(manifest.split == "train")
    chosen = train[[0, -1]]
    doubted = dataclasses.replace(manifest, kept=~np.isin(np.arange(len(manifest)), chosen))
    (tmp_path / "ids.txt").write_text("\n".join(manifest.id[chosen]))
    seen = with_selection_photos(doubted, str(tmp_path / "ids.txt"))
    assert np.flatnonzero(selection_photos(seen)).tolist() == sorted(chosen.tolist()), "kept, whatever cleaning says"
    assert (seen.split[manifest.split == "val"] == "train").all()
    assert np.array_equal(seen.split == "test", manifest.split == "test")
    assert seen.classes == manifest.classes


@pytest.mark.parametrize("key", ["proof.photos", "meta.photos"])
def test_a_photo_without_a_label_cannot_be_trusted(unlabelled: Path, tmp_path: Path, key: str) -> None:
    read = {"proof.photos": with_selection_photos, "meta.photos": lambda photos, file: trusted_rows(file, photos)}[key]
    manifest, file = read_manifest(unlabelled), tmp_path / "ids.txt"
    file.write_text(manifest.id[manifest.split == UNLABELLED][0])
    with pytest.raises(ConfigError, match=rf"^{key}: .*ids\.txt: 1 photos have no label, first '[0-9a-f]+'; remove"):
        read(manifest, str(file))


def test_judges_leave_each_class_a_photo_to_learn_from(data: Path, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    label = manifest.label[manifest.split == "train"][0]
    whole = manifest.id[(manifest.label == label) & (manifest.split != "test")]
    (tmp_path / "ids.txt").write_text("\n".join(whole))
    with pytest.raises(ConfigError, match=rf"proof.photos: .*ids.txt: names every photo of 1 classes, first '{label}'"):
        with_selection_photos(manifest, str(tmp_path / "ids.txt"))
    (tmp_path / "ids.txt").write_text("unknown")
    with pytest.raises(ConfigError, match=r"proof.photos: .*ids.txt: 1 of 1 ids are not in this data version"):
        with_selection_photos(manifest, str(tmp_path / "ids.txt"))
