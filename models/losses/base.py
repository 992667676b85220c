"""The protocol of a loss: what it is told, what it answers, and the options that every loss has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import BatchError, ConfigError
from models.losses.correction import Correction
from models.losses.samples import Samples
from models.losses.softmax import AnyTerm, LogitShift, one_minus_exp, summarise
from models.recipe.registry import Parameter, Range, Registry, parameters_of

if TYPE_CHECKING:
    from models.losses.memory import Memory

LOSSES = Registry("loss")
COUNT_FLOOR = 1.0  # photos that a class counts for at least, where its prior is taken
LARGEST_SCALE = 1e6  # of init_match


class LossBatch:
    """A batch as a loss sees it: log p_y and the sums it asked for, from one pass over the logits."""

    def __init__(
        self, logits: Tensor, target: Tensor, *, terms: tuple[AnyTerm, ...], shift: LogitShift,
        index: Tensor | None, embedding: Tensor | None,
    ) -> None:  # fmt: skip
        self.logits, self.target, self.index, self.embedding = logits, target, index, embedding
        self.terms, self.shift = terms, shift

    @cached_property
    def summary(self) -> tuple[Tensor, ...]:
        return summarise(self.logits, self.target, self.terms, self.shift)

    @property
    def log_p(self) -> Tensor:
        """(N,) log-probability of the target."""
        return self.summary[0]

    @cached_property
    def p(self) -> Tensor:
        """(N,) probability of the target."""
        return self.log_p.exp()

    @cached_property
    def miss(self) -> Tensor:
        """(N,) 1 - p_y."""
        return one_minus_exp(self.log_p)

    def sum(self, term: AnyTerm) -> Tensor:
        """(N,) the sum over the classes that the loss declared in `terms`."""
        return self.summary[1 + self.terms.index(term)]

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def is_top(self) -> Tensor:
        """(N,) bool: the target has the largest logit; the first of equals."""
        logits = self.logits.detach()
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return self.shift.apply(wide, self.target).argmax(1) == self.target

    @cached_property
    def margin(self) -> Tensor:
        """(N,) float32 z_y - max_{k != y} z_k of the given logits, without a gradient."""
        logits = self.logits.detach()
        best = logits.topk(2, dim=1)
        rival = torch.where(best.indices[:, 0] == self.target, best.values[:, 1], best.values[:, 0])
        return logits.gather(1, self.target[:, None])[:, 0].float() - rival.float()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every loss; they act inside the loss, in training only.

    Args:
        warmup_ce_epochs: epochs of plain cross-entropy first: it memorises late, and lifts p_y off 1/C.
        blend_epochs: after them, epochs over which cross-entropy gives way to the loss, linearly.
        logit_bias: added to the target's logit, so that a bounded loss has a gradient at p_y = 1/C; ln(r (C - 1) / (1 - r)) starts
            it at p_y = r: 8.6 for r = .1 at 50,030 classes ("Bounded Loss Robustness", ICLR 2024 submission).
        init_match: "initial" scales the loss so that its gradient at equal logits is that of cross-entropy, "batch" so that the
            mean weight in each batch is 1 (detached).
        logit_adjustment: tau of z + tau log prior, the prior from the given labels (Menon et al., ICLR 2021, equation 10); 1 is
            balanced softmax (Ren et al., NeurIPS 2020).
    """

    warmup_ce_epochs: Annotated[int, Range(0)] = 0
    blend_epochs: Annotated[int, Range(0)] = 0
    logit_bias: Annotated[float, Range(-50, 50)] = 0.0
    init_match: Literal["", "initial", "batch"] = ""
    logit_adjustment: Annotated[float, Range(0, 4)] = 0.0


