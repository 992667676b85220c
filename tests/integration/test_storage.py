"""Storage of data: garbage is removed, versions stay, and a second workspace gets everything through the remotes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flows.data.dvc_store import folder_remote
from flows.data.garbage import find_unused, free
from flows.data.objects import HashCache, Listing, Objects
from flows.data.versions import DataVersions
from flows.errors import CorruptObject, InputError, MissingFromRemote, WorldError
from flows.workspace import DATA_LOCK, Workspace
from tests.command_line import cleanshelf
from tests.kills import Kills
from tests.versions import commit_drop, commit_first, contents, damage, keep_drop

pytestmark = [
    pytest.mark.dvc,
]

OF_THE_USER = hashlib.md5(b"the user's own").hexdigest()  # an object that `dvc add` brought into our cache
FORMER = Listing(
    {name: hashlib.md5(name.encode()).hexdigest() for name in ("VERSION.json", "index.parquet", "labels.parquet")}
)
GARBAGE = {FORMER.files["labels.parquet"]: b"labels.parquet", f"{FORMER.id}.dir": FORMER.content}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with three versions, a copy of each, and garbage."""
    root = tmp_path_factory.mktemp("prepared")
    versions = DataVersions(Workspace.init(root / "shop"))
    for step in (lambda: commit_first(versions, root), *[lambda n=n: commit_drop(versions, num=n) for n in (2, 4)]):
        step()
        versions.materialise("selected")
    versions.rollback(versions.log()[1].id)
    unfinished = versions.workspace.versions / ("0" * 32)
    unfinished.mkdir()
    (unfinished / "labels.parquet").write_bytes(b"part")
    with versions.store.objects() as objects:
        for md5, content in GARBAGE.items():
            objects.path(md5).parent.mkdir(exist_ok=True)
            objects.path(md5).write_bytes(content)
        objects.path(OF_THE_USER).parent.mkdir(exist_ok=True)
        objects.path(OF_THE_USER).write_bytes(b"the user's own")
        objects.path(f"{OF_THE_USER}.dir").write_bytes(b'[{"md5": "%s", "relpath": "mine"}]' % OF_THE_USER.encode())
        objects.path(OF_THE_USER).with_name(".x.1.part").write_bytes(b"half")
    return root / "shop"


@pytest.fixture
def versions(prepared: Path, tmp_path: Path) -> DataVersions:
    return DataVersions(Workspace.find(Path(shutil.copytree(prepared, tmp_path / "it's a shop", symlinks=True))))


def check_swept(versions: DataVersions) -> None:
    selected = versions.log()[0].id
    assert versions.verify() == []
    assert find_unused(versions) == []
    assert {path.name for path in versions.workspace.versions.iterdir()} == {selected, versions.log()[-1].id}
    for entry in versions.log():
        assert (versions.materialise(entry.id) / "READY").exists()


def test_garbage_is_freed_and_every_version_stays(versions: DataVersions) -> None:
    unused = find_unused(versions)
    assert sorted((each.why, each.path.name) for each in unused) == sorted(
        [
            ("unfinished copy", "0" * 32),
            ("copy that no run reads", versions.log()[1].id),
            ("cached file of no version", ".x.1.part"),
            *(("cached file of no version", md5[2:]) for md5 in GARBAGE),
        ]
    )
    assert sum(each.bytes for each in unused) >= len(b"part" + b"labels.parquet" + b"half")
    (versions.workspace.versions / "notes").mkdir()  # of the user
    free(unused)
    assert (versions.workspace.versions / "notes").is_dir()
    (versions.workspace.versions / "notes").rmdir()
    check_swept(versions)
    with versions.store.objects() as objects:
        assert objects.path(OF_THE_USER).exists()
        assert objects.path(f"{OF_THE_USER}.dir").exists()


