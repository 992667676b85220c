"""Classifier and loss together, a few rows at a time, for logits of N x C that do not fit into memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models.losses.base import Loss
from models.networks.margins import nearest


def chunked_loss(
    loss: Loss, weight: Tensor, embedding: Tensor, target: Tensor, index: Tensor | None = None, *, rows: int
) -> Tensor:
    """(N,) loss of the logits embedding @ weight.T, of which only `rows` rows exist at a time, forward and backward.

    If a class has several rows in `weight`, its logit is the largest of their products.

    The backward pass computes each piece again, at the cost of one more matrix product, and adds to the gradient of the
    weight in place.

    Args:
        loss: gradients reach its trainable parameters too, if it has any.
        weight: (C, d) of the bias-free classifier, or (C x K, d) with the K rows of a class side by side.
        embedding: (N, d).
        rows: > 0; needs memory for about three times rows x C numbers.
    """
    values: Tensor = _Chunked.apply(loss, rows, target, index, weight, embedding, *loss.parameters())
    return values


class _Chunked(Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Loss, rows: int, target: Tensor, index: Tensor | None, weight: Tensor, embedding: Tensor,
        *_own: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.loss, ctx.rows, ctx.index = loss, rows, index
        kind = embedding.device.type
        ctx.autocast = {
            "device_type": kind,
            "dtype": torch.get_autocast_dtype(kind),
            "enabled": torch.is_autocast_enabled(kind),
        }
        ctx.save_for_backward(target, weight, embedding)
        return torch.cat([_piece(loss, part, target, index, weight, embedding) for part in _parts(len(target), rows)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        target, weight, embedding = ctx.saved_tensors
        own = [p for p in ctx.loss.parameters() if p.requires_grad]
        by_weight, by_embedding = torch.zeros_like(weight), torch.empty_like(embedding)
        by_own = [torch.zeros_like(p) for p in own]
        for part in _parts(len(target), ctx.rows):
            rows = embedding[part].detach().requires_grad_()
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                scores = _scores(rows.detach(), weight).requires_grad_()
                logits = nearest(scores, ctx.loss.num_classes)
                values = ctx.loss(logits, target[part], None if ctx.index is None else ctx.index[part], rows)
            by_scores, by_rows, *more = torch.autograd.grad(
                values, [scores, rows, *own], by_value[part], allow_unused=True
            )
            _add_product(by_weight, by_scores, rows.detach())
            by_embedding[part] = by_scores.to(weight.dtype) @ weight
            if by_rows is not None:
                by_embedding[part] += by_rows
            for total, found in zip(by_own, more, strict=True):
                total += 0 if found is None else found
        found_own = iter(by_own)
        of_parameters = [next(found_own) if p.requires_grad else None for p in ctx.loss.parameters()]
        return None, None, None, None, by_weight, by_embedding, *of_parameters


def _piece(loss: Loss, part: slice, target: Tensor, index: Tensor | None, weight: Tensor, embedding: Tensor) -> Tensor:
    logits = nearest(_scores(embedding[part], weight), loss.num_classes)
    values: Tensor = loss(logits, target[part], None if index is None else index[part], embedding[part])
    return values


def _scores(rows: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.linear(rows, weight)  # half precision under autocast


def _add_product(total: Tensor, by_scores: Tensor, rows: Tensor) -> None:
    """total += by_scores.T @ rows, without a second matrix of the size of the weight."""
    total.addmm_(by_scores.T.to(total.dtype), rows.to(total.dtype))


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, count, rows)]
