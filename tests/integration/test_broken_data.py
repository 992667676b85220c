"""Damage to every kind of file of a data version (a flipped bit, a cut or empty file) is named, then healed or refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.errors import BadDelivery, CorruptObject
from flows.workspace import Workspace
from tests import verbs
from tests.command_line import cleanshelf
from tests.deliveries import deliver
from tests.kills import run
from tests.versions import commit_drop, commit_first, contents, damage, objects_of

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.faults,
]

TABLES = ("index", "labels", "conflicts", "fingerprints", "quarantine")
FILES = (*(f"{table}.parquet" for table in TABLES), "VERSION.json", "shard", "listing")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with two versions, both written as files."""
    root = tmp_path_factory.mktemp("prepared")
    versions = DataVersions(Workspace.init(root / "shop"))
    versions.materialise(commit_first(versions, root))
    versions.materialise(commit_drop(versions, num=2))
    return root / "shop"


@pytest.fixture
def versions(prepared: Path, tmp_path: Path) -> DataVersions:
    return DataVersions(Workspace.find(Path(shutil.copytree(prepared, tmp_path / "it's a shop", symlinks=True))))


def cut(path: Path) -> None:
    rewrite(path, path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    rewrite(path, b"")


def rewrite(path: Path, content: bytes) -> None:
    """Overwrites bytes in place, so that every hard link sees the change."""
    path.chmod(0o644)
    path.write_bytes(content)


breaking = pytest.mark.parametrize("break_it", [damage, cut, empty])
Break = Callable[[Path], None]


def name_in(data: Path, file: str) -> str:
    return next(path.relative_to(data).as_posix() for path in data.rglob("*.tar")) if file == "shard" else file


@breaking
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("store", [".dvc/cache", "remote"])
def test_an_object(versions: DataVersions, store: str, file: str, break_it: Break) -> None:
    """A cached object shares its inode with data/ and versions/; all are reported, and healed from the other store."""
    root, data = versions.workspace.root, versions.workspace.data
    if file == "listing":
        (path,) = (root / store).rglob(f"{versions.resolve('selected')[2:]}.dir")
    else:
        path = objects_of(root / store, data, name_in(data, file))
    before = contents(data)
    break_it(path)
    assert any(str(path) in broken.file for broken in versions.verify(reread=True))
    versions.heal()
    assert versions.verify(reread=True) == []
    assert contents(data) == before


@breaking
@pytest.mark.parametrize("file", FILES[:-1])
def test_a_file_of_a_copy(versions: DataVersions, file: str, break_it: Break) -> None:
    """Damages only the copy, not the object behind it; the next use of the version restores it."""
    copy = versions.materialise("selected")
    path, before = copy / name_in(copy, file), contents(copy)
    unlink_copies(path)
    break_it(path)
    assert [broken.file for broken in versions.verify()] == [str(path)]
    assert contents(versions.materialise("selected")) == before
    assert versions.verify(reread=True) == []


@breaking
@pytest.mark.parametrize("file", FILES[:-1])
def test_a_file_of_data(versions: DataVersions, file: str, break_it: Break) -> None:
    """A changed file may be an edit: commands that would overwrite it refuse and name it."""
    data = versions.workspace.data
    path = data / name_in(data, file)
    unlink_copies(path)
    break_it(path)
    broken = path.read_bytes()
    done = cleanshelf("data", "rollback", versions.log()[-1].id, "--workspace", versions.workspace.root)
    assert (done.returncode, path.name in done.stderr) == (2, True), done.stderr
    assert path.read_bytes() == broken


def unlink_copies(path: Path) -> None:
    """Replaces a hard link by a file of its own."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@breaking
def test_the_marker_of_a_copy(versions: DataVersions, break_it: Break) -> None:
    before = contents(versions.workspace.data)
    break_it(versions.materialise("selected") / "READY")
    assert {k: v for k, v in contents(versions.materialise("selected")).items() if k != "READY"} == before


@breaking
def test_the_pointer(versions: DataVersions, break_it: Break) -> None:
    version, before = versions.resolve("selected"), versions.workspace.pointer.read_bytes()
    break_it(versions.workspace.pointer)
    assert [(broken.version, broken.link) for broken in versions.verify()] == [(version, "pointer")]
    versions.heal()
    assert versions.verify() == []
    assert versions.workspace.pointer.read_bytes() == before


@breaking
def test_the_cache_of_hashes(versions: DataVersions, break_it: Break) -> None:
    break_it(versions.workspace.state / "seen.json")
    assert versions.verify() == []


@breaking
def test_the_journal(versions: DataVersions, tmp_path: Path, break_it: Break) -> None:
    """After a kill whose journal is then damaged, the next command refuses instead of guessing."""
    first, before = versions.log()[-1].id, contents(versions.workspace.data)
    rollback = ("tests.verbs", "data", "rollback", first, "--workspace", versions.workspace.root)
    whole = shutil.copytree(versions.workspace.root, tmp_path / "whole", symlinks=True)
    passed = run(*rollback[:-1], whole, log=tmp_path / "whole.log").passed
    fatal = 1 + next(n for n, (call, *paths) in enumerate(passed) if call == "rename" and paths[1].endswith("/data"))
    assert run(*rollback, log=tmp_path / "killed.log", fatal=fatal).killed
    journal = versions.workspace.state / "journal.json"
    break_it(journal)
    with pytest.raises(CorruptObject, match=r"journal\.json"):
        versions.repair()
    assert contents(versions.workspace.state / "previous") == before
    journal.unlink()
    versions.repair()
    versions.heal()
    left = versions.verify()
    assert all(broken.link == "data" for broken in left), "files of another version in data/ may be edits"
    for broken in left:
        Path(broken.file).unlink()
    versions.heal()
    assert versions.verify(reread=True) == []


@breaking
def test_a_photo_of_a_delivery(versions: DataVersions, tmp_path: Path, break_it: Break) -> None:
    """A photo with a flipped bit may still decode, as another photo; the rest of the delivery is ingested."""
    source = deliver(tmp_path / "more", {"Red Mug": 3}, first_seed=700)
    break_it(source / "Red Mug" / "photo 701.png")
    verbs.ingest(versions.workspace, source)
    counts = versions.log()[0].counts
    assert (counts["photos"], counts["quarantined"]) == (14, 1)


@breaking
def test_the_manifest_of_a_delivery(versions: DataVersions, tmp_path: Path, break_it: Break) -> None:
    source = deliver(tmp_path / "more", {"Red Mug": 3}, first_seed=700)
    rows = [f"{path.relative_to(source)},Red Mug" for path in sorted(source.rglob("*.png"))]
    (source / "manifest.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    break_it(source / "manifest.csv")
    before, message = versions.log(), ""
    try:
        verbs.ingest(versions.workspace, source)
    except BadDelivery as error:
        message = str(error)
    refused = "manifest.csv" in message and versions.log() == before
    assert refused or versions.log()[0].counts["quarantined"] > 0
