"""Features of a frozen backbone, computed once per data set, weights and size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.networks.network import Network, build_network
from models.recipe.config import Member

BATCH = 4  # larger batches fall out of the cache of a core: three times as slow at 224 px
PADDING = {"mobilenetv2_100": {"pad_type": "same"}}  # the padding that the weights were trained with


def cached_features(
    photos: NDArray[np.uint8], *, weights: Path, photo_px: int, cache: Path, device: torch.device
) -> NDArray[np.float32]:
    """Features (N, d) of square photos (N, S, S, 3), resized to photo_px; read from the folder `cache` if they are there.

    The name of the weights file begins with timm's name of the backbone, as in mobilenetv2_100_qat.safetensors.

    Raises:
        WeightsMismatch: the weights file does not exist or belongs to another network.
    """
    network = build_network(member_of(weights, photo_px), num_classes=2).to(device).eval()
    name = hashlib.sha256(photos.tobytes() + weights.read_bytes() + str(photo_px).encode()).hexdigest()[:16]
    path = cache / f"features-{name}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, _features(network, photos, photo_px, device))
        part.replace(path)
    features: NDArray[np.float32] = np.load(path)
    return features


def member_of(weights: Path, photo_px: int) -> Member:
    """Member of the backbone that its weights file is named after."""
    backbone = weights.stem.removesuffix("_qat")
    return Member(backbone=backbone, weights=str(weights), size=photo_px, args=dict(PADDING.get(backbone, {})),
                  mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # fmt: skip


@torch.inference_mode()
def _features(network: Network, photos: NDArray[np.uint8], photo_px: int, device: torch.device) -> NDArray[np.float32]:
    made = []
    for start in range(0, len(photos), BATCH):
        pixels = torch.from_numpy(photos[start : start + BATCH]).to(device).permute(0, 3, 1, 2).float() / 255
        large = functional.interpolate(pixels, size=(photo_px, photo_px), mode="bicubic", align_corners=False)
        made.append(network.features(large.clamp(0, 1)).cpu().numpy())
    return np.concatenate(made)