@pytest.mark.faults
def test_killed_while_freeing(kills: Kills, prepared: Path) -> None:
    def check(folder: Path) -> None:
        versions = DataVersions(Workspace.find(folder / "shop"))
        assert versions.verify() == []
        free(find_unused(versions))
        check_swept(versions)

    def prepare(folder: Path) -> Sequence[object]:
        return ["tests.verbs", "data", "gc", "--workspace", shutil.copytree(prepared, folder / "shop", symlinks=True)]

    kills.strike("data gc", promises="I1 to I3", prepare=prepare, check=check)


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["push", "pull"])
def test_killed_on_the_way_to_or_from_a_remote(kills: Kills, prepared: Path, verb: str) -> None:
    def prepare(folder: Path) -> Sequence[object]:
        shop = shutil.copytree(prepared, folder / "shop", symlinks=True)
        versions = DataVersions(Workspace.find(shop))
        other = second_workspace(versions, folder)
        if verb == "push":
            shutil.rmtree(versions.workspace.remote)
        else:
            versions.ledger.push("hub")
        killed = versions if verb == "push" else other
        return ["tests.verbs", "data", verb, "--all", "--refs", "hub", "--workspace", killed.workspace.root]

    def check(folder: Path) -> None:
        versions, other = (DataVersions(Workspace.find(folder / name)) for name in ("shop", "second"))
        assert [each for each in versions.verify() if each.link != "remote"] == []
        versions.push()
        versions.ledger.push("hub")
        other.repair()
        other.ledger.fetch("hub")
        other.pull()
        assert other.log() == versions.log()
        assert contents(other.workspace.data) == contents(versions.workspace.data)
        assert versions.verify(reread=True) == other.verify(reread=True) == []

    kills.strike(f"data {verb}", promises="I3; the same versions in a second workspace", prepare=prepare, check=check)


def test_nothing_is_freed_while_a_listing_is_damaged(versions: DataVersions) -> None:
    for path in versions.workspace.root.rglob(f"{versions.log()[-1].id[2:]}.dir"):
        damage(path)
    with pytest.raises(CorruptObject, match="listing"):
        find_unused(versions)


def test_gc_on_the_command_line(versions: DataVersions) -> None:
    shop = versions.workspace.root
    before = contents(shop / ".dvc" / "cache")
    listed = json.loads(cleanshelf("data", "gc", "--dry-run", "--json", "--workspace", shop).stdout)
    assert (len(listed), contents(shop / ".dvc" / "cache")) == (5, before)
    assert "5 files and folders" in cleanshelf("data", "gc", "--workspace", shop).stdout
    check_swept(versions)
    for name, verb in (("lock", "retrain"), (DATA_LOCK, "ingest")):
        with versions.workspace.lock(verb, name=name):
            busy = cleanshelf("data", "gc", "--workspace", shop)
        assert (busy.returncode, f"`{verb}`" in busy.stderr) == (2, True)


def test_versions_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*paths: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    versions = DataVersions(Workspace.init(tmp_path / "shop"))
    first, second = commit_first(versions, tmp_path), commit_drop(versions, num=2)
    versions.rollback(first)
    with versions.store.objects() as objects:
        damage(objects.path(objects.listing(first).files["labels.parquet"]))
    versions.heal()
    assert [(versions.materialise(version) / "READY").exists() for version in (first, second)] == [True, True]
    free(find_unused(versions))
    assert versions.verify(reread=True) == []
    assert not list(versions.workspace.root.rglob(".*.part"))


SHARED = """
[core]
    remote = elsewhere
    hardlink_lock = true
    site_cache_dir = {shared}/site
[cache]
    dir = {shared}
    shared = group
    type = symlink
['remote "local"']
    url = {shared}/remote
    worktree = true
['remote "elsewhere"']
    url = {shared}/remote
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that the user's configuration of DVC shares between all projects, with an object of another one."""
    shared = tmp_path / "shared"
    found = Objects(shared / "files" / "md5", folder_remote(shared), HashCache(tmp_path / "seen.json")).path(
        OF_THE_USER
    )
    found.parent.mkdir(parents=True)
    found.write_bytes(b"the user's own")
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "config").write_text(SHARED.format(shared=shared))
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(shared / "site"))
    return shared


