"""The ledger on a real git repository, and the model registry on top of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.errors import CorruptObject, UnknownVersion, WorldError
from flows.registry.versions import REF, ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger


def git(root: Path, *args: str) -> str:
    return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "a 'quoted' folder"
    folder.mkdir()
    git(folder, "init", "-q")
    return folder


def test_commits_build_on_the_tip_and_keep_other_files(root: Path) -> None:
    ledger = Ledger(root)
    first = ledger.commit("refs/x/main", {"a.txt": b"1", "b.txt": b"\0binary\n"}, message="one\n\nbody: more")
    second = ledger.commit("refs/x/main", {"a.txt": b"2"}, message="# two")
    assert [(c.sha, c.message) for c in ledger.log("refs/x/main")] == [(second, "# two"), (first, "one\n\nbody: more")]
    assert (ledger.read(first, "a.txt"), ledger.read(second, "a.txt")) == (b"1", b"2")
    assert ledger.read(second, "b.txt") == b"\0binary\n"
    assert ledger.read_many([(first, "none"), (second, "a.txt"), ("beef", "a.txt")]) == [None, b"2", None]


def test_the_users_index_and_work_tree_stay(root: Path) -> None:
    (root / "mine.txt").write_text("staged")
    git(root, "add", "mine.txt")
    (root / "mine.txt").write_text("dirty")
    before = (git(root, "status", "--porcelain"), git(root, "write-tree"), git(root, "symbolic-ref", "HEAD"))
    index = (root / ".git" / "index").read_bytes()
    Ledger(root).commit("refs/x/main", {"mine.txt": b"ledger"}, message="m")
    assert (git(root, "status", "--porcelain"), git(root, "write-tree"), git(root, "symbolic-ref", "HEAD")) == before
    assert (root / ".git" / "index").read_bytes() == index
    assert (root / "mine.txt").read_text() == "dirty"


def test_git_variables_of_a_hook_do_not_leak(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    ledger = Ledger(root)
    sha = ledger.commit("refs/x/main", {"a": b"1"}, message="m")
    monkeypatch.undo()
    assert git(root, "rev-parse", "refs/x/main").strip() == sha


HOSTILE = """
[core]
    hooksPath = {home}/hooks
    fsmonitor = {home}/hooks/pre-push
    splitIndex = true
    autocrlf = true
    safecrlf = true
[user]
    useConfigOnly = true
[commit]
    gpgSign = true
[tag]
    gpgSign = true
    forceSignAnnotated = true
[push]
    gpgSign = true
    followTags = true
[fetch]
    prune = true
    pruneTags = true
[gc]
    auto = 1
[gpg]
    program = {home}/hooks/pre-push
[log]
    showSignature = true
[column]
    ui = always
[color]
    ui = always
[i18n]
    commitEncoding = ISO-8859-1
    logOutputEncoding = ISO-8859-1
[init]
    templateDir = {home}/template
"""
HOOKS = ("reference-transaction", "pre-push", "pre-auto-gc", "post-index-change", "post-update")


@pytest.fixture
def hostile_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A HOME whose git configuration signs, prunes, converts and runs hooks; each hook leaves the file `ran` and fails."""
    home = tmp_path / "home"
    for folder in (home / "hooks", home / "template" / "hooks"):
        folder.mkdir(parents=True)
        for name in HOOKS:
            (folder / name).write_text(f"#!/bin/sh\necho {name} >> {home}/ran\nexit 1\n")
            (folder / name).chmod(0o755)
    (home / ".gitconfig").write_text(HOSTILE.format(home=home))
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    return home


def test_the_users_git_configuration_runs_nothing_and_changes_no_entry(hostile_home: Path, tmp_path: Path) -> None:
    root = Workspace.init(tmp_path / "shop").root
    ledger = Ledger(root)
    first = ledger.commit("refs/data/main", {"a": b"1\r\n", "b": b"2\n"}, message="Käse, 1 €")
    ledger.tag("data/abc", first, "Käse")
    ledger.tag("data/def", first, "Käse")
    assert (ledger.log("refs/data/main")[0].message, ledger.read(first, "a")) == ("Käse, 1 €", b"1\r\n")
    assert ledger.tags("*") == ["data/abc", "data/def"]
    assert not (hostile_home / "ran").exists()
    assert not list((root / ".git").glob("sharedindex*"))


def test_a_fetch_that_prunes_keeps_what_was_not_pushed(hostile_home: Path, tmp_path: Path) -> None:
    hub = hostile_home / "hub.git"
    subprocess.run(["git", "init", "-q", "--bare", "--template=", str(hub)], check=True)
    git(hub, "config", "core.hooksPath", "/dev/null")  # its own hooks are its owner's
    ledger = Ledger(Workspace.init(tmp_path / "shop").root)
    git(ledger.root, "remote", "add", "hub", str(hub))
    git(ledger.root, "config", "remote.hub.prune", "true")
    first = ledger.commit("refs/data/main", {"a": b"1"}, message="one")
    ledger.tag("data/abc", first, "one")
    ledger.push("hub")
    models = ledger.commit("refs/models/main", {"a": b"1"}, message="not pushed")
    ledger.tag("products@v1.0.0", models, "not pushed")
    (ledger.root / ".git" / "FETCH_HEAD").write_text("the user's\n")
    ledger.fetch("hub")
    assert (ledger.tip("refs/data/main"), ledger.tip("refs/models/main")) == (first, models)
    assert ledger.tags("*") == ["data/abc", "products@v1.0.0"]
    assert (ledger.root / ".git" / "FETCH_HEAD").read_text() == "the user's\n"
    assert not (hostile_home / "ran").exists()


