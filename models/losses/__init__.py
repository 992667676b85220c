"""Losses for noisy labels. Every loss gives one value per sample; the trainer weights and reduces."""

from models.losses import asymmetric, cross_entropy, lq  # noqa: F401  # importing a family registers its losses
from models.losses.base import LOSSES, Loss, build_loss

__all__ = ["LOSSES", "Loss", "build_loss"]