class Loss(nn.Module):
    """forward(logits (N, C), target (N,), index (N,), embedding (N, d)) -> (N,), unreduced, differentiable once.

    float32 inside under autocast; float64 stays float64. A loss writes `value`; what it needs beyond log p_y stands in `terms`.
    The training loop calls begin once, then start_epoch and end_epoch around every epoch, on every worker.
    """

    terms: tuple[AnyTerm, ...] = ()
    prior: Tensor | None  # (C,) of logit_adjustment, once `begin` knows the labels
    needs_index = False  # of the sample; a loss with state per sample
    needs_embedding = False
    memory: Memory | None = None  # of a loss with state per sample, once it has begun
    margin: Callable[[Tensor, Tensor], Tensor] | None = None  # (logits, target) to the logits that are learnt from
    weighs_log_p = True  # its gradient passes through log_p and `terms`, as init_match = "batch" wants

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"num_classes: a loss needs two classes to choose from, and was given {num_classes}")
        self.num_classes = num_classes
        self.options = Options()
        self.scale = 1.0  # of init_match
        self.ce_share = 0.0  # of warmup_ce_epochs and blend_epochs
        self.correction: Correction | None = None  # of the logits, where it is known what is given for what
        self.register_buffer("prior", None, persistent=False)

    @property
    def shift(self) -> LogitShift:
        """What is done to the logits first."""
        return LogitShift(bias=self.options.logit_bias, prior=self.prior)

    def value(self, batch: LossBatch) -> Tensor:
        """(N,) the loss itself."""
        raise NotImplementedError  # every loss writes its own

    def learnable(self) -> dict[str, Range]:
        """Attributes that `models.training.meta` may change in training, and between what; `value` takes them as tensors too."""
        return {}

    def asymmetry_ratio(self) -> float:
        """r of Zhou et al. 2021, definition 3, in [0, 1]; 0: no noise tolerance is known. See models.losses.asymmetry."""
        return 0.0

    def forward(
        self, logits: Tensor, target: Tensor, index: Tensor | None = None, embedding: Tensor | None = None
    ) -> Tensor:
        self._check(logits, target, index, embedding)
        with torch.autocast(logits.device.type, enabled=False):  # it would take some sums over the classes in bfloat16
            return self._forward(logits, target.long(), index, embedding)

    def _forward(self, logits: Tensor, target: Tensor, index: Tensor | None, embedding: Tensor | None) -> Tensor:
        batch = self._row(logits, target, index, embedding)
        self.observe(batch)  # without the margin: what is remembered of a photo is what the network says of it
        if self.margin is not None:
            batch = self._row(self.margin(logits, target), target, index, embedding)
        if self.ce_share == 1:
            value = self.warming(batch)
        else:
            value = self._matched(batch)
            if self.ce_share:
                value = self.ce_share * self.warming(batch) + (1 - self.ce_share) * value
        own = logits.gather(1, target[:, None])[:, 0]  # a bounded loss is finite also where this is -inf
        if not bool((value.isfinite() & own.isfinite()).all()):
            self._blame(logits)
        return value

    def _row(self, logits: Tensor, target: Tensor, index: Tensor | None, embedding: Tensor | None) -> LossBatch:
        """The batch as the loss sees it: as of given labels, where it is known what is given for what."""
        of_given = logits if self.correction is None else self.correction(logits)
        return LossBatch(of_given, target, terms=self.terms, shift=self.shift, index=index, embedding=embedding)

    def observe(self, batch: LossBatch) -> None:
        """Told of every batch, while cross-entropy warms up too."""

    def warming(self, batch: LossBatch) -> Tensor:
        """(N,) what is learnt from before the loss itself: cross-entropy."""
        return -batch.log_p

    def begin(self, samples: Samples) -> None:
        """Told once, before the first step."""
        if self.options.logit_adjustment:
            counts = np.bincount(samples.target, minlength=self.num_classes).clip(COUNT_FLOOR)
            prior = torch.from_numpy(np.log(counts / counts.sum())).float()
            self.prior = self.options.logit_adjustment * prior

    def start_epoch(self, epoch: int) -> None:
        """Told before every epoch, counted from 0; also after a resume."""
        past = epoch - self.options.warmup_ce_epochs
        steps = self.options.blend_epochs + 1
        self.ce_share = 1.0 if past < 0 else max(1 - (past + 1) / steps, 0.0)

    def end_epoch(self) -> None:
        """Told after every epoch."""

    def figures(self) -> dict[str, float]:
        """What the loss has to tell of the epoch that ended, for metrics.jsonl; asked of every worker after end_epoch."""
        return {}

    def wants_answers(self, epoch: int) -> bool:
        """Whether `take_answers` shall be called before this epoch."""
        return False

    def take_answers(self, log_p: Tensor, *, accuracy: float) -> None:
        """Told what the network says of all training samples, as they are.

        Args:
            log_p: (N,) float32 log-probability of each sample's label, in the order of `Samples`.
            accuracy: of the network on the validation photos, in [0, 1]; NaN without validation photos.
        """
        raise NotImplementedError  # by a loss whose wants_answers says yes

    def _matched(self, batch: LossBatch) -> Tensor:
        value = self.value(batch)
        if self.options.init_match == "batch" and value.requires_grad:
            (weight,) = torch.autograd.grad(value.sum(), batch.log_p, retain_graph=True)
            return value / weight.mean().neg().clamp(min=1 / LARGEST_SCALE)
        return value if self.scale == 1 else value * self.scale

    def _check(self, logits: Tensor, target: Tensor, index: Tensor | None, embedding: Tensor | None) -> None:
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or not len(logits):
            raise BatchError(f"logits of shape {tuple(logits.shape)}: want (N, {self.num_classes}) with N > 0")
        n = len(logits)
        if target.shape != (n,) or target.dtype == torch.bool or target.is_floating_point():
            raise BatchError(f"target: {target.dtype} of shape {tuple(target.shape)}; want whole numbers, ({n},)")
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise BatchError(f"target: {wrong} is no class; they go from 0 to {self.num_classes - 1}")
        if self.needs_index and index is None:
            raise BatchError("index: this loss keeps state per sample; pass the position of each sample")
        if self.needs_embedding and embedding is None:
            raise BatchError("embedding: this loss looks at the embedding; pass it, (N, d)")

    def _blame(self, logits: Tensor) -> None:
        broken = torch.nonzero(~logits.isfinite().all(1))[:, 0].tolist()
        where = f"rows {broken[:5]} of {len(logits)} hold NaN or infinity" if broken else "logits are finite"
        raise BatchError(f"the loss is not finite: {where}; lower train.lr, or look for a broken photo in this batch")


