"""Data versions for tests: two small ones, and access to their bytes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from durable import link
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.workspace import Workspace
from models.data.manifest import read_table, write_table, write_version
from tests import verbs
from tests.deliveries import deliver


def commit_first(versions: DataVersions, tmp_path: Path, *, format_1: bool = False) -> str:
    source = deliver(tmp_path / "source", {"Red Mug": 6, "Kid's cup": 6})
    folder = versions.new_folder()
    build_version(source, base=None, out=folder)
    if format_1:
        as_format_1(folder)
    return versions.commit(folder, step="ingest", message="first delivery")


def commit_drop(versions: DataVersions, *, num: int) -> str:
    """Commits the selected version with its first `num` photos dropped; returns the new id."""
    folder = drop(versions.materialise("selected"), versions.new_folder(), num=num, step="clean-1")
    return versions.commit(folder, step="clean-1", message=f"{num} dropped")


def drop(data: Path, folder: Path, *, num: int, step: str) -> Path:
    """Fills `folder` with the data version in folder `data`, without its first `num` photos."""
    for path in data.rglob("*.*"):
        if path.name not in ("labels.parquet", "VERSION.json"):
            link(path, folder / path.relative_to(data))
    labels = read_table(data, name="labels").to_pydict()
    labels["kept"][:num] = [False] * num
    labels["decision"][:num] = ["dropped"] * num
    write_table(folder, labels, name="labels")
    write_version(folder, parent=data.name, step=step)
    return folder


def two_versions(place: Path, *, photos: int) -> Workspace:
    """The workspace `shop` with two versions, the second selected, and a delivery `more` beside it.

    The first version has `photos` photos per class.
    """
    deliver(place / "first", {"a": photos, "b b": photos})
    deliver(place / "second", {"a": 2, "c": 2}, first_seed=100)
    deliver(place / "more", {"b b": 3, "it's": 2}, first_seed=200)
    shop = Workspace.init(place / "shop")
    for source in ("first", "second"):
        verbs.ingest(shop, place / source)
    return shop


def as_format_1(folder: Path) -> None:
    """Rewrite the files of a version as the former release wrote them: looks.parquet, and column `judge` of the labels."""
    labels = pq.read_table(folder / "labels.parquet")
    names = ["judge" if name == "scored_by" else name for name in labels.column_names]
    (folder / "labels.parquet").unlink()
    pq.write_table(labels.rename_columns(names), folder / "labels.parquet", compression="zstd")
    fingerprints = pq.read_table(folder / "fingerprints.parquet")
    (folder / "fingerprints.parquet").unlink()
    pq.write_table(fingerprints.rename_columns(["id", "look"]), folder / "looks.parquet", compression="zstd")
    facts = json.loads((folder / "VERSION.json").read_text(encoding="utf-8"))
    (folder / "VERSION.json").unlink()
    text = json.dumps(facts | {"format": 1}, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    (folder / "VERSION.json").write_text(text, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    """Flips one bit in the middle of a file, even of a read-only one."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def objects_of(store: Path, data: Path, name: str) -> Path:
    """The object in `store` that holds data/`name`."""
    wanted = (data / name).read_bytes()
    return next(path for path in (store / "files" / "md5").rglob("*") if path.is_file() and path.read_bytes() == wanted)


def check_whole(versions: DataVersions) -> None:
    """Asserts that pointer, data, ledger and tags agree, and that every tag leads to whole data (I1 to I3)."""
    entries = versions.log()
    assert versions.selected() == entries[0].id
    versions.check_clean()
    taken = versions.materialise("selected")
    assert contents(versions.workspace.data) == {k: v for k, v in contents(taken).items() if k != "READY"}
    ids = {entry.id for entry in versions.known_entries()}
    assert versions.ledger.tags("data/*") == sorted(f"data/{version[:12]}" for version in ids)
    for version in ids:
        assert versions.verify(version) == []
    state = versions.workspace.state
    assert not [path for path in state.iterdir() if path.name.startswith(("journal", "previous"))]
    parts = versions.workspace.root.rglob("*.part")
    remote = versions.workspace.remote  # where others may be writing: what a kill leaves there is swept after an hour
    copies = versions.workspace.versions  # an unfinished copy is completed, and rid of them, when it is needed again
    assert not [path for path in parts if not {remote, copies} & {*path.parents}]


def keep_drop(versions: DataVersions, *, num: int, step: str = "clean-1", parent: str = "selected") -> str:
    """Stores a version as a run would that drops the first `num` photos of `parent`; returns its id."""
    data = versions.materialise(parent)
    folder = drop(data, Path(tempfile.mkdtemp(dir=versions.workspace.runs)), num=num, step=step)
    return versions.keep(folder, step=step, message=f"{num} dropped", run="a run")
