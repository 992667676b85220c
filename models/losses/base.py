"""The base class of all losses, the batch that a loss gets, and the options that all losses share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.data.records import short
from models.errors import BatchError, ConfigError
from models.losses.correction import Correction
from models.losses.samples import Samples
from models.losses.softmax import AnyTerm, LogitShift, one_minus_exp, summarise
from models.recipe.registry import Parameter, Range, Registry, parameters_of

if TYPE_CHECKING:
    from models.losses.memory import Memory

LOSSES = Registry("loss")
COUNT_FLOOR = 1.0  # smallest number of photos assumed for a class in the prior
LARGEST_SCALE = 1e6  # upper bound of the factor of init_match
NAMED = 5  # photos that an error names


class LossBatch:
    """A batch for a loss: log p_y and the sums that the loss declares, computed in one pass over the logits."""

    def __init__(
        self, logits: Tensor, target: Tensor, *, terms: tuple[AnyTerm, ...], shift: LogitShift,
        index: Tensor | None, embedding: Tensor | None,
    ) -> None:  # fmt: skip
        self.logits, self.target, self.index, self.embedding = logits, target, index, embedding
        self.terms, self.shift = terms, shift

    @cached_property
    def summary(self) -> tuple[Tensor, ...]:
        """log p_y and the sum of each term, (N,) each."""
        return summarise(self.logits, self.target, self.terms, self.shift)

    @property
    def log_p(self) -> Tensor:
        """(N,) log p_y, the log-probability of the target."""
        return self.summary[0]

    @cached_property
    def p(self) -> Tensor:
        """(N,) p_y, the probability of the target."""
        return self.log_p.exp()

    @cached_property
    def miss(self) -> Tensor:
        """(N,) 1 - p_y."""
        return one_minus_exp(self.log_p)

    def sum(self, term: AnyTerm) -> Tensor:
        """(N,) sum of a term over the classes; the loss has to declare the term in `terms`."""
        return self.summary[1 + self.terms.index(term)]

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits.shape[1]

    @cached_property
    def is_top(self) -> Tensor:
        """(N,) bool: True if the target has the largest logit; of equal logits the first counts as the largest."""
        logits = self.logits.detach()
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.shift.apply(wide, self.target).argmax(1) == self.target

    @cached_property
    def margin(self) -> Tensor:
        """(N,) float32 z_y - max_{k != y} z_k of the logits before `shift`, detached."""
        logits = self.logits.detach()
        best = logits.topk(2, dim=1)
        rival = torch.where(best.indices[:, 0] == self.target, best.values[:, 1], best.values[:, 0])
        return logits.gather(1, self.target[:, None])[:, 0].float() - rival.float()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every loss; they act inside the loss, during training only.

    Args:
        warmup_ce_epochs: epochs of plain cross-entropy at the start, which raise p_y above 1/C before wrong labels are
            memorised.
        blend_epochs: epochs after the warm-up over which the loss replaces cross-entropy, linearly.
        logit_bias: added to the target's logit, so that a bounded loss has a gradient at p_y = 1/C; ln(r (C - 1) / (1 -
            r)) makes training start at p_y = r: 8.6 for r = .1 at 50,030 classes ("Bounded Loss Robustness", ICLR 2024
            submission).
        init_match: "initial" scales the loss so that its gradient at equal logits equals that of cross-entropy, "batch"
            so that the mean weight in each batch is 1 (detached).
        logit_adjustment: tau in z + tau log prior, with the prior of the given labels (Menon et al., ICLR 2021,
            equation 10); 1 is balanced softmax (Ren et al., NeurIPS 2020).
    """

    warmup_ce_epochs: Annotated[int, Range(0)] = 0
    blend_epochs: Annotated[int, Range(0)] = 0
    logit_bias: Annotated[float, Range(-50, 50)] = 0.0
    init_match: Literal["", "initial", "batch"] = ""
    logit_adjustment: Annotated[float, Range(0, 4)] = 0.0


