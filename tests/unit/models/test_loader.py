"""Photos in loader processes: the same batches for any number of them, and what happens if photos or processes fail."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models import distributed
from models.data import loader, machine, rows
from models.data.decoder import GREY, Decoder
from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.data.rows import Kept
from models.data.shards import Shards
from models.data.transfer import Batch, carried
from models.errors import LoaderError, ManifestError
from models.networks.inputs import Views
from models.networks.network import build_network
from models.recipe.config import Augment, Member
from models.recipe.learning import Train

SIDE = 24
MIXED = Augment(mixup=0.4)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def manifest(data: Path) -> Manifest:
    return read_manifest(data)


@pytest.fixture
def broken(data: Path, tmp_path: Path) -> Callable[..., Manifest]:
    """Function that makes a data version of which the photos in these rows are overwritten with zeros."""

    def make(*rows: int) -> Manifest:
        copy = Path(shutil.copytree(data, tmp_path / "broken"))
        manifest = read_manifest(copy)
        for row in rows:
            with (copy / "shards" / f"{manifest.shard[row]}.tar").open("r+b") as file:
                file.seek(int(manifest.offset[row]))
                file.write(bytes(int(manifest.size[row])))
        return manifest

    return make


def order_of(manifest: Manifest, size: int = 4) -> list[NDArray[np.int64]]:
    drawn = np.random.default_rng(3).permutation(len(manifest))
    return np.array_split(drawn, len(drawn) // size)


def views(manifest: Manifest, loaders: int, *, augment: Augment = MIXED) -> list[tuple[Tensor, list[int]]]:
    photos = Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=loaders)
    network = build_network(Member(backbone="test_resnet", size=32), num_classes=3)
    inputs = Views(photos, network, size=16, augment=augment)
    generator = torch.Generator().manual_seed(1)
    return [(each.photos, each.batch.tolist()) for each in inputs.training(order_of(manifest), generator)]


@pytest.mark.parametrize("room", [0, 10**9])
def test_views_and_order_do_not_depend_on_the_number_of_loaders(
    manifest: Manifest, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: room)
    expected = views(manifest, 0)
    assert [batch for _, batch in expected] == [positions.tolist() for positions in order_of(manifest)]
    for loaders in (1, 3):
        for (photos, batch), (others, other_batch) in zip(expected, views(manifest, loaders), strict=True):
            assert torch.equal(photos, others)
            assert batch == other_batch


def test_loaders_leave_torchs_random_numbers_as_they_are(manifest: Manifest) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    views(manifest, 1)
    torch.manual_seed(0)
    list(Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=1).in_order(4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_photos_that_are_kept_are_not_read_again(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=2)
    first = torch.cat(list(photos.in_order(4)))
    monkeypatch.setattr(Shards, "read", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(loader, "DataLoader", lambda *_: pytest.fail("a process was started"))
    assert torch.equal(torch.cat(list(photos.in_order(5))), first)


def test_memory_is_not_promised_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_alive", weakref.WeakSet())
    bytes_of_ten = 10 * SIDE * SIDE * 3
    monkeypatch.setattr(machine, "sharing", lambda: 1)
    monkeypatch.setattr(machine, "available_bytes", lambda: 2 * bytes_of_ten)
    first = Kept(8, side=SIDE)
    second = Kept(20, side=SIDE)
    assert (len(first), len(second)) == (8, 6)  # half of 20, and half of the 12 that are left
    first.filled[:] = True  # now it is counted by the system
    assert len(Kept(20, side=SIDE)) == 7
    assert first.has(np.array([7, 8])).tolist() == [True, False]


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_broken_photo_is_replaced_by_the_next_of_its_batch(
    data: Path, broken: Callable[..., Manifest], loaders: int, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = broken(*(bad := order_of(read_manifest(data))[1][[2, 3]]))
    order = order_of(manifest)
    with caplog.at_level(logging.WARNING, logger="models"):
        found = views(manifest, loaders, augment=Augment())
    batches = [batch for _, batch in found]
    assert batches[1] == [*order[1][:2].tolist(), order[1][0], order[1][0], *order[1][4:].tolist()]
    assert batches[0] == order[0].tolist()
    assert len(caplog.messages) == 2
    for row, message in zip(bad, caplog.messages, strict=True):
        assert manifest.id[row] in message
        assert f"shards/{manifest.shard[row]}.tar" in message
    assert "cannot be used: not a picture" in caplog.messages[0]


def test_every_worker_replaces_a_broken_photo_in_the_same_way(
    broken: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photo that replaces the last one of the first worker's part belongs to the second."""
    manifest = broken(1)
    photos = Photos(manifest, np.arange(len(manifest)), side=SIDE)
    (whole,) = photos.batches([np.array([0, 1, 2, 3])], [np.arange(4)])
    monkeypatch.setattr(distributed, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = np.arange(4)[distributed.part(4)]
        (part,) = photos.batches([np.array([0, 1, 2, 3])], [own])
        assert part.positions.tolist() == [0, 2, 2, 3][distributed.part(4)]
        assert torch.equal(part.photos, whole.photos[distributed.part(4)])


def test_a_broken_photo_is_grey_where_each_needs_a_result(broken: Callable[..., Manifest]) -> None:
    manifest = broken(2)
    photos = Photos(manifest, np.arange(len(manifest)), side=SIDE)
    found = torch.cat(list(photos.in_order(4)))
    assert (found.flatten(1) == GREY).all(1).nonzero().tolist() == [[2]]
    assert list(photos.faults.why) == [2]


def test_many_broken_photos_stop_the_run(broken: Callable[..., Manifest]) -> None:
    manifest = broken(1, 5, 9, 12)
    with pytest.raises(ManifestError, match=r"4 photos cannot be decoded, more than.*" + manifest.id[1]):
        views(manifest, 0)


def test_a_batch_without_any_photo_stops_the_run(broken: Callable[..., Manifest]) -> None:
    photos = Photos(broken(1, 2), np.arange(4), side=SIDE)
    with pytest.raises(ManifestError, match="2 photos cannot be decoded, among them all of one batch"):
        list(photos.batches([np.array([1, 2])], [np.arange(2)]))


def test_a_shard_that_ends_early_is_a_fault_and_a_missing_one_is_an_error(broken: Callable[..., Manifest]) -> None:
    manifest = broken()
    short = dataclasses.replace(manifest, offset=np.where(np.arange(len(manifest)) == 3, 10**9, manifest.offset))
    photos = Photos(short, np.arange(len(manifest)), side=SIDE)
    list(photos.in_order(8))
    assert photos.faults.why == {
        3: f"the shard ends before offset 1000000000 + size {manifest.size[3]} of index.parquet"
    }
    (manifest.data / "shards" / f"{manifest.shard[0]}.tar").unlink()
    with pytest.raises(ManifestError, match=r"\.tar: no such shard; restore the data version"):
        next(Photos(manifest, np.arange(4), side=SIDE).in_order(2))


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    decode = Decoder._decode

    def waiting(*arguments: object) -> bool:
        time.sleep(seconds)
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "_decode", waiting)


