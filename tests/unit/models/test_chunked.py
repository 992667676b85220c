"""Classifier and loss a few rows at a time: the same values and gradients as all rows at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses import LOSSES, Loss, Samples, build_loss
from models.losses.chunked import chunked_loss

N, CLASSES, WIDTH = 10, 37, 8


def problem(name: str, dtype: torch.dtype = torch.float64) -> tuple[Loss, Tensor, Tensor, Tensor, Tensor]:
    """A loss after `begin`, the classifier's weight, embedding, target and index."""
    draw = torch.Generator().manual_seed(3)
    own = {"width": WIDTH} if "width" in LOSSES.find(name).parameters else {}
    loss = build_loss(name, num_classes=CLASSES, **own)
    target = torch.randint(CLASSES, (N,), generator=draw)
    loss.begin(
        Samples(np.array([f"{i}" for i in range(N)], dtype=object), target.numpy(), [str(i) for i in range(CLASSES)])
    )
    loss.start_epoch(0)
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, generator=draw)
    weight = torch.randn(CLASSES, WIDTH, generator=draw, dtype=dtype).requires_grad_()
    embedding = torch.randn(N, WIDTH, generator=draw, dtype=dtype).requires_grad_()
    return loss, weight, embedding, target, torch.arange(N)


@pytest.mark.parametrize("name", ["ce", "agce", "nce+agce", "nfl", "ce+sr", "bi_tempered", "car", "marvel+"])
@pytest.mark.parametrize("rows", [1, 3, 10, 64])
def test_values_and_gradients_are_those_of_the_whole(name: str, rows: int) -> None:
    loss, weight, embedding, target, index = problem(name)
    of_each = torch.linspace(0.1, 2, N, dtype=torch.float64)  # the trainer may weight the values
    learnt = [weight, embedding, *loss.parameters()]
    whole = loss(embedding @ weight.T, target, index, embedding)
    expected = torch.autograd.grad((whole * of_each).sum(), learnt)
    pieces = chunked_loss(loss, weight, embedding, target, index, rows=rows)
    found = torch.autograd.grad((pieces * of_each).sum(), learnt)
    torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9 if ours.dtype == torch.float64 else 1e-5)


def test_half_precision_of_autocast_is_that_of_the_whole() -> None:
    loss, weight, embedding, target, _ = problem("nce+agce", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = loss(torch.nn.functional.linear(embedding, weight), target)
        pieces = chunked_loss(loss, weight, embedding, target, rows=5)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=0)
    expected = torch.autograd.grad(whole.sum(), [weight, embedding])
    found = torch.autograd.grad(pieces.sum(), [weight, embedding])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_the_logits_never_exist_as_a_whole() -> None:
    """Measured by the largest input of the loss."""
    loss, weight, embedding, target, _ = problem("ce")
    sizes = []
    loss.register_forward_pre_hook(lambda _, given: sizes.append(given[0].numel()))
    chunked_loss(loss, weight, embedding, target, rows=3).sum().backward()
    assert max(sizes) == 3 * CLASSES
    assert len(sizes) == 8, "four pieces, forward and backward"
