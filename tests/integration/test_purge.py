"""Photos deleted for good: no copy of their bytes remains, every other photo does, and a killed purge is completed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from flows.data.fingerprints import Fingerprints
from flows.data.garbage import find_unused, free
from flows.data.purge_record import Purged
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.endpoint.recent import Recent
from flows.errors import PurgedVersion, Unconfirmed, UnknownPhoto
from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.purge import affected, complete, purge
from flows.registry.versions import ModelVersions
from flows.review.decisions import Decision, Decisions
from flows.workspace import Workspace
from models.data.manifest import read_manifest, read_table
from serving import Recognition
from tests.command_line import cleanshelf
from tests.deliveries import deliver, photo
from tests.kills import Kills
from tests.versions import commit_drop, commit_first, contents

pytestmark = [
    pytest.mark.dvc,
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace with two versions of twelve photos, a third version with two more, and a model of the first."""
    root = tmp_path_factory.mktemp("prepared")
    versions = DataVersions(Workspace.init(root / "shop"))
    first = commit_first(versions, root)
    commit_drop(versions, num=1)
    versions.materialise(first)
    base, folder = versions.materialise("selected"), versions.new_folder()
    build_version(deliver(root / "more", {"Red Mug": 2}, first_seed=500), base=base, out=folder, parent=base.name)
    versions.commit(folder, step="ingest", message="more")
    ModelVersions(versions.ledger).register({"version": 1, "run": "r", "data_version": first})
    return root / "shop"


@pytest.fixture
def versions(prepared: Path, tmp_path: Path) -> DataVersions:
    return DataVersions(Workspace.find(Path(shutil.copytree(prepared, tmp_path / "it's a shop", symlinks=True))))


def a_photo(versions: DataVersions) -> tuple[str, bytes]:
    """Hash (sha256) and bytes of a photo of the first delivery."""
    content = photo(3)
    index = read_table(versions.workspace.data, name="index").to_pydict()
    manifest = read_manifest(versions.workspace.data)
    row = next(row for row in range(len(manifest)) if manifest.read_photo(row) == content)
    return index["sha256"][row], content


def check_gone(versions: DataVersions, sha256: str, content: bytes) -> None:
    holders = [name for name, found in contents(versions.workspace.root).items() if content in found]
    assert holders == []
    manifest = read_manifest(versions.workspace.data)
    assert len(manifest) == 13
    assert sha256[:16] not in manifest.id
    assert {manifest.read_photo(row) for row in range(13)} == {photo(seed) for seed in [*range(12), 500, 501]} - {
        content
    }
    assert Purged.read(versions.ledger).complete
    assert (versions.log()[0].step, versions.log()[0].selected) == ("purge", True)
    assert versions.verify(reread=True) == []
    versions.check_clean()
    versions.push()
    free(find_unused(versions))
    assert versions.verify() == []


def test_a_purged_photo_is_gone_from_every_file_and_the_others_remain(versions: DataVersions) -> None:
    sha256, content = a_photo(versions)
    concerned = affected(versions, [sha256[:16]])
    assert concerned.photos == (sha256,)
    assert set(concerned.data_versions) == {entry.id for entry in versions.log()}
    assert concerned.models == (1,)
    old = versions.log()
    decisions = Decisions(versions.workspace.state)
    decisions.add([Decision(photo, "keep", "tea", "Ana", old[0].id) for photo in (sha256[:16], "0" * 16)])
    recent = Recent(versions.workspace.state)
    for kept in (content, photo(99)):
        recent.add(kept, Recognition((("tea", 0.9),), 0.9, 1, old[0].id))
    purge(versions, [sha256[:16]])
    assert list(decisions.pending()) == ["0" * 16]
    assert [each.sha256 for each in recent.photos()] == [hashlib.sha256(photo(99)).hexdigest()]
    assert versions.log()[1:] == [entry.__class__(**{**vars(entry), "selected": False}) for entry in old]
    assert versions.log()[0].parent == old[0].id
    check_gone(versions, sha256, content)


def test_a_photo_leaves_versions_of_format_1(tmp_path: Path) -> None:
    versions = DataVersions(Workspace.init(tmp_path / "shop"))
    former = commit_first(versions, tmp_path, format_1=True)
    assert "looks.parquet" in contents(versions.workspace.data)
    commit_drop(versions, num=1)
    base, folder = versions.materialise("selected"), versions.new_folder()
    more = deliver(tmp_path / "more", {"Red Mug": 2}, first_seed=500)
    build_version(more, base=base, out=folder, parent=base.name)
    versions.commit(folder, step="ingest", message="more")
    sha256, content = a_photo(versions)
    purge(versions, [sha256])
    check_gone(versions, sha256, content)
    entry = versions.select(former)
    assert (entry.parent, entry.step, entry.counts["photos"]) == (former, "purge", 11)
    assert len(Fingerprints.read(versions.workspace.data).id) == 11
    assert not (versions.workspace.data / "looks.parquet").exists()
    assert versions.verify(reread=True) == []


