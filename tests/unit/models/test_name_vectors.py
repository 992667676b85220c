"""Files of vectors of names: what is read, what is refused before anything starts, and which members may have one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.manifest import read_manifest
from models.data.name_vectors import read_name_vectors
from models.errors import ConfigError
from models.networks.network import feature_width
from models.recipe.config import Clean, Member, Recipe, Train, digest, training_inputs
from models.training.check import check_names

CLASSES = ["Arla Milk", "Caf\u00e9", "soap"]
ROWS: list[tuple[Any, Any]] = [("soap", [1.0, 2.0]), ("Arla Milk", [0.5, -1.0])]


def written(path: Path, rows: list[tuple[Any, Any]] = ROWS, kind: pa.DataType | None = None) -> Path:
    names, vectors = zip(*rows, strict=True) if rows else ((), ())
    column = pa.array(vectors, kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({"class": pa.array(names, pa.string()), "vector": column}), path)
    return path


def read(path: Path, width: int | None = 2) -> np.ndarray:
    return read_name_vectors(path, CLASSES, key="members.0.name_vectors", width=width)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.large_list(pa.float16()),
                                  pa.list_(pa.float32(), 2)])  # fmt: skip
def test_vectors_lie_at_their_classes_and_others_are_zero(tmp_path: Path, kind: pa.DataType) -> None:
    rows = ROWS if "halffloat" not in str(kind) else [(name, np.float16(vector)) for name, vector in ROWS]
    assert read(written(tmp_path / "v.parquet", rows, kind)).tolist() == [[0.5, -1], [0, 0], [1, 2]]


def test_names_are_folded_like_every_label(tmp_path: Path) -> None:
    assert read(written(tmp_path / "v.parquet", [(" Cafe\u0301 ", [3.0, 4.0])]))[1].tolist() == [3, 4]


REFUSED = {
    "another width": ([("soap", [1.0, 2.0]), ("Arla Milk", [1.0])], "row 2: a vector of 1 numbers, but a feature"),
    "NaN": ([*ROWS, ("Caf\u00e9", [1.0, float("nan")])], "1 of 3 vectors hold NaN or infinity, first in row 3, 'Caf\u00e9'"),
    "infinity": ([("soap", [float("inf"), 1.0])], "hold NaN or infinity"),
    "a number left out": ([("soap", [None, 1.0])], "hold NaN or infinity"),
    "zeros": ([("soap", [0.0, 0.0])], "1 of 1 vectors are all zeros, first in row 1, 'soap'"),
    "a class twice": ([*ROWS, ("soap", [1.0, 1.0])], "2 of 3 rows are of a class that has more than one, first in row 1, 'soap'"),
    "no class of the data": ([("tea", [1.0, 1.0])], "1 of 1 names are of no class of this data version, first in row 1"),
    "no name": ([(None, [1.0, 2.0])], "or an empty cell"),
    "no vector": ([("soap", None)], "or an empty cell"),
    "no rows": ([], "has 0 rows"),
}  # fmt: skip


def test_names_of_products_that_the_data_lacks_are_ignored(tmp_path: Path) -> None:
    rows = [("tea", [9.0, 9.0]), *ROWS, ("tea", [9.0, 9.0])]
    assert read(written(tmp_path / "v.parquet", rows)).tolist() == read(written(tmp_path / "w.parquet")).tolist()


@pytest.mark.parametrize("case", REFUSED)
def test_what_cleaning_cannot_use_is_refused(case: str, tmp_path: Path) -> None:
    rows, message = REFUSED[case]
    file = written(tmp_path / "v.parquet", rows)
    with pytest.raises(ConfigError, match=message) as error:
        read(file)
    assert str(error.value).startswith(f"members.0.name_vectors: {file}")
    assert str(error.value).count("\n") == 0


def test_rows_of_different_widths_are_refused_without_a_backbone(tmp_path: Path) -> None:
    rows = [("soap", [1.0, 2.0]), ("Arla Milk", [1.0])]
    with pytest.raises(ConfigError, match="row 2: a vector of 1 numbers, but the first one has 2"):
        read(written(tmp_path / "v.parquet", rows), width=None)


def test_files_that_are_not_such_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"members\.0\.name_vectors: .*none\.parquet does not exist; correct the path"
    ):
        read(tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "text.parquet").write_text("class,vector\n")
    with pytest.raises(ConfigError, match=r"text\.parquet cannot be read as Parquet \(ArrowInvalid\)"):
        read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"class": ["soap"], "vectors": [[1.0]]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="has no column 'vector', but class, vectors"):
        read(tmp_path / "other.parquet")
    pq.write_table(pa.table({"class": ["soap"], "vector": ["1 2"]}), tmp_path / "texts.parquet")
    with pytest.raises(ConfigError, match="class as string and vector as string"):
        read(tmp_path / "texts.parquet")


def test_a_recipe_is_refused_before_anything_starts(data: Path, tmp_path: Path) -> None:
    member = Member(backbone="test_resnet", size=32, weights="net.pt")
    file, width = tmp_path / "v.parquet", feature_width(member)
    manifest = read_manifest(data)
    classes = manifest.classes
    named = recipe(dataclasses.replace(member, name_vectors=str(file)))
    written(file, [(name, [1.0] * width) for name in classes[1:]])
    check_names(named, manifest)
    written(file, [(classes[0], [1.0] * (width + 1))])
    with pytest.raises(
        ConfigError, match=rf"members\.0\.name_vectors: .* but a feature of the backbone has {width}; take the text"
    ):
        check_names(named, manifest)
    twice = recipe(*named.members, dataclasses.replace(member, seed=1, name_vectors="other.parquet"))
    written(file, [(classes[0], [1.0] * width)])
    with pytest.raises(ConfigError, match=r"members\.1\.name_vectors: other\.parquet, but an earlier member"):
        check_names(twice, manifest)


def recipe(*members: Member, **clean: Any) -> Recipe:
    return Recipe(
        name="x", members=members, train=Train(backbone_lr_scale=0.0), clean=Clean(**{"rule": "posterior"} | clean)
    )


NAMED = Member(weights="pretrained", name_vectors="v.parquet")
OTHER = Member(weights="pretrained", size=128)


def test_every_encoder_has_the_file_of_its_backbone() -> None:
    assert recipe(OTHER).name_vectors == []
    assert recipe(NAMED, OTHER).name_vectors == ["v.parquet", ""]
    assert recipe(OTHER, NAMED).name_vectors == ["", "v.parquet"]
    seed = dataclasses.replace(NAMED, seed=1, name_vectors="")
    assert recipe(seed, OTHER, NAMED).name_vectors == ["v.parquet", ""], "another seed has the same backbone"


@pytest.mark.parametrize(
    ("members", "clean", "message"),
    [
        ([OTHER, dataclasses.replace(NAMED, train={"backbone_lr_scale": 1.0})], {},
         r"members\.1\.name_vectors: names can be compared .* that of members\.1 is not frozen"),
        ([dataclasses.replace(OTHER, train={"backbone_lr_scale": 0.1}), NAMED], {},
         r"members\.1\.name_vectors: .* that of members\.0 is not frozen; set members\.0\.train\.backbone_lr_scale=0"),
        ([dataclasses.replace(NAMED, weights="")], {}, r"members\.0\.name_vectors: .* is not frozen; .* and its weights"),
        ([NAMED], {"rule": "linear"}, r'members\.0\.name_vectors: the rule clean\.rule = "linear" does not look at names'),
    ],
)  # fmt: skip
def test_members_whose_names_nobody_can_read_are_refused(
    members: list[Member], clean: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(*members, **clean)


def test_a_rule_that_ignores_names_is_fine_where_something_else_reads_them() -> None:
    for clean in (
        {"rule": "linear", "correct": True},
        {"rule": "linear", "relabel": 0.9},
        {"rule": "linear", "rounds": 0},
    ):
        assert recipe(NAMED, **clean).name_vectors == ["v.parquet"]


def test_trainings_do_not_depend_on_names() -> None:
    named, plain = (recipe(each) for each in (NAMED, dataclasses.replace(NAMED, name_vectors="")))
    assert digest(*training_inputs(named.of(0))) == digest(*training_inputs(plain.of(0)))