def common_parameters() -> dict[str, Parameter]:
    """The options that every loss takes."""
    return parameters_of(Options)


def build_loss(name: str, /, num_classes: int, **params: Any) -> Loss:
    """The loss of that name for num_classes classes.

    Args:
        params: the loss's own, and those of `Options`.

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
        raise ConfigError('loss.params.init_match: this loss can only be matched as "initial"; set that')
    if loss.options.init_match == "initial":
        weight = initial_weight(loss)
        if weight <= 0:
            raise ConfigError(
                f"loss.params.init_match: with {loss.num_classes} classes this loss starts without a gradient, which no factor "
                "mends; set logit_bias or warmup_ce_epochs instead"
            )
        loss.scale = min(1 / weight, LARGEST_SCALE)
    return loss


def initial_weight(loss: Loss) -> float:
    """Gradient of the loss at equal logits, in units of cross-entropy's there: how fast a fresh network starts to learn.

    By the sharpened logits where a loss sharpens: equal logits have no norm to be divided by.
    """
    logits = torch.zeros(1, loss.num_classes, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([loss.num_classes - 1])  # of equals the first is the largest: this one is not, as most labels
    shift = dataclasses.replace(loss.shift, tau=None)
    batch = LossBatch(logits, target, terms=loss.terms, shift=shift, index=None, embedding=None)
    loss.value(batch).sum().backward()
    assert logits.grad is not None
    return -float(logits.grad[0, -1]) / (1 - 1 / loss.num_classes)


def log_odds(share: float, num_classes: int) -> float:
    """The logit_bias that makes p_y = share, in (0, 1), at equal logits."""
    return math.log(share * (num_classes - 1) / (1 - share))