def test_an_earlier_version_is_restored_without_the_photo(versions: DataVersions) -> None:
    sha256, content = a_photo(versions)
    first = versions.log()[-1].id
    purge(versions, [sha256])
    with pytest.raises(PurgedVersion, match="data rollback"):
        versions.materialise(first)
    with pytest.raises(PurgedVersion, match="data rollback"):
        versions.rollback(first)
    entry = versions.select(first)
    assert (entry.parent, entry.step, entry.counts["photos"], entry.counts["dropped"]) == (first, "purge", 11, 0)
    assert content not in b"".join(contents(versions.workspace.root).values())
    assert versions.verify(reread=True) == []
    assert versions.select(entry.id).id == entry.id


def test_pages_that_have_shown_a_purged_photo_show_it_no_longer(versions: DataVersions) -> None:
    shop = versions.workspace
    pages = TestClient(create_app(Site(shop), People(shop.state, open_to_all=True)), "http://127.0.0.1")
    (sha256, _), before = a_photo(versions), versions.selected()
    picture = f"/photos/{before}/{sha256[:16]}/96"
    shown = pages.get(picture)

    purge(versions, [sha256])

    again = [pages.get(picture), pages.get(picture, headers={"if-none-match": shown.headers["etag"]})]
    assert (shown.status_code, [answer.status_code for answer in again]) == (200, [404, 404])
    assert pages.get(f"/photos/selected/{sha256[:16]}/96").status_code == 404
    assert "max-age=86400" in shown.headers["cache-control"]


def test_two_purges_that_meet_in_one_shard(versions: DataVersions) -> None:
    manifest = read_manifest(versions.workspace.data)
    first = versions.log()[-1].id
    shard = read_manifest(versions.materialise(first)).shard[0]
    rows = np.flatnonzero(manifest.shard == shard)[:2]
    gone = [manifest.read_photo(row) for row in rows]
    for row in rows:
        purge(versions, [manifest.id[row]])
    entry = versions.select(first)
    assert entry.counts["photos"] == 12 - len(gone)
    everything = b"".join(contents(versions.workspace.root).values())
    assert all(content not in everything for content in gone)
    assert versions.verify(reread=True) == []


def test_a_purged_photo_that_is_delivered_again_is_refused(versions: DataVersions, tmp_path: Path) -> None:
    sha256, content = a_photo(versions)
    purge(versions, [sha256])
    again = deliver(tmp_path / "again", {"Red Mug": 6, "Kid's cup": 6})
    report = build_version(
        again, base=versions.workspace.data, out=tmp_path / "next", purged=Purged.read(versions.ledger).photos
    )
    assert (report.added, report.duplicates) == (0, 11)
    assert list(report.quarantined) == ["photo: was deleted for good by `data purge`"]
    assert content not in b"".join(contents(tmp_path / "next").values())


@pytest.mark.faults
def test_killed_while_purging(kills: Kills, versions: DataVersions) -> None:
    sha256, content = a_photo(versions)

    def prepare(folder: Path) -> Sequence[object]:
        shop = shutil.copytree(versions.workspace.root, folder / "shop", symlinks=True)
        return ["tests.verbs", "data", "purge", sha256, "--yes", "--workspace", shop]

    def check(folder: Path) -> None:
        after_kill = DataVersions(Workspace.find(folder / "shop"))
        if not Purged.read(after_kill.ledger).complete:
            with pytest.raises(Unconfirmed, match="interrupted"):
                after_kill.repair()
        complete(after_kill)
        if Purged.read(after_kill.ledger) == Purged():  # killed before the purge was recorded: nothing happened
            assert after_kill.verify() == []
            assert content in b"".join(contents(after_kill.workspace.data).values())
            purge(after_kill, [sha256])
        check_gone(after_kill, sha256, content)

    kills.strike("data purge", promises="I1 to I4; no byte of the photo is left", prepare=prepare, check=check)


def test_purge_on_the_command_line(versions: DataVersions) -> None:
    sha256, content = a_photo(versions)
    shop = ("--workspace", versions.workspace.root)
    with pytest.raises(UnknownPhoto, match="16 digits"):
        affected(versions, ["beef"])
    before = contents(versions.workspace.data)
    done = cleanshelf("data", "purge", sha256, "--json", *shop)
    assert (done.returncode, "--yes" in done.stderr) == (2, True)
    assert json.loads(done.stdout)["error"]["affected"]["photos"] == [sha256]
    assert contents(versions.workspace.data) == before
    assert cleanshelf("data", "purge", sha256, "--yes", *shop).returncode == 0
    check_gone(versions, sha256, content)
    first = versions.log()[-1].id
    assert cleanshelf("data", "rollback", first, *shop).returncode == 0
    assert versions.log()[0].parent == first
    assert cleanshelf("data", "purge", *shop).stdout == "no purge is left unfinished\n"
