"""Hashes of files and listings."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.fs import MemoryFileSystem

from flows.data.dvc_store import folder_remote
from flows.data.objects import HashCache, Listing, Objects
from flows.data.remote import Moved, Remote
from flows.errors import CorruptObject, MissingFromRemote
from flows.workspace.files import sweep
from models.progress import MB, Progress


def test_a_shard_is_read_once_per_host_and_again_when_it_changes(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(b"one")
    os.utime(shard, ns=(1, 1))
    first = HashCache.load(tmp_path / "seen.json").md5(shard, once=True)
    assert first == hashlib.md5(b"one").hexdigest()
    with shard.open("r+b") as file:
        file.write(b"two")
    os.utime(shard, ns=(1, 1))  # same inode, size and time: only reading it again would show the change
    assert HashCache.load(tmp_path / "seen.json").md5(shard, once=True) == first
    assert HashCache.load(tmp_path / "seen.json").md5(shard) == hashlib.md5(b"two").hexdigest()
    os.utime(shard, ns=(2, 2))
    assert HashCache.load(tmp_path / "seen.json").md5(shard, once=True) == hashlib.md5(b"two").hexdigest()


def test_a_damaged_memory_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "seen.json").write_text("{")
    assert HashCache.load(tmp_path / "seen.json").known == {}


def test_a_listing_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "v" / "shards").mkdir(parents=True)
    (tmp_path / "v" / "b").write_bytes(b"b")
    (tmp_path / "v" / "shards" / "a").write_bytes(b"a")
    listing = Listing.of(tmp_path / "v", hashes=HashCache(tmp_path / "seen.json"))
    assert Listing.parse(listing.content, name="x") == listing
    assert listing.id == hashlib.md5(listing.content).hexdigest()
    assert list(listing.files) == ["b", "shards/a"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{}x", b'[{"md5": "1"}]', b'[{"md5": "1", "relpath": "../x"}]', b'[{"md5": "1", "relpath": "/x"}]'],
)
def test_a_listing_that_is_none_or_leaves_its_folder(content: bytes) -> None:
    with pytest.raises(CorruptObject, match="the listing"):
        Listing.parse(content, name="the listing")


def test_what_a_killed_writer_left_is_swept_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ours, theirs = tmp_path / f".seen.json.{os.getpid()}-1.part", tmp_path / f".seen.json.{child.pid}-1.part"
    for path in (ours, theirs, tmp_path / ".kept.part"):
        path.write_bytes(b"{")
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ours.name, ".kept.part"])


def test_what_others_write_in_a_remote_stays_and_what_a_kill_left_is_swept(tmp_path: Path) -> None:
    remote = folder_remote(tmp_path / "remote")
    (tmp_path / "object").write_bytes(b"new")
    remote.put("ab" + "1" * 30, tmp_path / "object")
    folder = tmp_path / "remote" / "ab"
    recent = {folder / f".{'x' * 22}.tmp", folder / ("1" * 30 + ".part")}
    old = {folder / f".{'y' * 22}.tmp", folder / ("2" * 30 + ".part")}
    for path in recent | old:
        path.write_bytes(b"half")
    for path in old:
        os.utime(path, (1, 1))
    remote.sweep(["ab" + "1" * 30])
    assert set(folder.iterdir()) == {folder / ("1" * 30), *recent}


def test_each_store_sweeps_what_earlier_kills_left_in_the_remote(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "labels").write_bytes(b"labels")
    objects = Objects(tmp_path / "cache", folder_remote(tmp_path / "remote"), HashCache(tmp_path / "seen.json"))
    listing = Listing.of(tmp_path / "v", hashes=objects.hashes)
    objects.bring_in(tmp_path / "v", listing)
    objects.store(listing)
    left = Path(objects.remote.path(listing.files["labels"])).with_suffix(".0123.part")
    left.write_bytes(b"half")
    objects.store(listing)
    assert left.exists(), "it may be of a living writer"
    os.utime(left, (1, 1))
    objects.store(listing)
    assert not left.exists()


def test_bytes_count_as_a_file_system_reports_them_or_at_the_end() -> None:
    progress = Progress("pushing", 150, unit=MB)
    moved = Moved(progress)
    callback = moved.callback()
    callback.set_size(100)
    callback.relative_update(30)
    callback.absolute_update(80)
    moved.count(100)
    Moved(progress).count(50)
    assert progress.last.photos == 150
    Moved(None).count(50)


def test_bytes_to_and_from_another_machine_are_counted(tmp_path: Path) -> None:
    remote, progress = Remote(MemoryFileSystem(), "/remote"), Progress("pushing", 10_000, unit=MB)
    (tmp_path / "file").write_bytes(bytes(5000))
    remote.put("ab" + "1" * 30, tmp_path / "file", progress=progress)
    assert remote.sizes(["ab" + "1" * 30, "ab" + "2" * 30]) == [5000, 0]
    assert progress.last.photos == 5000
    remote.get("ab" + "1" * 30, tmp_path / "copy", progress=progress)
    assert (tmp_path / "copy").read_bytes() == bytes(5000)
    assert progress.last.photos == 10_000


def test_objects_are_fetched_together_with_their_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cleanshelf")
    monkeypatch.setattr("models.progress.FIRST_S", 0.0)
    remote, content = folder_remote(tmp_path / "remote"), {"labels": b"labels", "shards/a.tar": bytes(3_000_000)}
    files = {name: hashlib.md5(each).hexdigest() for name, each in content.items()}
    for name, md5 in files.items():
        (tmp_path / "file").write_bytes(content[name])
        remote.put(md5, tmp_path / "file")
    assert remote.sizes([*files.values(), "0" * 32]) == [6, 3_000_000, 0]
    objects = Objects(tmp_path / "cache", remote, HashCache(tmp_path / "seen.json"))
    objects.get_all(files)
    assert all(objects.path(md5).read_bytes() == content[name] for name, md5 in files.items())
    assert caplog.messages[-1].startswith("fetching: 3 MB in ")
    caplog.clear()
    objects.get_all(files)
    assert not any("fetching" in line for line in caplog.messages), "they are here already"


def test_a_write_to_the_remote_that_fails_leaves_nothing(tmp_path: Path) -> None:
    remote = folder_remote(tmp_path / "remote")
    (tmp_path / "object").write_bytes(bytes(2000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(MissingFromRemote, match="cannot write"):
            remote.put("ab" + "1" * 30, tmp_path / "object")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "remote" / "ab").iterdir()) == []