def children() -> set[int]:
    me = os.getpid()
    return {int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}


def test_a_killed_loader_is_named_and_not_waited_for(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.2)
    before, started = children(), time.monotonic()
    batches = Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=2).in_order(4)
    next(batches)
    killed = min(children() - before)
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(LoaderError, match=rf"a loader process died \(pid {killed}, SIGKILL\).*memory.*train.loaders"):
        torch.cat(list(batches))
    assert time.monotonic() - started < 10
    assert children() <= before


def test_a_loader_killed_during_a_step_is_noticed_in_the_step(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, 0.2)
    before = children()
    batches = Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=2).in_order(4)
    next(batches)
    killed = min(children() - before)
    with pytest.raises(LoaderError, match=rf"died \(\(pid {killed}\) is killed by signal: Killed.*lacked memory"):
        os.kill(killed, signal.SIGKILL) or time.sleep(5)
    batches.close()  # type: ignore[attr-defined]
    assert children() <= before


def test_a_loader_that_hangs_is_not_waited_for_forever(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 60)
    monkeypatch.setattr(loader, "PATIENCE_S", 0.5)
    before = children()
    with pytest.raises(LoaderError, match=r"no loader process has given a batch for 0.5 s; check that the disk"):
        list(Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=2).in_order(4))
    assert children() <= before


