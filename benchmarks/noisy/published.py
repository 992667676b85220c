"""Published test accuracies in %, mean and standard deviation of 3 seeds, and the settings they belong to.

A row names the method as `--methods` does. A bare `ce` on the command line means the row of that loss and noise, so that the
sources' settings need not be typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from noisy.spec import Method, Noise, parse_method

SOURCES = {
    "A": "eps-softmax, NeurIPS 2024, tables 2 to 5, all methods in one protocol, last epoch of the 8-layer network",
    "B": "the JAL paper, ICCV 2025; read in a summary, which gives no deviations",
    "C": "eps-softmax, NeurIPS 2024, table 8: best epoch of a ResNet-34, so another protocol",
}
NOISES = ("clean", *(f"symmetric:0.{k}" for k in (2, 4, 6, 8)), *(f"asymmetric:0.{k}" for k in (1, 2, 3, 4)))


class Figure(NamedTuple):
    """Mean and standard deviation in %, the latter nan if none is given; source is a key of SOURCES."""

    mean: float
    deviation: float
    source: str


@dataclass(frozen=True)
class PublishedRow:
    """Figures of one method on CIFAR-10 by noise."""

    method: Method
    figures: Mapping[str, Figure] = field(default_factory=dict)


def _row(method: str, figures: str, *, noises: tuple[str, ...] = NOISES, source: str = "A") -> PublishedRow:
    """Figures are written `mean+-deviation` or `mean`, one per noise."""
    pairs = [figure.split("+-") for figure in figures.split()]
    values = [Figure(float(mean), float(rest[0]) if rest else float("nan"), source) for mean, *rest in pairs]
    return PublishedRow(parse_method(method), dict(zip(noises, values, strict=True)))


HUMAN = ("human:aggre", "human:worst")
JAL = ("symmetric:0.4", "symmetric:0.8", "asymmetric:0.2", "asymmetric:0.4")
L1 = "weight_decay=0,l1=5e-5"

CIFAR10 = (
    _row("ce", "90.50+-.35 75.47+-.27 58.46+-.21 39.16+-.50 18.95+-.38 86.98+-.31 83.82+-.04 79.35+-.66 75.28+-.58"),
    _row("focal:detach_factor=true",
         "89.70+-.24 74.50+-.18 58.23+-.40 38.69+-.06 19.47+-.74 86.64+-.12 83.08+-.07 79.34+-.30 74.68+-.31"),
    _row("gce", "89.42+-.21 86.87+-.06 82.24+-.25 68.43+-.26 25.82+-1.03 88.43+-.20 86.17+-.29 80.72+-.42 74.01+-.53"),
    _row("sce", "91.30+-.08 87.58+-.05 79.47+-.48 59.14+-.07 25.88+-.49 89.87+-.27 86.48+-.25 81.30+-.18 74.99+-.16"),
    _row("nce+mae",
         "89.02+-.10 86.79+-.28 83.60+-.14 75.93+-.41 46.96+-.67 88.03+-.27 85.53+-.08 81.10+-.52 74.98+-.48"),
    _row("nce+rce",
         "91.03+-.28 88.41+-.24 85.13+-.56 79.20+-.06 55.28+-1.26 90.25+-.08 88.11+-.23 85.35+-.18 79.43+-.21"),
    _row("nfl+rce:detach_factor=true",
         "91.08+-.29 89.00+-.23 85.90+-.19 79.79+-.52 55.47+-2.73 89.99+-.35 88.33+-.26 85.27+-.13 79.05+-.35"),
    _row("nce+aul",
         "91.06+-.24 89.11+-.07 85.79+-.16 79.57+-.21 57.59+-.84 90.18+-.23 88.30+-.44 85.28+-.04 79.14+-.36"),
    _row("nce+agce",
         "91.13+-.11 89.00+-.29 85.91+-.15 80.36+-.36 49.98+-4.81 89.90+-.09 88.36+-.11 85.73+-.12 79.28+-.37"),
    _row("nce+ael",
         "88.43+-.25 86.46+-.28 83.06+-.23 75.15+-.32 43.22+-.46 87.59+-.38 85.98+-.14 82.87+-.16 75.78+-.12"),
    _row("eps_ce+mae:m=1e5,alpha=0.01,beta=5",
         "91.40+-.12 89.29+-.10 85.93+-.19 79.52+-.14 58.96+-.70", noises=NOISES[:5]),
    _row("eps_ce+mae:m=1e3,alpha=0.02,beta=5",
         "90.30+-.11 88.62+-.18 85.56+-.12 78.91+-.25", noises=NOISES[5:]),
    _row(f"anl_ce:{L1}", "87.16 62.28 89.09 77.99", noises=JAL, source="B"),
    _row(f"nce+amse:{L1}", "87.53 65.43 89.11 79.54", noises=JAL, source="B"),
    _row("ce", "87.77 77.69", noises=HUMAN, source="C"),
    _row("gce", "87.85 80.66", noises=HUMAN, source="C"),
    _row("agce", "88.81 81.43", noises=HUMAN, source="C"),
    _row("eps_ce+mae:m=1e5,alpha=0.01,beta=5", "91.80 83.74", noises=HUMAN, source="C"),
)  # fmt: skip


def as_published(method: Method, noise: Noise) -> Method:
    """A bare loss with the settings of its row, the one with this noise first; anything else as it is."""
    if method.params or method.training:
        return method
    rows = [row for row in CIFAR10 if row.method.loss == method.loss]
    rows.sort(key=lambda row: str(noise) not in row.figures)
    return rows[0].method if rows else method


def published(data: str, method: Method, noise: Noise) -> Figure | None:
    """Figure of a method with exactly its published settings; None if the sources have none."""
    if data != "cifar10":
        return None
    found = (row.figures.get(str(noise)) for row in CIFAR10 if row.method.resolved() == method.resolved())
    return next(filter(None, found), None)
