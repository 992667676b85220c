"""A cache of the Hugging Face hub with weights that a test writes, in the layout in which the hub's client keeps them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm
import torch
from safetensors.torch import save
from timm.models import get_pretrained_cfg
from torch import Tensor

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def state_of(name: str, *, seed: int = 1, **arguments: object) -> dict[str, Tensor]:
    """Tensors of a backbone with its classifier, drawn from a seed."""
    torch.manual_seed(seed)
    return dict(timm.create_model(name, pretrained=False, **arguments).state_dict())


def fill(home: Path, name: str, *, seed: int = 1) -> Path:
    """The file of timm's weights of a backbone in the cache below `home` (HF_HOME)."""
    settings = get_pretrained_cfg(name)
    assert settings is not None
    assert settings.hf_hub_id is not None
    content = save(state_of(name, seed=seed))
    folder = home / "hub" / f"models--{settings.hf_hub_id.replace('/', '--')}"
    blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
    file = folder / "snapshots" / COMMIT / "model.safetensors"
    for path in (blob, file, folder / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    (folder / "refs" / "main").write_text(COMMIT)
    file.unlink(missing_ok=True)
    file.symlink_to(blob)
    return file