PROGRAM = """
import sys
import numpy as np
from pathlib import Path
from models.data.manifest import read_manifest
from models.data.photos import Photos

manifest = read_manifest(Path(sys.argv[1]))
photos = Photos(manifest, np.arange(len(manifest)), side=256, loaders=2)
"""
COUNTS = PROGRAM + "print(sum(len(batch) for batch in photos.in_order(4)), len(manifest))"
FAILS = PROGRAM + "batches = photos.in_order(4); next(batches); raise TypeError('unforeseen')"


def test_loaders_need_no_shared_memory_of_the_container(data: Path) -> None:
    """Docker gives /dev/shm 64 MB; here it has less than one photo takes."""
    command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99; exec "$@"', "sh"]
    words = [*command, sys.executable, "-c", COUNTS, str(data)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    if ended.returncode == 99 or "unshare" in ended.stderr:
        pytest.skip("this machine permits no mount")
    loaded, every = ended.stdout.split()
    assert loaded == every, ended.stderr


def test_an_unhandled_error_ends_the_loaders_too(data: Path) -> None:
    command = [sys.executable, "-c", FAILS, str(data)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.endswith("TypeError: unforeseen\n")


def test_a_pass_that_is_given_up_leaves_no_process(manifest: Manifest) -> None:
    before = children()
    batches = Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=2).in_order(4)
    next(batches)
    assert len(children() - before) == 2
    batches.close()  # type: ignore[attr-defined]
    assert children() <= before


class Pretend:
    """A device that notes when a copy starts, and when it is used."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def send(self, batch: Batch) -> Callable[[], Tensor]:
        number = int(batch.photos[0])
        self.events.append(f"send {number}")

        def received() -> Tensor:
            self.events.append(f"use {number}")
            return batch.photos + 100

        return received


def test_the_next_batch_is_under_way_while_one_is_used() -> None:
    device = Pretend()
    batches = (Batch(torch.tensor([number]), np.array([number])) for number in range(3))
    found = [(int(photos), positions.tolist()) for photos, positions, _ in carried(batches, device)]
    assert found == [(100, [0]), (101, [1]), (102, [2])]
    assert device.events == ["send 0", "send 1", "use 0", "send 2", "use 1", "use 2"]


@pytest.mark.parametrize(
    ("quota", "side_by_side", "local", "expected"),
    [
        ("max 100000", "", "1", 31),
        ("800000 100000", "", "1", 7),
        ("max 100000", "4", "2", 3),
        ("100000 100000", "", "1", 1),
    ],
)
def test_loaders_share_the_cores(
    quota: str, side_by_side: str, local: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setenv("CLEANSHELF_SIDE_BY_SIDE", side_by_side)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    number = machine.cores(tmp_path)
    monkeypatch.setattr(machine, "cores", lambda: number)
    assert machine.num_loaders(0, torch.device("cuda")) == expected
    assert machine.num_loaders(0, torch.device("cpu")) == 0
    assert machine.num_loaders(5, torch.device("cpu")) == 5


def test_memory_is_what_the_container_still_has(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert machine.available_bytes(tmp_path, meminfo) == 5_120_000
    (tmp_path / "memory.max").write_text("4000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert machine.available_bytes(tmp_path, meminfo) == 1_500_000


def test_the_number_of_loaders_is_not_decisive() -> None:
    assert Train(loaders=7).decisive == Train()
