"""Truncated generalised cross-entropy: samples with an improbable label are pruned, and may return later."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.errors import BatchError
from models.losses.base import LOSSES, LossBatch
from models.losses.lq import Power
from models.losses.memory import Column
from models.losses.softmax import one_minus_exp
from models.losses.stateful import AtLeastOne, Epoch, Guard, Share, Stateful, class_quantile
from models.recipe.registry import Range


@LOSSES.register("truncated_gce", paper="Zhang and Sabuncu, NeurIPS 2018, section 3.3")
class TruncatedGCE(Stateful):
    """v (1 - p_y^q) / q, v = 1 if p_y >= k in the network's last predictions for the whole training set, else 0.

    From `start_epoch` on the network scores all training photos every `every` epochs, without augmentation. Its
    predictions count if it is at least as accurate on the validation photos as at the last decision: the paper's best
    model so far. Every decision sets all v afresh, so pruned samples can return. The value of a pruned sample is 0,
    without the paper's constant (1 - k^q) / q, which has no gradient. Values of kept samples are divided by the kept
    share, so that pruning does not shorten the training step (ours).

    Args:
        q: power, in (0, 1].
        k: probability of the label below which a sample is pruned, in (0, 1).
        start_epoch: epoch of the first decision; published 40 of 120 epochs at 10 classes, 80 of 150 at 100.
        every: epochs between two decisions.
        k_quantile: ours; replaces k by this quantile of p_y in each class, so that every class loses about this share.
            At many classes it takes long until any p_y comes near .5.
        max_share, n_min: ours; largest share of a class that may be pruned, and samples of it that are always kept; the
            smallest p_y are pruned first. 0.99 and 1 are closest to the paper, which has no such bounds.
    """

    name = "truncated_gce"
    columns: ClassVar = {"kept": Column(dtype="bool", fill=1), "log_p": Column(dtype="float32", fill=math.nan)}

    def __init__(
        self,
        num_classes: int,
        q: Power = 0.7,
        k: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.5,
        start_epoch: Epoch = 40,
        every: AtLeastOne = 10,
        k_quantile: Share | None = None,
        max_share: Share = 0.5,
        n_min: AtLeastOne = 3,
    ) -> None:
        super().__init__(num_classes)
        self.q, self.k, self.every, self.k_quantile = q, k, every, k_quantile
        self.guard = Guard(max_share, n_min)
        self.facts = {"due": float(start_epoch), "best": -math.inf}

    def meaning(self) -> dict[str, Any]:
        return {"k": self.k, "k_quantile": self.k_quantile}

    def unweighted(self, batch: LossBatch) -> Tensor:
        return one_minus_exp(self.q * batch.log_p) / self.q

    def asymmetry_ratio(self) -> float:
        return float(self.q >= 1)

    def decide(self) -> None:
        self.set_weights(~self.guard.limit(~self.known["kept"], self.known["log_p"], self.known.target))

    def wants_answers(self, epoch: int) -> bool:
        return epoch >= self.facts["due"]

    def take_answers(self, log_p: Tensor, *, accuracy: float) -> None:
        if log_p.shape != (len(self.known),):
            raise BatchError(
                f"log_p: shape {tuple(log_p.shape)}, but this loss began with {len(self.known)} samples; "
                "pass one value for each"
            )
        self.facts["due"] += self.every
        if accuracy < self.facts["best"]:  # False for NaN: without validation photos every network decides
            return
        self.facts["best"] = accuracy if math.isfinite(accuracy) else self.facts["best"]
        answers = log_p.detach().cpu().numpy()
        pruned = self.guard.limit(answers < self.threshold(answers), answers, self.known.target)
        self.known["kept"][:] = ~pruned
        self.known["log_p"][:] = answers
        self.decide()

    def threshold(self, log_p: NDArray[Any]) -> NDArray[Any]:
        """(N,) log k of each sample's class, in the dtype of `log_p`, so that p_y = k is kept."""
        if self.k_quantile is None:
            return np.full(len(log_p), math.log(self.k), log_p.dtype)
        target = self.known.target
        of_class = class_quantile(log_p, target, self.k_quantile, num_classes=self.num_classes)
        chosen: NDArray[Any] = of_class[target].astype(log_p.dtype)
        return chosen

    def figures(self) -> dict[str, float]:
        return {"kept_share": float(self.known["kept"].mean())} if self.memory is not None else {}
