"""Normalisation of pixels folded into the first convolutions of a backbone, as far as that is exact.

The scale of each channel goes into the weights. The mean stays a subtraction: added to a bias, it would be wrong at the
borders, where a padded zero stands for the mean.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-4  # of the largest feature; folding changes float32 features by about 1e-6


def with_scale_folded(backbone: nn.Module, scale: Tensor, *, size: int) -> nn.Module | None:
    """Copy of a backbone that answers to `x` as the given one to `x * scale`; None if it has no such form.

    The copy shares all weights but those of the first convolutions. It is compared with the given one on noise: a backbone may
    use its input in other ways, or normalise the weights of its convolutions.

    Args:
        scale: (1, 3, 1, 1), a factor per channel.
        size: side of the noise in pixels.
    """
    backbone = backbone.eval()
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, expected = _first_convolutions(backbone, noise)
        if not first:
            return None
        folded = _copied(backbone, own=[convolution.weight for convolution in first.values()])
        for name in first:
            folded.get_parameter(f"{name}.weight").data *= scale
        off = (folded(noise / scale) - expected).abs().max()
    return folded if off <= TOLERANCE * expected.abs().max() else None


def _first_convolutions(backbone: nn.Module, noise: Tensor) -> tuple[dict[str, nn.Conv2d], Tensor]:
    """Convolutions that take the input itself, by name, and the features of the input."""
    found: dict[str, nn.Conv2d] = {}

    def note(name: str, convolution: nn.Conv2d) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs[0] is noise and convolution.groups == 1:
                found[name] = convolution

        return hook

    named = [(name, part) for name, part in backbone.named_modules() if isinstance(part, nn.Conv2d)]
    hooks = [part.register_forward_pre_hook(note(name, part)) for name, part in named]
    try:
        return found, backbone(noise)
    finally:
        for hook in hooks:
            hook.remove()


def _copied(backbone: nn.Module, *, own: list[Tensor]) -> nn.Module:
    """Copy that shares all tensors except `own`."""
    shared = chain(backbone.parameters(), backbone.buffers())
    keep = {id(tensor) for tensor in own}
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in shared if id(tensor) not in keep})
