"""Features of a frozen backbone, computed once for all photos of a data version and found again by every training of it.

All folds, rounds and members with the same backbone, weights, sizes and decoder share one file, whose name is a digest
of what the features depend on. The first training computes it, and others wait for it meanwhile; the kernel releases the lock of
a killed one, and the next goes on where it was. A damaged file is computed again: its size and pieces of it are checked.

Trainings map the file into memory: they read what a batch needs, and the system shares it between them. Features are
float32, as they were computed on a CPU (N x 2 x d x 4 bytes: 26 GB for 2.5 million photos and 1,280 features).
"""

from __future__ import annotations

import fcntl
import logging
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from durable import replacing
from models import distributed
from models.data.manifest import Manifest
from models.data.photos import Photos
from models.networks.inputs import MIRRORED, Features, extract, pairs
from models.networks.network import Network
from models.recipe.config import Augment, Member, content, digest
from models.training.train_state import Interval

log = logging.getLogger(__name__)

MINUTES = 1.0  # between notes of how far a pass has come
PIECES, PIECE_BYTES = 64, 1 << 20  # of a file that are checked


def frozen_features(
    manifest: Manifest,
    rows: NDArray[np.int64],
    network: Network,
    *,
    member: Member,
    side: int,
    folder: Path | None,
    augment: Augment = MIRRORED,
    loaders: int = 0,
    on_device: bool = False,
) -> Features:
    """Features of the photos `rows` of a manifest from a backbone that training leaves as its file gave it.

    Args:
        member: the network's member; its weights and sizes name the file.
        side: of the decoded photos, in pixels.
        folder: of the shared files; None: the features are computed for these rows and not kept.
        loaders: processes that decode photos, as `train.loaders`.
        on_device: plain JPEGs are decoded on the network's device, as `train.decode` asks.
    """

    def photos(chosen: NDArray[np.int64]) -> Photos:
        return Photos(manifest, chosen, side=side, device=network.mean.device, loaders=loaders, is_reduced=True,
                      on_device=on_device)  # fmt: skip

    if folder is None or not member.weights:
        return extract(photos(rows), network, size=member.size, augment=augment)
    index = content(str(manifest.data / "index.parquet"))
    parts = (member.backbone, member.args, member.mean, member.std, member.size, member.start, side, index, on_device)
    file = folder / f"{digest(*parts)}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(file.with_suffix(".lock")):
        if any(distributed.any_of(distributed.rank() == 0 and not _is_whole(file))):
            every = photos(np.arange(len(manifest)))
            log.info(
                "computing the features of all %d photos, once for every training of %s", len(every), member.backbone
            )
            _write(file, every, network, size=member.size)
    table = torch.from_numpy(np.load(file, mmap_mode="r+")).transpose(0, 1)
    if network.mean.device.type == "cuda" and (own := _on_gpu(table, rows, network.mean.device)) is not None:
        return Features(own, network.head, augment=augment)
    return Features(table, network.head, augment=augment, rows=rows)


def _on_gpu(table: Tensor, rows: NDArray[np.int64], device: torch.device) -> Tensor | None:
    """(2, N, d) rows of a table on the GPU, if they take at most a quarter of its free memory."""
    free, _ = torch.cuda.mem_get_info(device)
    if 4 * table[:, :1].nbytes * len(rows) > free:
        return None
    return table[:, torch.from_numpy(rows)].to(device)


def _write(file: Path, photos: Photos, network: Network, *, size: int) -> None:
    """Writes features (N, 2, d) float32 batch by batch; each worker its part. A killed pass goes on where it was."""
    part, own = file.with_suffix(".part"), distributed.part(len(photos))
    progress = file.with_suffix(f".done{distributed.rank()}of{distributed.world()}")
    shape = (len(photos), 2, network.head.embed.in_features)
    if distributed.rank() == 0 and not _fits(part, shape):
        for old in file.parent.glob(f"{file.stem}.done*"):
            old.unlink()
        np.lib.format.open_memmap(part, "w+", np.float32, shape)
    distributed.barrier()  # the file is there
    table = np.lib.format.open_memmap(part, "r+")
    done = own.start + (int(progress.read_text()) if progress.exists() else 0)
    due = Interval(MINUTES)
    for pair in pairs(photos, network, size=size, part=slice(done, own.stop)):
        table[done : done + len(pair)] = pair.cpu().numpy()
        done += len(pair)
        if due.over():
            table.flush()
            progress.write_text(str(done - own.start))
    table.flush()
    progress.write_text(str(done - own.start))
    distributed.barrier()  # all parts are there
    if distributed.rank() == 0:
        with replacing(file.with_suffix(".sum")) as out:
            out.write(_checksum(part).encode())
        part.replace(file)
        for old in file.parent.glob(f"{file.stem}.done*"):
            old.unlink()
    distributed.barrier()


def _fits(part: Path, shape: tuple[int, ...]) -> bool:
    """True if a killed pass left a table of this shape."""
    try:
        return np.lib.format.open_memmap(part, "r").shape == shape
    except (OSError, ValueError):
        return False


def _is_whole(file: Path) -> bool:
    """True if the file is there and has the checksum that was written after it."""
    if not file.exists():
        return False
    noted = file.with_suffix(".sum")
    if noted.exists() and noted.read_text() == _checksum(file):
        return True
    log.warning("%s is damaged; the features are computed again", file)
    return False


def _checksum(file: Path) -> str:
    """Size, and checksum of up to PIECES pieces spread evenly over a file: all of a small one, 64 MB of a large one."""
    size, found = file.stat().st_size, 0
    with file.open("rb") as content:
        for start in np.linspace(0, max(size - PIECE_BYTES, 0), min(PIECES, 1 + size // PIECE_BYTES)).astype(int):
            content.seek(start)
            found = zlib.crc32(content.read(PIECE_BYTES), found)
    return f"{size} {found:08x}"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Context that only one training is in at a time, with all its workers, of which the first holds the lock."""
    with file.open("a") as lock:
        while not any(distributed.any_of(_takes(lock.fileno()))):
            time.sleep(1)  # in short waits, as the exchange between workers gives up on long ones
        yield


def _takes(descriptor: int) -> bool:
    """True if this is the first worker and it has taken the lock."""
    if distributed.rank():
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
