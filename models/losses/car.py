"""Confidence adaptive regularisation: an extra unit predicts the label confidence, and labels are corrected slowly."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from models.losses.base import LOSSES, LossBatch
from models.losses.cross_entropy import Weight
from models.losses.memory import Column, Notes
from models.losses.softmax import LogitShift, one_minus_exp, pieces, summarise
from models.losses.stateful import AtLeastOne, Epoch, Stateful, Unit
from models.recipe.registry import Range

KEPT = 8  # classes of a soft label
FLOOR = 1e-4  # least probability inside a logarithm of the third term, as published; RCE uses the same
NO_CLASS = -1
NO_LOGIT = -1e4  # log-probability for NO_CLASS: far below any real one, and finite
BLOCK = 2**16  # samples whose labels are corrected at once

Portion = Annotated[float, Range(0, 1)]


@LOSSES.register(
    "car", paper="Lu, Bo and He 2021, abstract; formulas from the code of Noise Attention Learning (NeurIPS 2022)"
)
class CAR(Stateful):
    """-alpha sum_k t_k log q_k - lam log c - beta sum_k q_k log t_k, q = c p + (1 - c) t, c = sigmoid(w e + b).

    t is the label until `start_epoch`, then the soft label of the sample, which every `every` epochs becomes m t + (1 -
    m) p if c > delta. Early in training the gradient is c p_y / (c p_y + 1 - c) times that of cross-entropy, about lam
    p_y while p_y is small, so lam keeps training going. We could not verify that this is CAR as published: the formulas
    come from the code of the authors' later method, which contains the parts of CAR.

    Ours: a soft label keeps its 8 largest classes, and all others count as one more class with its own p and t. The
    published C terms clamped at 1e-4 would outweigh the label at many classes. The p of an epoch are collected and
    change the labels after it. c starts at 1/2.

    Args:
        lam: weight of -log c, >= 0; published .5, 10 (100 classes) and 50 (Clothing1M, WebVision).
        beta: weight of the third term, >= 0; published 0, and .1 on real noise.
        alpha: weight of the first term, > 0; raise it if a large lam outweighs this term.
        m: momentum of the soft labels, in [0, 1); published .9 (.7 to .99).
        delta: label confidence above which a soft label is corrected, in [0, 1]; published 0.
        start_epoch: first epoch of corrected labels; published 60 of 300 epochs (20 to 200).
        every: epochs between two corrections; published 10.
        width: dimension of the embedding.
    """

    name = "car"
    needs_embedding = True
    weighs_log_p = False
    columns: ClassVar = {
        "classes": Column(dtype="int32", fill=NO_CLASS, width=KEPT, of_classes=True),
        "probs": Column(dtype="float16", width=KEPT),
        "confidence": Column(dtype="float16", fill=0.5),
    }

    def __init__(
        self,
        num_classes: int,
        lam: Weight = 10.0,
        beta: Weight = 0.0,
        alpha: Annotated[float, Range(0, open_low=True)] = 1.0,
        m: Annotated[float, Range(0, 1, open_high=True)] = 0.9,
        delta: Portion = 0.0,
        start_epoch: Epoch = 60,
        every: AtLeastOne = 10,
        width: AtLeastOne = 512,
    ) -> None:
        super().__init__(num_classes)
        self.lam, self.beta, self.alpha, self.m, self.delta = lam, beta, alpha, m, delta
        self.first, self.every = start_epoch, every
        self.unit = Unit(width)

    @property
    def is_late(self) -> bool:
        """True from `start_epoch` on."""
        return self.epoch >= self.first

    @property
    def corrects(self) -> bool:
        """True if labels are corrected after this epoch."""
        return self.is_late and (self.epoch - self.first) % self.every == 0

    def unweighted(self, batch: LossBatch) -> Tensor:
        if not self.is_late or batch.index is None:
            return self.cost(batch, batch.log_p[:, None], torch.ones_like(batch.log_p)[:, None])
        classes = self.column_of("classes", batch).long()
        log_p: Tensor = _Picked.apply(batch.logits, classes.clamp(min=0), batch.target, batch.shift)
        none = classes == NO_CLASS
        t = self.column_of("probs", batch).to(log_p.dtype).masked_fill(none, 0)
        return self.cost(batch, log_p.masked_fill(none, NO_LOGIT), t)

    def cost(self, batch: LossBatch, log_p: Tensor, t: Tensor) -> Tensor:
        """(n,) sum of the three terms.

        Args:
            log_p: (n, K) log-probabilities of the classes of the soft label.
            t: (n, K) the soft label, with a sum of 1 at most; the rest is spread over the other classes.
        """
        log_c, log_doubt = self.confidence(batch, log_p.dtype)
        others = (self.num_classes - (log_p > NO_LOGIT).sum(1)).clamp(min=0)
        t_rest = torch.where(others > 0, 1 - t.sum(1), 0).clamp(min=0)
        p_rest = torch.where(others > 0, one_minus_exp(log_p.logsumexp(1).clamp(max=0)), 0)
        log_q = torch.logaddexp(log_c[:, None] + log_p, log_doubt[:, None] + t.log())
        q_rest = log_c.exp() * p_rest + log_doubt.exp() * t_rest
        tiny = torch.finfo(q_rest.dtype).tiny
        fit = -(t * log_q).sum(1) - t_rest * q_rest.clamp(min=tiny).log()
        value = self.alpha * fit - self.lam * log_c
        if self.beta:
            each = t_rest / others.clamp(min=1)
            against = (log_q.exp() * t.clamp(min=FLOOR).log()).sum(1) + q_rest * each.clamp(min=FLOOR).log()
            value = value - self.beta * against
        return value

    def confidence(self, batch: LossBatch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(n,) log c and log(1 - c); c = 1/2 without an embedding, as when a new loss is measured."""
        if batch.embedding is None:
            odds = torch.zeros(len(batch.logits), dtype=dtype, device=batch.logits.device)
        else:
            odds = self.unit(batch.embedding, dtype)
        return logsigmoid(odds), logsigmoid(-odds)

    def fill_columns(self) -> None:
        self.known["classes"][:, 0] = self.known.target
        self.known["probs"][:, 0] = 1

    def start_epoch(self, epoch: int) -> None:
        super().start_epoch(epoch)
        if self.memory is not None:
            kept = min(KEPT, self.num_classes)
            self.memory.expect(confidence=1, **({"classes": kept, "probs": kept} if self.corrects else {}))

    def note(self, batch: LossBatch) -> None:
        assert batch.index is not None
        log_c, _ = self.confidence(batch, torch.float32)
        values = {"confidence": log_c.exp()}
        if self.corrects:
            logits = batch.logits.detach()
            best = logits.topk(min(KEPT, self.num_classes), dim=1)
            own = logits.gather(1, batch.target[:, None])
            log_p = summarise(logits, batch.target)[0]
            values |= {"classes": best.indices, "probs": (best.values - own + log_p[:, None]).exp()}
        self.known.note(batch.index, **values)

    def end_epoch(self) -> None:
        notes = self.known.merge()
        seen, confidence = notes.mean("confidence")
        self.known["confidence"][seen] = confidence
        if self.corrects:
            _, first, count = np.unique(notes.index, return_index=True, return_counts=True)
            trusted = np.flatnonzero(confidence > self.delta)
            for start in range(0, len(trusted), BLOCK):
                rows = trusted[start : start + BLOCK]
                self.correct(seen[rows], notes, first[rows], count[rows])

    def correct(
        self, samples: NDArray[np.int64], notes: Notes, first: NDArray[np.int64], count: NDArray[np.int64]
    ) -> None:
        """Sets soft labels to m t + (1 - m) p, with p the mean of each sample's `count` notes from `first` on."""
        classes, probs = self.known["classes"][samples], self.known["probs"][samples].astype(np.float32)
        probs = np.where(classes == NO_CLASS, 0, probs * np.float32(self.m))
        for repeat in range(count.max(initial=0)):
            rows = np.flatnonzero(count > repeat)
            noted = first[rows] + repeat
            part = (notes.values["probs"][noted] * ((1 - self.m) / count[rows, None])).astype(np.float32)
            noted_classes = notes.values["classes"][noted].astype(np.int32)
            classes[rows], probs[rows] = add_sparse(classes[rows], probs[rows], noted_classes, part)
        self.known["classes"][samples], self.known["probs"][samples] = classes, probs

    def figures(self) -> dict[str, float]:
        if self.memory is None:
            return {}
        changed = self.memory["classes"][:, 0] != self.memory.target
        return {
            "confidence": float(self.memory["confidence"].mean(dtype=np.float64)),
            "corrected_share": float(changed.mean()),
        }


