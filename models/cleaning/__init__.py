"""Detection of label issues: NumPy arrays in and out, without torch. N photos, C classes."""

from models.cleaning.assessment import Assessment
from models.cleaning.decide import attractor_classes, label_weights, worst
from models.cleaning.inputs import TopK
from models.cleaning.labels import HALF, assess, estimate_noise, find_label_errors, label_quality, suggest_labels
from models.cleaning.noise import Noise
from models.cleaning.outliers import find_near_duplicates, find_out_of_set
from models.cleaning.rules import DEFAULT, RULES
from models.cleaning.score import log_margin

__all__ = [
    "DEFAULT",
    "HALF",
    "RULES",
    "Assessment",
    "Noise",
    "TopK",
    "assess",
    "attractor_classes",
    "estimate_noise",
    "find_label_errors",
    "find_near_duplicates",
    "find_out_of_set",
    "label_quality",
    "label_weights",
    "log_margin",
    "suggest_labels",
    "worst",
]
