"""MARVEL: abandons samples whose margin stays small for several epochs. MARVEL+ also weights up arduous samples."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.losses.base import LOSSES, LossBatch
from models.losses.memory import Column
from models.losses.samples import Samples
from models.losses.softmax import LogitShift, summarise
from models.losses.stateful import AtLeastOne, Epoch, Guard, Share, Stateful, build_base, class_quantile
from models.recipe.registry import Parameter, Range

PAPER = "Lin and Bradic 2021 (arXiv 2102.00751), abstract; all settings are ours"
NEVER = -1  # epoch of samples that are not abandoned
Relative = Literal["quantile", "prior", "none"]
Gain = Annotated[float, Range(0, open_low=True)]


@LOSSES.register("marvel+", paper=PAPER, changed={"gain": Parameter(Gain, 1.0)})
@LOSSES.register("marvel", paper=PAPER, without=("gain", "band"))
class Marvel(Stateful):
    """v base(u, y), v = 0 from `start_epoch` on if the margin was below the class's threshold in `run` epochs in a row.

    The abstract says: the margins of all samples are recorded in every epoch; a sample whose margin is small in
    consecutive epochs is flagged, and abandoned after some waiting time; MARVEL+ raises the weight of arduous samples.
    We had no more than the abstract, so every setting below is ours. Margins come from the training passes, from logits
    without bias or prior. A sample that an epoch leaves out keeps its count of epochs. Tail classes have small margins
    because they are rare, so thresholds are relative to the class by default.

    Args:
        base, base_params: the loss that is weighted; it has no state.
        theta: threshold of the margin.
        run: consecutive epochs below the threshold after which a sample is abandoned.
        start_epoch: first epoch that abandons samples; best where the accuracy on the given labels levels off.
        relative: "quantile": theta is lowered by as much as the class's quantile of the margins lies below that of all
            samples; "prior": by as much as log prior_y lies below that of a class of average size; "none": the same
            theta for all.
        quantile: quantile of the margins, in [0, 1), at which classes are compared: a high one looks at the best
            samples, which are labelled correctly in most classes. A lower one abandons fewer.
        margin: "logit": z_y - max_k z_k, k other than y; "probability": the same of p.
        reversible: true: an abandoned sample returns after `run` consecutive epochs above the threshold; false: never.
        max_share, n_min: largest share of a class that may be abandoned, and samples of it that are always kept; the
            smallest margins are abandoned first.
        gain: MARVEL+ only: kept samples within `band` of the threshold that are not about to be abandoned have the
            weight 1 + gain; weights then have the mean 1 over the batch.
        band: half-width of the band of margins around the threshold, > 0.
    """

    name = "marvel"
    columns: ClassVar = {
        "run": Column(dtype="int8"),  # consecutive epochs below the threshold; negative: above it
        "margin": Column(dtype="float32", fill=math.nan),
        "abandoned": Column(dtype="int16", fill=NEVER),  # epoch in which the sample was abandoned
    }

    def __init__(
        self,
        num_classes: int,
        base: str = "ce",
        base_params: dict[str, Any] | None = None,
        theta: float = 0.0,
        run: Annotated[int, Range(1, 100)] = 5,
        start_epoch: Epoch = 5,
        relative: Relative = "quantile",
        quantile: Share = 0.9,
        margin: Literal["logit", "probability"] = "logit",
        reversible: bool = False,
        max_share: Share = 0.5,
        n_min: AtLeastOne = 3,
        gain: Annotated[float, Range(0)] = 0.0,
        band: Annotated[float, Range(0, open_low=True)] = 1.0,
    ) -> None:
        super().__init__(num_classes)
        self.base = build_base(base, base_params, num_classes=num_classes)
        self.terms, self.weighs_log_p = self.base.terms, self.base.weighs_log_p
        self.theta, self.run, self.first = theta, run, start_epoch
        self.relative, self.quantile, self.kind, self.reversible = relative, quantile, margin, reversible
        self.guard, self.gain, self.band = Guard(max_share, n_min), gain, band

    def meaning(self) -> dict[str, Any]:
        quantile = self.quantile if self.relative == "quantile" else None
        return {"margin": self.kind, "theta": self.theta, "relative": self.relative, "quantile": quantile}

    @property
    def shift(self) -> LogitShift:
        """Changes to the logits: those of the base, with the options of this loss."""
        return self.shift_of(self.base)

    def unweighted(self, batch: LossBatch) -> Tensor:
        return self.base.value(batch)

    def value(self, batch: LossBatch) -> Tensor:
        value, weight = super().value(batch), self.weight_of(batch)
        if not self.gain or weight is None:
            return value
        mean = weight.mean()
        return value / torch.where(mean > 0, mean, 1)

    def asymmetry_ratio(self) -> float:
        return self.base.asymmetry_ratio()

    def note(self, batch: LossBatch) -> None:
        assert batch.index is not None
        self.known.note(batch.index, margin=batch.margin if self.kind == "logit" else probability_margin(batch))

    def begin(self, samples: Samples) -> None:
        super().begin(samples)
        self.base.begin(samples)

    def start_epoch(self, epoch: int) -> None:
        self.base.start_epoch(epoch)
        super().start_epoch(epoch)
        if self.memory is not None:
            self.memory.expect(margin=1)

    def end_epoch(self) -> None:
        seen, margin = self.known.merge().mean("margin")
        self.known["margin"][seen] = margin
        small = (self.known["margin"] < self.threshold())[seen]
        run = self.known["run"][seen].astype(np.int64)
        run = np.where(small, run.clip(min=0) + 1, run.clip(max=0) - 1)
        self.known["run"][seen] = run.clip(-100, 100)

    def threshold(self) -> NDArray[np.float64]:
        """(N,) threshold of each sample's class, from the last margin of every sample."""
        target, margin = self.known.target, self.known["margin"]
        if self.relative == "none":
            return np.full(len(target), self.theta)
        if self.relative == "prior":
            size = np.bincount(target, minlength=self.num_classes).clip(min=1)
            behind = np.log(size / size.mean())
        else:
            seen = np.isfinite(margin)
            if not seen.any():
                return np.full(len(target), self.theta)
            of_class = class_quantile(margin[seen], target[seen], self.quantile, num_classes=self.num_classes)
            behind = np.nan_to_num(of_class - np.quantile(margin[seen].astype(np.float64), self.quantile))
        lowered: NDArray[np.float64] = self.theta + np.minimum(behind, 0)[target]
        return lowered

    def decide(self) -> None:
        run, margin, abandoned = (self.known[name] for name in ("run", "margin", "abandoned"))
        before = abandoned != NEVER
        returning = run <= -self.run if self.reversible else np.zeros_like(before)
        flagged = before & ~returning
        if self.epoch >= self.first:
            flagged |= run >= self.run
        removed = self.guard.limit(flagged, np.where(before, -np.inf, margin), self.known.target)
        abandoned[:] = np.where(removed, np.where(before, abandoned, min(self.epoch, 32767)), NEVER)
        weight = (~removed).astype(np.float64)
        if self.gain:
            arduous = (run < self.run) & (np.abs(margin - self.threshold()) <= self.band)
            weight *= 1 + self.gain * arduous
        self.set_weights(weight)

    def figures(self) -> dict[str, float]:
        if self.memory is None:
            return {}
        removed = self.memory["abandoned"] != NEVER
        flagged = (self.memory["run"] > 0)[~removed]
        return {"abandoned_share": float(removed.mean()), "flagged_share": float(flagged.mean())}


def probability_margin(batch: LossBatch) -> Tensor:
    """(N,) p_y - max_k p_k, k other than y, of the logits before the shift."""
    with torch.enable_grad():  # the batch keeps log p_y, and its loss needs the gradient
        log_p = batch.log_p.detach() if batch.shift.is_identity else summarise(batch.logits.detach(), batch.target)[0]
    return log_p.exp() - (log_p - batch.margin).exp()
