"""Specifications on the command line: a method such as `nce+agce:alpha=1,beta=4`, a noise such as `symmetric:0.4`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data import noise
from models.errors import ConfigError
from models.losses import LOSSES, build_loss
from noisy.photos import PhotoSet

TRAINING = ("lr", "weight_decay", "l1")  # keys of a method that belong to its training, not to its loss
KINDS = "clean, symmetric:RATE, asymmetric:RATE, pair:RATE, human:COLUMN"


@dataclass(frozen=True)
class Method:
    """A loss with its parameters, and what its source trains differently (learning rate, weight decay, L1)."""

    loss: str
    params: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={json.dumps(value)}"
                 for key, value in (*self.params.items(), *self.training.items())]  # fmt: skip
        return f"{self.loss}:{','.join(parts)}" if parts else self.loss

    def resolved(self) -> Method:
        """Method with every parameter of the loss spelt out, so that a changed default is another method.

        Raises:
            ConfigError: an unknown loss, a misspelt parameter, or a value out of its range.
        """
        build_loss(self.loss, num_classes=2, **self.params)
        defaults = {key: parameter.default for key, parameter in LOSSES.find(self.loss).parameters.items()}
        return Method(self.loss, {**defaults, **self.params}, self.training)


def parse_method(text: str) -> Method:
    """Method written as NAME or NAME:KEY=VALUE,...; values are written as in JSON.

    Raises:
        ConfigError: an empty name, a part that is not KEY=VALUE, or a training key without a number.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (name and key and equals and value) or key in values:
            raise ConfigError(f"--methods: {text!r}: {part!r} is not one KEY=VALUE; write it as gce:q=0.7")
        values[key] = _value(value)
    if not name:
        raise ConfigError(f"--methods: {text!r} names no loss; write it as gce or gce:q=0.7")
    training = {key: values.pop(key) for key in TRAINING if key in values}
    for key, value in training.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"--methods: {text!r}: {key}={value!r} is not a number >= 0; correct it or leave it out")
    return Method(name, values, training)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class Noise:
    """A kind of label noise with its rate, or the column of human labels."""

    kind: str
    rate: float = 0.0
    column: str = ""

    def __str__(self) -> str:
        if self.kind == "clean":
            return self.kind
        return f"{self.kind}:{self.column or format(self.rate, 'g')}"

    def given_labels(self, photos: PhotoSet) -> NDArray[np.int64]:
        """(N,) labels to train on.

        Raises:
            ConfigError: the data lacks these human labels, or the classes that the noise confuses.
        """
        label, count = photos.label, len(photos.classes)
        if self.kind == "symmetric":
            return noise.symmetric(label, rate=self.rate, num_classes=count)
        if self.kind == "pair":
            return noise.pair(label, rate=self.rate, num_classes=count)
        if self.kind == "asymmetric":
            return noise.asymmetric(label, rate=self.rate, classes=photos.classes)
        return photos.human_labels(self.column) if self.kind == "human" else label


def parse_noise(text: str) -> Noise:
    """Noise written as one of KINDS.

    Raises:
        ConfigError: another kind, or a rate that is not a number in [0, 1).
    """
    kind, _, rest = text.partition(":")
    if kind == "human" and rest:
        return Noise(kind, column=rest)
    if text == "clean":
        return Noise(kind)
    if kind not in ("symmetric", "asymmetric", "pair"):
        raise ConfigError(f"--noise: {text!r} is unknown; take one of {KINDS}")
    try:
        rate = float(rest)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1:
        raise ConfigError(f"--noise: {text!r}: the rate {rest!r} is not a number in [0, 1); write it as {kind}:0.4")
    return Noise(kind, rate)
