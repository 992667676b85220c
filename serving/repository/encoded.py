"""Contract of `<model>-encoded`, its config.pbtxt, and its files in a model repository.

This model decodes photos and asks the newest version that `<model>` serves. It holds no files of a version, so it is
installed once and does not change when another version is promoted.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import contract
import pixels
from contract import REQUEST_PHOTOS, encoded_name
from durable import overwrite
from serving.durable import disk_full_named
from serving.repository.accelerator import CPU
from serving.repository.model_config import batching

MAX_PHOTO_BYTES = 32 * 2**20
# Photos of several requests that an instance takes at once: some are decoded while others wait for the product model.
# That model takes all of them as live requests, so no more bulk than these is ahead of a live one.
JOINED = 4
# name -> (Triton's type, dims after the batch dimension; -1: the same as in `<model>`)
INPUTS = {"photo": ("TYPE_STRING", (1,))}
OUTPUTS = {
    "ids": ("TYPE_INT64", (-1,)),
    "probs": ("TYPE_FP32", (-1,)),
    "known": ("TYPE_FP32", (1,)),
    "embedding": ("TYPE_FP32", (-1,)),
    # "" for a good photo; else the reason why this photo has no answer (ids -1, other outputs 0)
    "error": ("TYPE_STRING", (1,)),
    "version": ("TYPE_INT64", (1,)),  # the version of `<model>` that answered; 0 if there is no answer
}


def config_text(model: str, *, instances: int | None = None) -> str:
    """Text of its config.pbtxt; None for the usual number of instances on a CPU, as decoding needs a core."""
    config = model_config_pb2.ModelConfig(
        name=encoded_name(model),
        backend="python",
        max_batch_size=REQUEST_PHOTOS,
        input=[{"name": name, "data_type": kind, "dims": dims} for name, (kind, dims) in INPUTS.items()],
        output=[{"name": name, "data_type": kind, "dims": dims} for name, (kind, dims) in OUTPUTS.items()],
        instance_group=[{"kind": "KIND_CPU", "count": instances or CPU.instances}],
        dynamic_batching=batching(JOINED),
    )
    config.parameters["max_photo_bytes"].string_value = str(MAX_PHOTO_BYTES)
    return cast(str, text_format.MessageToString(config, as_utf8=True))


def install(root: Path, model: str) -> None:
    """Writes `<model>-encoded` into the repository at `root`; each file is replaced atomically, and only if it differs.

    Raises:
        DiskFull: no file is half written.
    """
    folder = root / encoded_name(model)
    files = {
        # the decoder that training and clients use
        **{
            folder / "1" / "pixels" / path.name: path.read_bytes() for path in Path(pixels.__file__).parent.glob("*.py")
        },
        folder / "1" / "contract.py": Path(contract.__file__).read_bytes(),
        folder / "1" / "model.py": (Path(__file__).parents[1] / "encoded" / "model.py").read_bytes(),  # imports both
        folder / "config.pbtxt": config_text(model).encode(),
    }
    with disk_full_named(root):
        (folder / "1" / "pixels").mkdir(parents=True, exist_ok=True)
        (folder / "1" / "pixels.py").unlink(missing_ok=True)  # the decoder of an earlier release was one file
        for path, data in files.items():
            if not path.is_file() or path.read_bytes() != data:
                overwrite(path, data)
