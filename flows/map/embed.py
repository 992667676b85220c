"""Embeddings of photos by the network of a fold, for versions whose cleaning kept none. Imports torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.manifest import read_manifest
from models.data.photos import Photos
from models.networks.inputs import MIRRORED, Views
from models.networks.predict import embeddings
from models.training.train import load_network, to_device


def embed(data: Path, network: Path, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    """(N, 512) embeddings of these rows of a data version; a photo that cannot be decoded has that of a grey one.

    Raises:
        ManifestError: a shard is missing, or too many photos cannot be decoded.
    """
    trained = load_network(network)
    on_device, size = to_device(trained.network), trained.member.size
    photos = Photos(read_manifest(data), rows, side=size, device=on_device.mean.device, is_reduced=True)
    found: NDArray[np.float16] = (
        embeddings(on_device, Views(photos, on_device, size=size, augment=MIRRORED)).half().cpu().numpy()
    )
    return found