def add_sparse(
    classes: NDArray[np.int32], probs: NDArray[np.float32], more: NDArray[np.int32], weights: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(n, K) classes and values of the sum of two sparse vectors per row: its K largest entries, the largest first."""
    same = classes[:, :, None] == more[:, None, :]
    together = probs + (same * weights[:, None, :]).sum(2)
    alone = np.where(same.any(1), 0, weights)
    all_classes, all_probs = np.concatenate([classes, more], 1), np.concatenate([together, alone], 1)
    order = np.argsort(-all_probs, axis=1, kind="stable")[:, : classes.shape[1]]
    kept = np.take_along_axis(all_probs, order, 1)
    return np.where(kept > 0, np.take_along_axis(all_classes, order, 1), NO_CLASS), kept


class _Picked(Function):
    """log p of some classes of each row, (n, K); keeps no N x C tensor, and its gradient is one buffer."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, target: Tensor, shift: LogitShift) -> Tensor:
        ctx.shift, ctx.dtype = shift, torch.promote_types(logits.dtype, torch.float32)
        ctx.save_for_backward(logits, classes, target)
        found = []
        for rows in pieces(logits):
            u = shift.apply(logits[rows].to(ctx.dtype), target[rows])
            found.append(u.gather(1, classes[rows]) - u.logsumexp(1, keepdim=True))
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_log_p: Tensor) -> tuple[Tensor, None, None, None]:
        logits, classes, target = ctx.saved_tensors
        gradient = torch.empty_like(logits, dtype=ctx.dtype)
        for rows in pieces(logits):
            u = ctx.shift.apply(logits[rows].to(ctx.dtype), target[rows])
            part = torch.softmax(u, 1, out=gradient[rows]).mul_(-by_log_p[rows].sum(1, keepdim=True))
            part.scatter_add_(1, classes[rows], by_log_p[rows])
        return gradient.to(logits.dtype), None, None, None
