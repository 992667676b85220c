"""Finding wrong labels: arrays in, arrays out, no torch. N photos, C classes."""

from models.cleaning.decide import find_label_errors
from models.cleaning.score import log_margin

__all__ = ["find_label_errors", "log_margin"]
