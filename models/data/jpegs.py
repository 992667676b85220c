"""JPEGs decoded on the device that needs their pixels, a batch at a time: by nvJPEG on a GPU, by libjpeg-turbo on a CPU.

Both come with torchvision, whose decoders TorchCodec is to replace; this module alone calls them. Unmeasured on a GPU: written
without one.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_jpeg

from models.errors import ConfigError

TOGETHER = 32  # photos of one size that are resized at a time, in float32: 100 MB of 500 px


def decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor | None]:
    """Pixels (3, h, w) uint8 of each file, on the device; None for a file that its decoder refuses.

    The decoder refuses a whole list and does not say why, so a list is halved until the refused file is alone.

    Args:
        files: (bytes,) uint8 on the CPU, each a JPEG that is grey or YCbCr.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*TorchCodec", DeprecationWarning)  # known: see above
            return list(decode_jpeg(list(files), ImageReadMode.RGB, device))
    except torch.OutOfMemoryError:  # not the file's fault
        raise
    except RuntimeError:
        if len(files) == 1:
            return [None]
    half = len(files) // 2
    return decode(files[:half], device) + decode(files[half:], device)


def squeeze_into(out: Tensor, places: Sequence[int], photos: Sequence[Tensor]) -> None:
    """Squeezes photos (3, h, w) uint8 of any sizes into their places of `out` (n, side, side, 3), as `pixels.to_square` does.

    Photos of one size are resized together, in float32: torch resizes no uint8 on a GPU. To within 1 of 255.
    """
    by_size = defaultdict[torch.Size, list[int]](list)
    for number, photo in enumerate(photos):
        by_size[photo.shape].append(number)
    for numbers in by_size.values():
        for start in range(0, len(numbers), TOGETHER):
            some = numbers[start : start + TOGETHER]
            found = torch.stack([photos[number] for number in some])
            if found.shape[2:] != out.shape[1:3]:
                size = out.shape[1:3]
                found = functional.interpolate(found.float(), size, mode="bilinear", antialias=True).round_().byte()
            at = torch.tensor([places[number] for number in some]).to(out.device, non_blocking=True)
            out.index_copy_(0, at, found.permute(0, 2, 3, 1))


@cache
def require_nvjpeg() -> None:
    """Raises ConfigError unless torchvision can decode JPEGs on a GPU of this machine."""
    if not torch.cuda.is_available():
        reason = "this machine has no GPU that torch can use"
    elif decode([_small()], torch.device("cuda")) == [None]:
        reason = "the installed torchvision cannot use nvJPEG"
    else:
        return
    raise ConfigError(f'train.decode: "device" decodes photos on the GPU, but {reason}; set train.decode="cpu"')


def _small() -> Tensor:
    """A JPEG that every decoder accepts."""
    return torch.frombuffer(bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))), dtype=torch.uint8)