def test_a_cache_that_the_user_shares_is_neither_used_nor_freed(shared: Path, tmp_path: Path) -> None:
    before = contents(shared)
    versions = DataVersions(Workspace.init(tmp_path / "shop"))
    commit_first(versions, tmp_path)
    free(find_unused(versions))
    assert versions.verify() == []
    assert contents(shared) == before
    plain = subprocess.run(
        [sys.executable, "-m", "dvc", "cache", "dir"],
        cwd=versions.workspace.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert plain.stdout.strip() == str(versions.workspace.root / ".dvc" / "cache")


def test_a_workspace_that_used_a_shared_cache_goes_on_with_its_own(
    versions: DataVersions, shared: Path, tmp_path: Path
) -> None:
    shop = versions.workspace
    config = shop.root / ".dvc" / "config"
    config.write_text(config.read_text().replace("    dir = cache\n", ""))
    shutil.copytree(shop.root / ".dvc" / "cache", shared, dirs_exist_ok=True)
    shutil.rmtree(shop.root / ".dvc" / "cache")
    before = contents(shared)
    assert {(broken.link, broken.way_out.split()[-1]) for broken in versions.verify()} == {("cache", "--heal`")}
    commit_drop(versions, num=3)
    for entry in versions.log():
        versions.materialise(entry.id)
    free(find_unused(versions))
    versions.heal()
    assert versions.verify() == []
    assert contents(shared) == before
    assert config.read_text().count("dir = cache") == 1


@pytest.mark.parametrize("way", ["local", "link"])
def test_nothing_is_freed_in_a_cache_that_the_workspace_itself_shares(
    versions: DataVersions, shared: Path, way: str
) -> None:
    cache = versions.workspace.root / ".dvc" / "cache"
    shutil.copytree(cache, shared, dirs_exist_ok=True)
    if way == "local":
        (versions.workspace.root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {shared}\n")
    else:
        shutil.rmtree(cache)
        cache.symlink_to(shared)
    before = contents(shared)
    with pytest.raises(
        InputError, match=rf"lies at {re.escape(str(shared))}.*, outside the workspace.*nothing was freed"
    ):
        find_unused(versions)
    new = versions.new_folder()
    (new / "labels.parquet").write_bytes(b"no push")
    shutil.rmtree(versions.workspace.remote)
    versions.workspace.remote.write_text("not a folder")
    with pytest.raises(WorldError):
        versions.commit(new, step="ingest", message="refused")
    assert contents(shared).items() >= before.items()


def second_workspace(versions: DataVersions, folder: Path) -> DataVersions:
    """New workspace with the same DVC remote and the git remote `hub`."""
    other = Workspace.init(folder / "second")
    config = other.root / ".dvc" / "config"
    config.write_text(config.read_text().replace("../remote", str(versions.workspace.remote)))
    for shop in (versions.workspace.root, other.root):
        subprocess.run(["git", "-C", str(shop), "remote", "add", "hub", str(folder / "hub.git")], check=True)
    subprocess.run(["git", "init", "-q", "--bare", str(folder / "hub.git")], check=True)
    return DataVersions(other)


def test_another_workspace_gets_everything(versions: DataVersions, tmp_path: Path) -> None:
    other = second_workspace(versions, tmp_path)
    subprocess.run(["git", "-C", str(versions.workspace.root), "tag", "mine", "refs/data/main"], check=True)
    keep_drop(versions, num=4)
    shops = [("--workspace", each.workspace.root) for each in (versions, other)]
    assert cleanshelf("data", "push", "--all", "--refs", "hub", *shops[0]).returncode == 0
    done = cleanshelf("data", "pull", "--all", "--refs", "hub", *shops[1])
    assert (done.returncode, done.stdout) == (0, "the cache holds every byte\n"), done.stderr
    assert other.listed() == versions.listed()
    assert contents(other.workspace.data) == contents(versions.workspace.data)
    assert other.verify(reread=True) == []
    assert other.ledger.tags("*") == [tag for tag in versions.ledger.tags("*") if tag != "mine"]
    newest = commit_drop(versions, num=5)
    versions.ledger.push("hub")
    other.ledger.fetch("hub")
    other.pull()
    (broken,) = other.verify()
    assert (broken.link, f"data rollback {newest[:12]}" in broken.way_out) == ("pointer", True)
    other.rollback(newest)
    assert other.verify() == []
    other.ledger.push("hub")
    commit_drop(versions, num=6)
    with pytest.raises(WorldError, match="git push failed"):
        versions.ledger.push("hub")


def test_push_fills_a_new_remote_and_pull_names_what_is_lost(versions: DataVersions, tmp_path: Path) -> None:
    root, old = versions.workspace.root, contents(versions.workspace.remote)
    command = [sys.executable, "-m", "dvc", "remote", "add", "-d", "elsewhere", str(tmp_path / "new remote")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    moved = DataVersions(Workspace.find(root))
    assert {broken.link for broken in moved.verify()} == {"remote"}
    moved.push()
    assert moved.verify() == []
    assert contents(tmp_path / "new remote") == {name: old[name] for name in contents(tmp_path / "new remote")}
    shutil.rmtree(tmp_path / "new remote")
    shutil.rmtree(root / ".dvc" / "cache")
    with pytest.raises(MissingFromRemote, match="backup of the remote"):
        moved.pull()
