"""AUM: flags samples whose margin, averaged over the epochs, is as low as that of labels known to be wrong."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from models.errors import ConfigError
from models.losses.base import LOSSES, LossBatch
from models.losses.memory import Column
from models.losses.samples import Samples
from models.losses.softmax import LogitShift, LogSumExp
from models.losses.stateful import AtLeastOne, Guard, Share, Stateful, Unit, build_base
from models.recipe.registry import Range


@LOSSES.register("aum", paper="Pleiss et al., NeurIPS 2020 (arXiv 2001.10528), section 4")
class AUM(Stateful):
    """Cross-entropy over C + 1 classes; from `decision_epoch` on v base(u, y), v = 0 for flagged samples, else 1.

    Some samples, chosen by a hash of their ids, are moved to an extra class, whose logit is a linear unit of this loss
    on the embedding. Their margins, z_y - max_k z_k averaged over the epochs, are typical of wrong labels: other
    samples below a percentile of them are flagged. From then on there is no extra class, and its samples have their own
    labels again. The paper flags in one training and learns in another. Deciding during training is ours, and so are
    the guards of rare classes. logit_bias acts from the decision on.

    Args:
        base, base_params: the loss that is weighted after the decision; it has no state.
        decision_epoch: first epoch without the extra class; in the paper the one where the learning rate first drops.
        percentile: percentile of the margins of the extra class, in [0, 100]; published 99.
        share: share of the samples that are moved to the extra class, in (0, 1); default: the published 1 / (C + 1).
        max_share, n_min: largest share of a class that may be flagged or moved to the extra class, and samples of it
            that are always kept; the smallest margins are flagged first.
        width: dimension of the embedding.
    """

    name = "aum"
    needs_embedding = True
    columns: ClassVar = {
        "total": Column(dtype="float64"),  # sum of the margins
        "count": Column(dtype="int32"),  # epochs in the sum
        "extra": Column(dtype="bool"),  # moved to the extra class
        "flagged": Column(dtype="bool"),
    }

    def __init__(
        self,
        num_classes: int,
        base: str = "ce",
        base_params: dict[str, Any] | None = None,
        decision_epoch: AtLeastOne = 10,
        percentile: Annotated[float, Range(0, 100)] = 99.0,
        share: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None,
        max_share: Share = 0.5,
        n_min: AtLeastOne = 3,
        width: AtLeastOne = 512,
    ) -> None:
        super().__init__(num_classes)
        self.base = build_base(base, base_params, num_classes=num_classes)
        self.terms, self.weighs_log_p = (*self.base.terms, LogSumExp()), self.base.weighs_log_p
        self.decision_epoch, self.percentile = decision_epoch, percentile
        self.share = 1 / (num_classes + 1) if share is None else share
        self.guard = Guard(max_share, n_min)
        self.unit = Unit(width)

    @property
    def is_decided(self) -> bool:
        """True from `decision_epoch` on."""
        return self.epoch >= self.decision_epoch

    @property
    def shift(self) -> LogitShift:
        """Changes to the logits: those of the base after the decision, before it the prior alone."""
        return self.shift_of(self.base) if self.is_decided else LogitShift(prior=self.prior)

    def unweighted(self, batch: LossBatch) -> Tensor:
        if self.is_decided or batch.index is None:
            return self.base.value(batch)
        return self.extended(batch)

    def warmup_value(self, batch: LossBatch) -> Tensor:
        return super().warmup_value(batch) if self.is_decided else self._weighted(batch, self.extended(batch))

    def extended(self, batch: LossBatch) -> Tensor:
        """(n,) cross-entropy over C + 1 classes; the extra class is the label of the samples that were moved to it."""
        assert batch.embedding is not None
        lead = self.unit(batch.embedding, batch.log_p.dtype) - batch.sum(LogSumExp())
        return torch.where(self.column_of("extra", batch), softplus(-lead), softplus(lead) - batch.log_p)

    def asymmetry_ratio(self) -> float:
        return self.base.asymmetry_ratio()

    def fill_columns(self) -> None:
        target = self.known.target
        order = sorted(range(len(target)), key=lambda row: hashlib.sha256(str(self.known.id[row]).encode()).digest())
        rank = np.argsort(order)
        eligible = np.flatnonzero(self.guard.limit(np.ones(len(target), bool), rank, target))
        if not len(eligible):
            raise ConfigError(
                f"loss.params.n_min: no class has more than {self.guard.n_min} photos, so none can be moved to the "
                "extra class; lower it, or choose another loss"
            )
        drawn = eligible[np.argsort(rank[eligible])]
        self.known["extra"][drawn[: max(round(self.share * len(target)), 1)]] = True

    def begin(self, samples: Samples) -> None:
        super().begin(samples)
        self.base.begin(samples)

    def start_epoch(self, epoch: int) -> None:
        self.base.start_epoch(epoch)
        super().start_epoch(epoch)
        if self.memory is not None and not self.is_decided:
            self.memory.expect(margin=1)

    def note(self, batch: LossBatch) -> None:
        if self.is_decided:
            return
        assert batch.index is not None
        assert batch.embedding is not None
        own = batch.logits.gather(1, batch.target[:, None])[:, 0].float()
        extra = self.unit(batch.embedding, torch.float32)
        largest = own - batch.margin.clamp(max=0)
        margin = torch.where(self.column_of("extra", batch), extra - largest, torch.minimum(batch.margin, own - extra))
        self.known.note(batch.index, margin=margin)

    def end_epoch(self) -> None:
        if self.is_decided:
            return
        seen, margin = self.known.merge().mean("margin")
        self.known["total"][seen] += margin
        self.known["count"][seen] += 1

    def decide(self) -> None:
        if self.is_decided:
            self.flag()
        self.set_weights(~self.known["flagged"])

    def flag(self) -> None:
        """Flags the samples whose mean margin is below the percentile of the extra class."""
        memory = self.known
        seen, extra = memory["count"] > 0, memory["extra"]
        mean = memory["total"] / memory["count"].clip(min=1)
        if not (seen & extra).any():
            return
        low = seen & ~extra & (mean < np.percentile(mean[seen & extra], self.percentile))
        memory["flagged"][:] = self.guard.limit(low, mean, memory.target)

    def figures(self) -> dict[str, float]:
        return {} if self.memory is None else {"flagged_share": float(self.memory["flagged"].mean())}
