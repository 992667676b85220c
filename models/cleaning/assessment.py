"""Assessment of labels: their quality, suggested labels and the label noise, all from one estimate."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.cleaning.mixture import Estimate
from models.cleaning.noise import Noise
from models.cleaning.rule_input import RuleInput
from models.cleaning.rules import Posterior, Rule
from models.errors import CleaningError


class Assessment:
    """Assessment of the labels of N photos by a rule and by the evidence.

    Evidence is gathered and the classes are estimated when a result first needs it, and once: a million photos take minutes.
    The rule `posterior` estimates with its own parameters. With another rule, which gives the quality without an estimate,
    suggested labels and noise are those of `posterior` with its defaults.
    """

    def __init__(self, data: RuleInput, rule: Rule) -> None:
        self.data, self.rule = data, rule

    @cached_property
    def estimate(self) -> Estimate:
        """Estimate of the n photos with a known class."""
        rule = self.rule if isinstance(self.rule, Posterior) else Posterior()
        return rule.estimate(self.data)

    @cached_property
    def quality(self) -> NDArray[np.float32]:
        """(N,) label quality in [0, 1]; 1 for labels that cannot be scored."""
        data, rule = self.data, self.rule
        if data.num_classes == 1 or not data.is_labelled.any():
            return np.ones(len(data), np.float32)  # no other class is possible
        if isinstance(rule, Posterior) and data.embeddings:
            found: NDArray[np.floating] = rule.quality_by(self.estimate, data)
        else:
            found = rule.quality(data)
        quality = np.clip(found, 0, 1).astype(np.float32)
        quality[~data.is_labelled] = 1
        return quality

    def suggested(self, confidence: float) -> NDArray[np.int64]:
        """(N,) the most probable class if its probability is at least `confidence`, otherwise the label.

        Raises:
            CleaningError: a confidence outside [0, 1].
        """
        if not 0 <= confidence <= 1:
            raise CleaningError(f"confidence: {confidence} is outside [0, 1]; give a probability")
        ids, probs = self.estimate.ids, self.estimate.probs
        row, best = np.arange(len(ids)), probs.argmax(axis=1)
        suggested = self.data.labels.copy()
        suggested[self.data.is_labelled] = np.where(probs[row, best] >= confidence, ids[row, best], ids[:, 0])
        return suggested

    def noise(self, counted: NDArray[np.bool_] | None = None) -> Noise:
        """The label noise among the counted photos (N,), or among all; the estimate is of all in either case."""
        return self.estimate.noise(None if counted is None else counted[self.data.is_labelled])