def test_tags_are_annotated_and_never_move(root: Path) -> None:
    ledger = Ledger(root)
    first = ledger.commit("refs/x/main", {"a": b"1"}, message="one")
    second = ledger.commit("refs/x/main", {"a": b"2"}, message="two")
    ledger.tag("data/abc", first, "# not a comment")
    ledger.tag("data/abc", second, "again")
    assert ledger.tip("refs/tags/data/abc") == first
    assert git(root, "cat-file", "-t", "data/abc").strip() == "tag"
    assert "# not a comment" in git(root, "cat-file", "tag", "data/abc")
    assert (ledger.tags("data/*"), ledger.tags("none*")) == (["data/abc"], [])
    loose = ledger.record({"data.dvc": b"loose"}, message="clean-1: loose")
    ledger.tag("data/def", loose, "clean-1: loose")
    assert {commit.sha: commit.message for commit in ledger.tagged("data/*")}[loose] == "clean-1: loose"
    assert (len(ledger.tagged("data/*")), ledger.tagged("none*")) == (2, []), "never those of HEAD"
    assert (ledger.read("data/def", "data.dvc"), loose in [each.sha for each in ledger.log("refs/data/main")]) == (
        b"loose",
        False,
    )


def test_what_is_not_there(root: Path, tmp_path: Path) -> None:
    ledger = Ledger(root)
    assert (ledger.log("refs/x/main"), ledger.tip("refs/x/main")) == ([], None)
    with pytest.raises(UnknownVersion, match="no a at beef"):
        ledger.read("beef", "a")
    (tmp_path / "no git").mkdir()
    with pytest.raises(WorldError, match="not a git repository"):
        Ledger(tmp_path / "no git").tags("*")


def test_models_are_numbered_assigned_and_rolled_back(root: Path) -> None:
    models = ModelVersions(Ledger(root))
    assert (models.current(), models.log()) == (None, [])
    with pytest.raises(UnknownVersion, match="there are none yet"):
        models.promote(1)
    for n in range(3):
        models.register({"version": n + 1, "run": f"r{n}", "data_version": "d" * 32, "metrics": {"accuracy": n / 10}})
    models.promote(1)
    with pytest.raises(UnknownVersion, match="no model version was promoted before 1"):
        models.previous()
    models.promote(3)
    assert (models.current(), models.previous()) == (3, 1)
    models.promote(models.previous())
    assert (models.current(), models.previous()) == (1, 3)
    assert [(entry.version, entry.serving, entry.run) for entry in models.log()] == [
        (3, False, "r2"),
        (2, False, "r1"),
        (1, True, "r0"),
    ]
    assert models.lineage(2) == {"version": 2, "run": "r1", "data_version": "d" * 32, "metrics": {"accuracy": 0.1}}
    before = git(root, "rev-parse", REF)
    models.register({"version": 2, "run": "another"})
    assert (git(root, "rev-parse", REF), models.lineage(2)["run"]) == (before, "r1"), "a number is given once"
    with pytest.raises(UnknownVersion, match="there are: 3, 2, 1"):
        models.lineage(9)


def test_a_version_of_an_earlier_release_is_read_and_left_behind(root: Path) -> None:
    ledger = Ledger(root)
    models = ModelVersions(ledger)
    sha = ledger.commit(REF, {"record.json": b'{"run":"old"}\n'}, message="products v1")
    ledger.tag("products@v1.0.0", sha, "products v1")
    models.register({"version": 2, "run": "new"})
    assert [entry.run for entry in models.log()] == ["new", "old"]
    assert git(root, "ls-tree", "--name-only", REF).split() == ["lineage.json"]
    assert git(root, "show", "products@v2.0.0:lineage.json") == '{"run":"new","version":2}\n'


def test_what_serves_is_known_without_its_tag_but_not_without_its_history(root: Path) -> None:
    models = ModelVersions(Ledger(root))
    models.register({"version": 1})
    models.promote(1)
    git(root, "tag", "-d", "products@v1.0.0")
    assert models.current() == 1
    git(root, "update-ref", "-d", REF)
    with pytest.raises(CorruptObject, match="prod#1 points to a version that is not in refs/models/main"):
        models.current()


def test_gto_reads_the_same_registry(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModelVersions(Ledger(root))
    for version in (1, 2):
        models.register({"version": version, "run": "r"})
    for minute, version in enumerate((1, 2, 1)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"2030-01-01T00:{minute:02}:00Z")  # GTO orders by seconds
        models.promote(version)
    code = """
import json, sys, gto
versions = gto.api.show(sys.argv[1], name="products")
events = gto.api.history(sys.argv[1], artifact="products", ascending=True)
serving = {row["version"]: [stage["ref"] for stage in row["stages"]] for row in versions}
print(json.dumps([serving, [event["ref"] for event in events if event["event"] == "assignment"]]))
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    serving, assigned = json.loads(done.stdout)
    assert serving == {"v1.0.0": ["products#prod#3"], "v2.0.0": []}
    assert assigned == ["products#prod#1", "products#prod#2", "products#prod#3"]


def test_a_lock_that_a_killed_git_left_is_removed(root: Path) -> None:
    ledger = Ledger(root)
    ledger.commit("refs/data/main", {"x": b"1"}, message="one")
    lock = ledger.root / ".git" / "refs" / "data" / "main.lock"
    lock.touch()
    ledger.commit("refs/data/main", {"x": b"2"}, message="two")
    assert [commit.message for commit in ledger.log("refs/data/main")] == ["two", "one"]
    assert not lock.exists()