class Loss(nn.Module):
    """forward(logits (N, C), target (N,), index (N,), embedding (N, d)) -> (N,), unreduced, differentiable once.

    Computes in float32, also under autocast; float64 stays float64. A subclass implements `value` and lists in `terms`
    the sums over the classes that it needs beside log p_y. The training loop calls `begin` once, then `start_epoch` and
    `end_epoch` around every epoch, on every worker.
    """

    terms: tuple[AnyTerm, ...] = ()
    prior: Tensor | None  # (C,) tau times log prior of logit_adjustment, set by `begin`
    needs_index = False  # True for a loss with state per sample: forward needs the position of each sample
    needs_embedding = False
    memory: Memory | None = None  # state per sample, set by `begin` of a loss that has such state
    margin: Callable[[Tensor, Tensor], Tensor] | None = None  # adds a margin: (logits, target) -> logits
    weighs_log_p = True  # the gradient passes through log_p and `terms` alone, as init_match = "batch" requires

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(
                f"num_classes: a loss needs two classes at least, got {num_classes}; add photos of another"
            )
        self.num_classes = num_classes
        self.options = Options()
        self.scale = 1.0  # factor of init_match = "initial"
        self.ce_share = 0.0  # share of cross-entropy in this epoch, by warmup_ce_epochs and blend_epochs
        self.correction: Correction | None = None  # forward correction, if the label noise was estimated
        self.register_buffer("prior", None, persistent=False)

    @property
    def shift(self) -> LogitShift:
        """Changes to the logits inside the loss."""
        return LogitShift(bias=self.options.logit_bias, prior=self.prior)

    def value(self, batch: LossBatch) -> Tensor:
        """(N,) loss of each sample, before the options are applied."""
        raise NotImplementedError  # each loss has its own formula here

    def learnable(self) -> dict[str, Range]:
        """Bounds of the attributes that `models.training.meta` may learn; `value` has to accept tensors for them."""
        return {}

    def asymmetry_ratio(self) -> float:
        """r of Zhou et al. 2021, definition 3, in [0, 1]; 0 if no noise tolerance is known."""
        return 0.0

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        """(N,) loss of each sample, with the options applied; NaN if it or the target's logit is not finite.

        On a GPU nothing here waits for results: a class out of range ends in an assertion of torch, and a caller that reads
        the values has to look for NaN (`nonfinite_error`).

        Raises:
            BatchError: wrong shapes, a missing index or embedding, or, on the CPU, a target that is not a class.
        """
        self._check(logits, target, index, embedding)
        with torch.autocast(
            logits.device.type, enabled=False
        ):  # it would compute some sums over the classes in bfloat16
            return self._forward(logits, target.long(), index, embedding)

    def _forward(self, logits: Tensor, target: Tensor, index: Tensor | None, embedding: Tensor | None) -> Tensor:
        batch = self._batch(logits, target, index, embedding)
        self.observe(batch)  # before the margin is added: the memory holds what the network itself predicts
        if self.margin is not None:
            batch = self._batch(self.margin(logits, target), target, index, embedding)
        if self.ce_share == 1:
            value = self.warmup_value(batch)
        else:
            value = self._matched(batch)
            if self.ce_share:
                value = self.ce_share * self.warmup_value(batch) + (1 - self.ce_share) * value
        own = logits.gather(1, target[:, None])[:, 0]  # a bounded loss is finite even if this is -inf
        return torch.where(value.isfinite() & own.isfinite(), value, math.nan)

    def _batch(self, logits: Tensor, target: Tensor, index: Tensor | None, embedding: Tensor | None) -> LossBatch:
        corrected = logits if self.correction is None else self.correction(logits)
        return LossBatch(corrected, target, terms=self.terms, shift=self.shift, index=index, embedding=embedding)

    def observe(self, batch: LossBatch) -> None:
        """Called with every batch, also during the warm-up."""

    def warmup_value(self, batch: LossBatch) -> Tensor:
        """(N,) loss of the warm-up: cross-entropy."""
        return -batch.log_p

    def begin(self, samples: Samples) -> None:
        """Called once, before the first step.

        Raises:
            BatchError: a target that is not a class. Steps on a GPU do not look at targets any more.
        """
        self._check_classes("samples", samples.target)
        if self.options.logit_adjustment:
            counts = np.bincount(samples.target, minlength=self.num_classes).clip(COUNT_FLOOR)
            prior = torch.from_numpy(np.log(counts / counts.sum())).float()
            self.prior = self.options.logit_adjustment * prior

    def start_epoch(self, epoch: int) -> None:
        """Called before every epoch, counted from 0; also after a resume."""
        past = epoch - self.options.warmup_ce_epochs
        steps = self.options.blend_epochs + 1
        self.ce_share = 1.0 if past < 0 else max(1 - (past + 1) / steps, 0.0)

    def end_epoch(self) -> None:
        """Called after every epoch."""

    def figures(self) -> dict[str, float]:
        """Metrics of the epoch that ended, for metrics.jsonl; called on every worker after end_epoch."""
        return {}

    def wants_answers(self, epoch: int) -> bool:
        """True if the training loop has to call `take_answers` before this epoch."""
        return False

    def take_answers(self, log_p: Tensor, *, accuracy: float) -> None:
        """Receives the network's predictions for all training samples, without augmentation.

        Args:
            log_p: (N,) float32 log-probability of each sample's label, in the order of `Samples`.
            accuracy: accuracy of the network on the validation photos, in [0, 1]; NaN without validation photos.
        """
        raise NotImplementedError  # a loss whose wants_answers returns True has to implement it

    def _matched(self, batch: LossBatch) -> Tensor:
        value = self.value(batch)
        if self.options.init_match == "batch" and value.requires_grad:
            (weight,) = torch.autograd.grad(value.sum(), batch.log_p, retain_graph=True)
            return value / weight.mean().neg().clamp(min=1 / LARGEST_SCALE)
        return value if self.scale == 1 else value * self.scale

    def _check(self, logits: Tensor, target: Tensor, index: Tensor | None, embedding: Tensor | None) -> None:
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or not len(logits):
            raise BatchError(f"logits: shape {tuple(logits.shape)}, expected (N, {self.num_classes}) with N > 0")
        n = len(logits)
        if target.shape != (n,) or target.dtype == torch.bool or target.is_floating_point():
            raise BatchError(
                f"target: {target.dtype} of shape {tuple(target.shape)}, expected integers of shape ({n},)"
            )
        if target.device.type == "cpu":
            self._check_classes("target", target)
        if self.needs_index and index is None:
            raise BatchError("index: this loss keeps state per sample; pass the position of each sample")
        if self.needs_embedding and embedding is None:
            raise BatchError("embedding: this loss needs the embedding; pass it, (N, d)")

    def _check_classes(self, where: str, target: Tensor | NDArray[np.int64]) -> None:
        low, high = (int(target.min()), int(target.max())) if len(target) else (0, 0)
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise BatchError(f"{where}: {wrong} is not a class; classes go from 0 to {self.num_classes - 1}")


