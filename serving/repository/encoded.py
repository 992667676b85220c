"""The contract of `<model>-encoded`, its config.pbtxt, and its files in a model repository.

The model holds nothing of any version: it decodes, and asks the newest version that `<model>` serves. So it is laid once
and stays as it is whatever is published.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import contract
import pixels
from contract import encoded_name
from durable import overwrite
from serving.durable import disk_full_named
from serving.repository.model_config import batching

MAX_BATCH = 8
MAX_PHOTO_BYTES = 32 * 2**20
# name -> (Triton's type, dims after the batch dimension; -1: as `<model>` has it)
INPUTS = {"photo": ("TYPE_STRING", (1,))}
OUTPUTS = {
    "ids": ("TYPE_INT64", (-1,)),
    "probs": ("TYPE_FP32", (-1,)),
    "known": ("TYPE_FP32", (1,)),
    "embedding": ("TYPE_FP32", (-1,)),
    "error": (
        "TYPE_STRING",
        (1,),
    ),  # "" where all is well; else why this photo alone has no answer (ids -1, the rest 0)
    "version": ("TYPE_INT64", (1,)),  # of `<model>` that answered; 0 where none did
}


def config_text(model: str, *, instances: int | None = None) -> str:
    """Its config.pbtxt; `instances` defaults to the cores this process may use, since decoding is what it computes."""
    config = model_config_pb2.ModelConfig(
        name=encoded_name(model),
        backend="python",
        max_batch_size=MAX_BATCH,
        input=[{"name": name, "data_type": kind, "dims": dims} for name, (kind, dims) in INPUTS.items()],
        output=[{"name": name, "data_type": kind, "dims": dims} for name, (kind, dims) in OUTPUTS.items()],
        instance_group=[{"kind": "KIND_CPU", "count": instances or len(os.sched_getaffinity(0))}],
        dynamic_batching=batching(MAX_BATCH),
    )
    config.parameters["max_photo_bytes"].string_value = str(MAX_PHOTO_BYTES)
    return cast(str, text_format.MessageToString(config, as_utf8=True))


def install(root: Path, model: str) -> None:
    """Put `<model>-encoded` into the repository at `root`, each file whole; what is there already stays untouched.

    Raises:
        DiskFull.
    """
    folder = root / encoded_name(model)
    files = {
        folder / "1" / "model.py": (Path(__file__).parents[1] / "encoded" / "model.py").read_bytes(),
        folder / "1" / "pixels.py": Path(pixels.__file__).read_bytes(),  # the same decoder as everywhere
        folder / "1" / "contract.py": Path(contract.__file__).read_bytes(),
        folder / "config.pbtxt": config_text(model).encode(),
    }
    with disk_full_named(root):
        (folder / "1").mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            if not path.is_file() or path.read_bytes() != data:
                overwrite(path, data)
