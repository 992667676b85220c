"""Data versions on a real git and DVC repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from flows.data.garbage import find_unused
from flows.data.history import uncleaned
from flows.data.versions import DataVersions
from flows.errors import CorruptObject, LocalEdits, MissingFromRemote, UnknownVersion, WorkspaceMissing
from flows.registry.history import withdrawn_data
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.data.manifest import read_manifest, read_table
from tests import verbs
from tests.command_line import snapshot
from tests.deliveries import deliver
from tests.versions import check_whole, commit_drop, commit_first, contents, damage, keep_drop, objects_of

pytestmark = [
    pytest.mark.dvc,
]


@pytest.fixture
def versions(tmp_path: Path) -> DataVersions:
    return DataVersions(Workspace.init(tmp_path / 'it\'s a "shop"'))


def test_commit_stores_the_version_everywhere(versions: DataVersions, tmp_path: Path) -> None:
    version = commit_first(versions, tmp_path)
    assert versions.selected() == version
    assert versions.ledger.tags("data/*") == [f"data/{version[:12]}"]
    assert versions.verify(version) == []
    (entry,) = versions.log()
    assert (entry.number, entry.id, entry.parent, entry.step, entry.selected) == (1, version, None, "ingest", True)
    assert entry.counts["photos"] == 12
    copy = versions.materialise("selected")
    assert contents(copy) == contents(versions.workspace.data) | {"READY": f"{version}\n".encode()}
    assert len(read_manifest(copy)) == 12
    assert all(path.stat().st_mode & 0o222 == 0 for path in copy.rglob("*.parquet"))


def test_dvc_agrees_with_the_id_and_reads_the_tag(versions: DataVersions, tmp_path: Path) -> None:
    """`dvc` itself reports nothing to commit and nothing to push."""
    version = commit_first(versions, tmp_path)
    commit_drop(versions, num=2)
    versions.rollback(version)  # CleanShelf, not DVC, writes the pointer of a rollback
    env = os.environ | {"DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}
    for command in (["status"], ["status", "--cloud"]):
        call = [sys.executable, "-m", "dvc", *command]
        done = subprocess.run(call, cwd=versions.workspace.root, env=env, capture_output=True, text=True, check=True)
        assert "up to date" in done.stdout or "in sync" in done.stdout, done.stdout


def test_the_same_contents_make_no_new_version(versions: DataVersions, tmp_path: Path) -> None:
    first = commit_first(versions, tmp_path)
    assert commit_first(versions, tmp_path) == first
    assert len(versions.log()) == 1
    assert list((versions.workspace.state / "staging").iterdir()) == []


def test_rollback_is_exact_and_a_new_entry(versions: DataVersions, tmp_path: Path) -> None:
    first = commit_first(versions, tmp_path)
    before = contents(versions.workspace.data)
    pointer = versions.workspace.pointer.read_bytes()
    second = commit_drop(versions, num=3)
    assert contents(versions.workspace.data) != before
    entry = versions.rollback(first[:8])
    assert contents(versions.workspace.data) == before
    assert versions.workspace.pointer.read_bytes() == pointer
    assert (entry.number, entry.id, entry.step, entry.selected) == (3, first, "rollback", True)
    assert [e.id for e in versions.log()] == [first, second, first]
    assert versions.verify(second) == [], "a rollback deletes nothing"
    assert len(versions.ledger.tags("data/*")) == 2
    assert versions.rollback(f"data/{second[:12]}").id == second


def test_a_version_that_a_run_made_is_known_and_changes_nothing_else(versions: DataVersions, tmp_path: Path) -> None:
    first = commit_first(versions, tmp_path)
    data, pointer = contents(versions.workspace.data), versions.workspace.pointer.read_bytes()
    log = versions.log()
    once = keep_drop(versions, num=2)
    twice = keep_drop(versions, num=3, step="clean-2", parent=once)
    assert keep_drop(versions, num=2) == once, "the same again adds nothing"
    assert (versions.log(), versions.selected()) == (log, first)
    assert (contents(versions.workspace.data), versions.workspace.pointer.read_bytes()) == (data, pointer)
    assert [(entry.id, entry.number, entry.step, entry.run) for entry in versions.listed()] == [
        (twice, None, "clean-2", "a run"), (once, None, "clean-1", "a run"), (first, 1, "ingest", "")
    ]  # fmt: skip
    assert versions.verify() == versions.verify(once[:8], f"data/{twice[:12]}") == []
    assert uncleaned(twice, versions.known_entries()) == first
    assert versions.diff(first, twice).dropped == 3
    check_whole(versions)

    for path in [*versions.workspace.remote.rglob("*.dir"), *versions.workspace.versions.glob("*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {broken.link for broken in versions.verify(twice)} == {"remote"}
    versions.push(twice)
    assert versions.verify(twice) == []
    assert [each for each in find_unused(versions) if "copy" not in each.why] == [], "its objects are kept"


def test_a_version_that_a_run_made_is_selected_by_hand_or_with_its_model(
    versions: DataVersions, tmp_path: Path
) -> None:
    first = commit_first(versions, tmp_path)
    once = keep_drop(versions, num=2)
    twice = keep_drop(versions, num=3, step="clean-2", parent=once)
    entry = versions.rollback(once)
    assert (entry.message, entry.selected) == (f"to {once[:12]} (made by run a run)", True)
    assert uncleaned(once, versions.known_entries()) == first, "a rollback to it is not its making"
    assert versions.select_as(twice, step="clean-2", message="3 dropped").id == twice == versions.selected()
    assert withdrawn_data(versions.workspace) == set()
    versions.rollback(first)
    assert withdrawn_data(versions.workspace) == {once, twice}
    check_whole(versions)


def test_a_version_that_cannot_be_stored_leaves_no_trace(versions: DataVersions, tmp_path: Path) -> None:
    commit_first(versions, tmp_path)
    versions.materialise("selected")
    before = files(versions)
    shutil.move(versions.workspace.remote, tmp_path / "away")
    versions.workspace.remote.touch()
    with pytest.raises(MissingFromRemote, match="cannot write"):
        keep_drop(versions, num=2)
    versions.workspace.remote.unlink()
    shutil.move(tmp_path / "away", versions.workspace.remote)
    assert files(versions) == before


def files(versions: DataVersions) -> dict[str, str]:
    return {name: found for name, found in snapshot(versions.workspace.root).items() if found}


def test_a_version_of_format_1_keeps_its_id(versions: DataVersions, tmp_path: Path) -> None:
    first = commit_first(versions, tmp_path, format_1=True)
    before = contents(versions.workspace.data)
    assert read_manifest(versions.materialise(first)).scored_by.tolist() == [""] * 12
    verbs.ingest(versions.workspace, tmp_path / "source")
    assert [entry.id for entry in versions.log()] == [first], "the same delivery makes no new version"
    verbs.ingest(versions.workspace, deliver(tmp_path / "more", {"Red Mug": 2}, first_seed=500))
    assert "fingerprints.parquet" in contents(versions.workspace.data)
    assert versions.rollback(first).id == first
    assert contents(versions.workspace.data) == before
    assert versions.diff(first, versions.log()[1].id).added == 2
    assert versions.verify() == []


def test_diff_counts_per_class(versions: DataVersions, tmp_path: Path) -> None:
    first = commit_first(versions, tmp_path)
    second = commit_drop(versions, num=3)
    forward, back = versions.diff(first, second), versions.diff(second, first)
    assert (forward.added, forward.dropped, forward.restored, forward.relabelled) == (0, 3, 0, 0)
    assert (back.dropped, back.restored) == (0, 3)
    assert sum(counts["dropped"] for counts in forward.per_class.values()) == 3


def test_local_edits_are_refused_and_survive(versions: DataVersions, tmp_path: Path) -> None:
    first = commit_first(versions, tmp_path)
    commit_drop(versions, num=1)
    (versions.workspace.data / "my notes.txt").write_text("keep me")
    with pytest.raises(LocalEdits, match=r"my notes\.txt"):
        versions.rollback(first)
    with pytest.raises(LocalEdits, match=r"my notes\.txt"):
        versions.commit(versions.new_folder(), step="x", message="")
    assert (versions.workspace.data / "my notes.txt").read_text() == "keep me"
    (versions.workspace.data / "my notes.txt").unlink()
    (versions.workspace.data / "labels.parquet").unlink()
    versions.check_clean()  # a deleted file contains nothing that could be lost


def test_an_edited_table_is_named(versions: DataVersions, tmp_path: Path) -> None:
    commit_first(versions, tmp_path)
    labels = versions.workspace.data / "labels.parquet"
    content = labels.read_bytes()
    labels.unlink()
    labels.write_bytes(content + b"x")
    with pytest.raises(LocalEdits, match=r"labels\.parquet"):
        versions.check_clean()


def test_data_without_a_version_are_not_overwritten(versions: DataVersions, tmp_path: Path) -> None:
    versions.workspace.data.mkdir()
    (versions.workspace.data / "mine.txt").write_text("mine")
    with pytest.raises(LocalEdits, match=r"mine\.txt"):
        commit_first(versions, tmp_path)
    assert (versions.workspace.data / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "beef", "data/beef", "selected"])
def test_unknown_versions_are_refused_with_a_list_of_versions(versions: DataVersions, text: str) -> None:
    with pytest.raises(UnknownVersion, match="none yet"):
        versions.resolve(text)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["flip", "empty", "gone"])
def test_a_damaged_cache_heals_from_the_remote(versions: DataVersions, tmp_path: Path, kind: str) -> None:
    version = commit_first(versions, tmp_path)
    copy = versions.materialise(version)
    before = contents(copy)
    cache = versions.workspace.root / ".dvc" / "cache"
    names = [name for name in before if name != "READY"]
    for path in [objects_of(cache, copy, name) for name in names] + list((cache / "files" / "md5").rglob("*.dir")):
        if kind == "flip":
            damage(path)  # versions/<id> shares the inode and is damaged with it
        elif kind == "empty":
            path.chmod(0o644)
            path.write_bytes(b"")
            path.chmod(0o444)
        else:
            path.unlink()
    assert versions.verify(version) != []
    if kind == "gone":
        shutil.rmtree(copy)  # a whole copy in versions/<id> would need no cache
    assert contents(versions.materialise(version)) == before
    left = versions.verify(version)
    assert {broken.link for broken in left} <= {"data"}, "files in data/ may be edits, and are left alone"
    for broken in left:
        Path(broken.file).unlink()
    versions.heal(version)
    assert versions.verify(version) == []


@pytest.mark.faults
@pytest.mark.parametrize("name", ["labels.parquet", "VERSION.json", "shards"])
def test_damage_in_cache_and_remote_is_an_error(versions: DataVersions, tmp_path: Path, name: str) -> None:
    version = commit_first(versions, tmp_path)
    data = versions.workspace.data
    name = next((path.relative_to(data).as_posix() for path in data.glob(f"{name}/*")), name)
    objects = [
        objects_of(store, data, name)
        for store in (versions.workspace.root / ".dvc" / "cache", versions.workspace.remote)
    ]
    for path in objects:
        damage(path)
    with pytest.raises(CorruptObject, match=name):
        versions.materialise(version)
    assert not (versions.workspace.versions / version / "READY").exists()
    assert any(name in broken.file for broken in versions.verify(version))
    for path in objects:
        path.unlink(missing_ok=True)
    with pytest.raises(MissingFromRemote, match=name):
        versions.materialise(version)


@pytest.mark.faults
def test_a_damaged_remote_heals_on_the_next_commit(versions: DataVersions, tmp_path: Path) -> None:
    commit_first(versions, tmp_path)
    shard = next(versions.workspace.data.glob("shards/*")).relative_to(versions.workspace.data).as_posix()
    damage(objects_of(versions.workspace.remote, versions.workspace.data, shard))
    second = commit_drop(versions, num=1)
    assert versions.verify(second) == []


def test_a_corrupt_cache_object_is_not_taken_for_new_data(versions: DataVersions, tmp_path: Path) -> None:
    """DVC would link the damaged object into data/ because it has the right name."""
    first = commit_first(versions, tmp_path)
    second = commit_drop(versions, num=2)
    versions.rollback(first)
    copy = versions.materialise(second)
    damage(objects_of(versions.workspace.root / ".dvc" / "cache", copy, "labels.parquet"))
    assert commit_drop(versions, num=2) == second
    assert [(broken.link, broken.file) for broken in versions.verify(second)] == [
        ("copy", str(copy / "labels.parquet"))
    ]
    versions.materialise(second)
    assert versions.verify(second) == []


def test_adopt_keeps_the_id_without_git(versions: DataVersions, tmp_path: Path) -> None:
    version = commit_first(versions, tmp_path)
    source = versions.workspace.root
    (source / ".git").rename(tmp_path / "git is elsewhere")
    target = DataVersions(Workspace.init(tmp_path / "target"))
    assert target.import_from(source) == version
    assert contents(target.workspace.data) == contents(versions.workspace.data)
    assert (target.log()[0].step, target.verify(version)) == ("adopt", [])
    assert target.import_from(source) == version
    assert len(target.log()) == 1


def test_adopt_refuses_damage_and_changes_nothing(versions: DataVersions, tmp_path: Path) -> None:
    commit_first(versions, tmp_path)
    damage(objects_of(versions.workspace.remote, versions.workspace.data, "index.parquet"))
    target = DataVersions(Workspace.init(tmp_path / "target"))
    with pytest.raises(CorruptObject, match=r"index\.parquet"):
        target.import_from(versions.workspace.root)
    assert (target.selected(), target.log(), target.workspace.data.exists()) == (None, [], False)
    with pytest.raises(WorkspaceMissing, match=r"data\.dvc"):
        target.import_from(tmp_path)


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True).stdout


def test_a_workspace_inside_another_repository_leaves_it_alone(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    (outer / "kept.txt").write_text("one")
    git(outer, "add", ".")
    git(outer, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (outer / "kept.txt").write_text("two")
    (outer / "staged.txt").write_text("staged")
    git(outer, "add", "staged.txt")

    def state() -> tuple[str, ...]:
        return (
            git(outer, "rev-parse", "HEAD"),
            git(outer, "write-tree"),
            git(outer, "for-each-ref"),
            git(outer, "status", "--porcelain"),
        )

    before = state()
    versions = DataVersions(Workspace.init(outer / "shop"))
    version = commit_first(versions, tmp_path)
    versions.rollback(version)
    after = state()
    assert after[:3] == before[:3]
    assert after[3] == before[3] + "?? shop/\n", "the outer repository sees one untracked folder"


def test_a_workspace_in_the_users_own_repository(tmp_path: Path) -> None:
    """HEAD, the index with its staged edit, and the work tree stay as they were."""
    root = tmp_path / "mine"
    root.mkdir()
    git(root, "init", "-q")
    (root / "code.py").write_text("x = 1\n")
    (root / ".gitignore").write_text("*.tmp")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    (root / "code.py").write_text("x = 2\n")
    git(root, "add", "code.py")
    (root / "code.py").write_text("x = 3\n")
    versions = DataVersions(Workspace.init(root))
    before = (git(root, "rev-parse", "HEAD"), git(root, "diff", "--cached"), git(root, "diff", "code.py"))
    version = commit_first(versions, tmp_path)
    versions.rollback(version)
    assert (git(root, "rev-parse", "HEAD"), git(root, "diff", "--cached"), git(root, "diff", "code.py")) == before
    assert (root / ".gitignore").read_text().splitlines()[0] == "*.tmp"


def test_no_identity_and_an_empty_home(versions: DataVersions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    version = commit_first(versions, tmp_path)
    assert versions.verify(version) == []
    assert list(home.rglob("*")) == [], "nothing is written outside the workspace"
    assert "CleanShelf" in git(versions.workspace.root, "log", "-1", "--format=%an", "refs/data/main")


def test_an_entry_is_a_commit_with_pointer_and_facts(versions: DataVersions, tmp_path: Path) -> None:
    version = commit_first(versions, tmp_path)
    ledger = Ledger(versions.workspace.root)
    assert version.encode() in ledger.read(f"data/{version[:12]}", "data.dvc")
    assert ledger.read("refs/data/main", "VERSION.json") == (versions.workspace.data / "VERSION.json").read_bytes()


def test_training_reads_the_labels_that_were_written(versions: DataVersions, tmp_path: Path) -> None:
    commit_first(versions, tmp_path)
    commit_drop(versions, num=4)
    manifest = read_manifest(versions.materialise("selected"))
    assert int((~manifest.kept).sum()) == 4
    assert pa.types.is_string(read_table(manifest.data, name="labels")["label"].type)