def nonfinite_error(photos: Sequence[str], *, lr: float) -> BatchError:
    """Error that names the photos whose loss is NaN, by id, and the present learning rate."""
    named = ", ".join(short(each) for each in photos[:NAMED])
    more = f" and {len(photos) - NAMED} more" if len(photos) > NAMED else ""
    return BatchError(
        f"the loss is not finite at the learning rate {lr:.3g} for photo {named}{more}; lower train.lr, or look for a "
        "broken photo"
    )


def common_parameters() -> dict[str, Parameter]:
    """Options that every loss accepts, by name."""
    return parameters_of(Options)


def build_loss(name: str, /, num_classes: int, **params: Any) -> Loss:
    """The loss of that name for num_classes classes.

    Args:
        params: hyperparameters of the loss, and fields of `Options`.

    Raises:
        ConfigError: an unknown name, a misspelt parameter, or a value out of its range.
    """
    common = common_parameters()
    component = LOSSES.find(name)
    given = LOSSES.check(name, {**component.parameters, **common}, params)
    own = {key: value for key, value in given.items() if key not in common}
    loss: Loss = component.build(num_classes, **own)
    return _with_options(loss, {key: value for key, value in given.items() if key in common})


def _with_options(loss: Loss, given: Mapping[str, Any]) -> Loss:
    loss.options = Options(**given)
    loss.start_epoch(0)
    if loss.options.init_match == "batch" and not loss.weighs_log_p:
        raise ConfigError('loss.params.init_match: this loss supports only "initial"; set it, or leave init_match out')
    if loss.options.init_match == "initial":
        weight = initial_weight(loss)
        if weight <= 0:
            raise ConfigError(
                f"loss.params.init_match: with {loss.num_classes} classes this loss starts without a gradient, "
                "which no factor can correct; set logit_bias or warmup_ce_epochs instead"
            )
        loss.scale = min(1 / weight, LARGEST_SCALE)
    return loss


def initial_weight(loss: Loss) -> float:
    """Gradient of the loss at equal logits divided by that of cross-entropy: how fast a new network starts to learn.

    A loss that sharpens is measured on its sharpened logits: equal logits have no norm to divide by.
    """
    logits = torch.zeros(1, loss.num_classes, dtype=torch.float64, requires_grad=True)
    # Of equal logits the first counts as the largest. The target is another one, as for most labels.
    target = torch.tensor([loss.num_classes - 1])
    shift = dataclasses.replace(loss.shift, tau=None)
    batch = LossBatch(logits, target, terms=loss.terms, shift=shift, index=None, embedding=None)
    loss.value(batch).sum().backward()
    assert logits.grad is not None
    return -float(logits.grad[0, -1]) / (1 - 1 / loss.num_classes)


def log_odds(share: float, num_classes: int) -> float:
    """logit_bias at which p_y = share, in (0, 1), if all logits are equal."""
    return math.log(share * (num_classes - 1) / (1 - share))
