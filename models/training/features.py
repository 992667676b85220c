"""Features of a frozen backbone, computed once for all photos of a data version and found again by every training of it.

All folds, rounds and members with the same backbone, weights and sizes share one file, whose name is a digest of what
the features depend on. The first training computes it, and others wait for it meanwhile; the kernel releases the lock of
a killed one. A damaged file is computed again: a read checks its checksum.
"""

from __future__ import annotations

import fcntl
import logging
import zipfile
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
from models.networks.inputs import MIRRORED, Features, extract
from models.networks.network import Network
from models.recipe.config import Augment, Member, content, digest

log = logging.getLogger(__name__)


def frozen_features(
    manifest: Manifest,
    rows: NDArray[np.int64],
    network: Network,
    *,
    member: Member,
    side: int,
    folder: Path | None,
    augment: Augment = MIRRORED,
) -> Features:
    """Features of the photos `rows` of a manifest from a backbone that training leaves as its file gave it.

    Args:
        member: the network's member; its weights and sizes name the file.
        side: of the decoded photos, in pixels.
        folder: of the shared files; None: the features are computed for these rows and not kept.
    """
    if folder is None or not member.weights or distributed.world() > 1:
        return extract(Photos(manifest, rows, side=side), network, size=member.size, augment=augment)
    index = content(str(manifest.data / "index.parquet"))
    parts = (member.backbone, member.args, member.mean, member.std, member.size, member.start, side, index)
    file = folder / f"{digest(*parts)}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(file.with_suffix(".lock")):
        views = _read(file)
        if views is None:
            every = Photos(manifest, np.arange(len(manifest)), side=side)
            log.info(
                "computing the features of all %d photos, once for every training of %s", len(every), member.backbone
            )
            views = extract(every, network, size=member.size).views.cpu()
            with replacing(file) as out:
                np.savez(out, views=views.numpy())
    own = views[:, torch.from_numpy(rows)]
    return Features(own.to(network.mean.device), network.head, augment=augment)


def _read(file: Path) -> Tensor | None:
    """Views (2, N, d) in a file; None if there is none, or a damaged one."""
    try:
        with np.load(file) as content_of:
            return torch.from_numpy(content_of["views"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        log.warning("%s is damaged; the features are computed again", file)
        return None


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
