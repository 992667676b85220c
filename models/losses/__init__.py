"""Losses for noisy labels. Every loss returns one value per sample; the trainer weights and averages them."""

from models.losses import (  # noqa: F401  # importing a module registers its losses
    asymmetric,
    aum,
    car,
    cross_entropy,
    lq,
    marvel,
    normalised,
    sparse,
    tempered,
    truncated,
)
from models.losses.asymmetric import asymmetry_ratio, max_noise
from models.losses.base import LOSSES, Loss, build_loss, log_odds
from models.losses.samples import Samples

__all__ = ["LOSSES", "Loss", "Samples", "asymmetry_ratio", "build_loss", "log_odds", "max_noise"]
