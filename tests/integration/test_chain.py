"""Every link from a version's name to its bytes, broken one at a time, is named and healed if possible."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.workspace import Workspace
from tests.command_line import cleanshelf
from tests.versions import commit_drop, commit_first, contents, damage, objects_of

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.faults,
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with two versions, both written as files."""
    root = tmp_path_factory.mktemp("prepared")
    versions = DataVersions(Workspace.init(root / "shop"))
    first = commit_first(versions, root)
    commit_drop(versions, num=2)
    versions.materialise(first)
    versions.materialise("selected")
    return root / "shop"


@pytest.fixture
def versions(prepared: Path, tmp_path: Path) -> DataVersions:
    return DataVersions(Workspace.find(Path(shutil.copytree(prepared, tmp_path / "it's a shop", symlinks=True))))


def remove_tag(versions: DataVersions) -> None:
    tag = versions.workspace.root / ".git" / "refs" / "tags" / "data" / versions.resolve("selected")[:12]
    tag.unlink()


def point_elsewhere(versions: DataVersions) -> None:
    pointer = versions.workspace.pointer
    pointer.write_text(pointer.read_text().replace(versions.resolve("selected"), versions.log()[-1].id))


def flip(store: str, name: str) -> Callable[[DataVersions], None]:
    def damage_it(versions: DataVersions) -> None:
        damage(objects_of(versions.workspace.root / store, versions.workspace.data, name))

    return damage_it


def lose_listing(versions: DataVersions) -> None:
    for path in versions.workspace.root.rglob(f"{versions.resolve('selected')[2:]}.dir"):
        path.unlink()


def drop_from_copy(versions: DataVersions) -> None:
    (versions.workspace.versions / versions.resolve("selected") / "index.parquet").unlink()


def drop_from_data(versions: DataVersions) -> None:
    (versions.workspace.data / "index.parquet").unlink()


@pytest.mark.parametrize(
    ("break_it", "links", "file"),
    [
        (remove_tag, {"tag"}, "refs/tags/data/"),
        (point_elsewhere, {"pointer"}, "data.dvc"),
        (flip(".dvc/cache", "labels.parquet"), {"cache"}, "labels.parquet: "),
        (flip("remote", "labels.parquet"), {"remote"}, "labels.parquet: "),
        (lose_listing, {"cache", "remote"}, "its listing: "),
        (drop_from_copy, {"copy"}, "index.parquet"),
        (drop_from_data, {"data"}, "index.parquet"),
    ],
)
def test_a_broken_link_is_named_and_healed(
    versions: DataVersions, break_it: Callable[[DataVersions], None], links: set[str], file: str
) -> None:
    version, data = versions.log()[0].id, contents(versions.workspace.data)
    assert versions.verify() == []
    break_it(versions)
    found = versions.verify()
    assert {broken.link for broken in found} == links
    assert all(file in broken.file and version[:12] in broken.way_out for broken in found)
    assert versions.verify() == found, "a check changes nothing"
    versions.heal()
    assert versions.verify(reread=True) == []
    assert contents(versions.workspace.data) == data


def test_without_an_intact_copy_nothing_is_healed_and_a_backup_is_asked_for(versions: DataVersions) -> None:
    for store in (".dvc/cache", "remote"):
        flip(store, "VERSION.json")(versions)
    shutil.rmtree(versions.workspace.versions)
    (versions.workspace.data / "VERSION.json").unlink()
    versions.heal("selected")
    found = versions.verify("selected")
    assert {broken.link for broken in found} == {"cache", "remote", "data"}
    assert all("backup" in broken.way_out for broken in found if broken.link != "data")


def test_an_edit_is_not_healed_away(versions: DataVersions) -> None:
    labels = versions.workspace.data / "labels.parquet"
    labels.unlink()
    labels.write_bytes(b"mine")
    versions.heal("selected")
    (broken,) = versions.verify("selected")
    assert (broken.link, broken.file, "move it away" in broken.way_out) == ("data", str(labels), True)
    assert labels.read_bytes() == b"mine"


def test_bit_rot_is_found_by_reading_all_bytes_again(versions: DataVersions) -> None:
    """Covers a disk that returns other bytes for the same name, size and time."""
    shard = next(path.relative_to(versions.workspace.data).as_posix() for path in versions.workspace.data.glob("s*/*"))
    path = objects_of(versions.workspace.remote, versions.workspace.data, shard)
    assert versions.verify("selected") == []
    before = path.stat()
    damage(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert versions.verify("selected") == [], "shards are read once"
    (broken,) = versions.verify("selected", reread=True)
    assert (broken.link, shard in broken.file) == ("remote", True)


def test_the_verb_exits_with_3_and_heals(versions: DataVersions) -> None:
    shop = versions.workspace.root
    drop_from_copy(versions)
    done = cleanshelf("data", "verify", "--all", "--json", "--workspace", shop)
    assert done.returncode == 3
    (broken,) = json.loads(done.stdout)
    assert (broken["link"], broken["problem"]) == ("copy", "is missing")
    assert cleanshelf("data", "verify", "--workspace", shop, "--heal").stdout == "every link holds\n"
    assert cleanshelf("data", "verify", "beef", "--workspace", shop).returncode == 2
