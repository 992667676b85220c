"""Shares of unchanged and of fallen tails that the gate refuses: its rule against two simpler ones.

Drawn answers: the current model recognises 70% of the tail's photos. A retraining answers 10% of them differently, as many for
the better as for the worse, or more for the worse by the given points. The gate allows 2 points. "measured" goes by the
measured figure alone, the percentages are `gate.confidence`, and "proof" refuses whatever is not proven to stay within 2 points.

    python benchmarks/gates.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from figure import figure, header
from numpy.typing import NDArray

from flows.gate.gates import falls_no_further
from models.recipe.config import Gate

CLAIM = "a tail that did not change is rarely refused, one that fell by ten points nearly always"
TAILS = ((9, 8), (27, 8), (27, 20), (100, 10))  # classes, photos of each
FALLS = (0.0, 0.02, 0.05, 0.10)
CONFIDENCES = (0.7, 0.8, 0.9)
RIGHT, CHANGED = 0.7, 0.1
RULES = ("measured", *(f"{confidence:.0%}" for confidence in CONFIDENCES), "proof")


def main() -> None:
    """Runs the command line."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--draws", type=int, default=300, help="retrainings per row")
    draws = asked.parse_args().draws
    header(CLAIM)
    print(f"| classes | photos of each | the tail falls by | {' | '.join(RULES)} |\n|{'--:|' * (3 + len(RULES))}")
    for classes, photos in TAILS:
        for fall in FALLS:
            refused = np.mean([list(refusals(*each)) for each in retrainings(classes, photos, fall, draws)], axis=0)
            print(f"| {classes} | {photos} | {fall:.2f} | {' | '.join(f'{share:.0%}' for share in refused)} |")
            tell(f"{classes} classes of {photos} photos", fall, dict(zip(RULES, refused, strict=True)))


def retrainings(
    classes: int, photos: int, fall: float, draws: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]]:
    """Yields which photos the new and the current model recognise, and the classes."""
    target, random = np.repeat(np.arange(classes), photos), np.random.default_rng(0)
    lost, won = (CHANGED + fall) / 2 / RIGHT, (CHANGED - fall) / 2 / (1 - RIGHT)
    for _ in range(draws):
        serving, chance = random.random(len(target)) < RIGHT, random.random(len(target))
        yield np.where(serving, chance >= lost, chance < won), serving, target


def refusals(new: NDArray[np.bool_], serving: NDArray[np.bool_], target: NDArray[np.int64]) -> Iterator[bool]:
    """Yields for each rule True if it refuses."""
    photo, labels = (np.arange(number).astype(str).astype(object) for number in (len(target), target.max() + 1))
    found = {each: falls_no_further("tail", new, serving, target, Gate(confidence=each), photo=photo, labels=labels)
             for each in CONFIDENCES}  # fmt: skip
    plain = found[Gate().confidence]
    assert plain.after is not None
    assert plain.before is not None
    assert plain.low is not None
    yield plain.after < plain.before - plain.allowed
    yield from (not each.passed for each in found.values())
    yield plain.low < -plain.allowed


def tell(tail: str, fall: float, refused: dict[str, float]) -> None:
    """Figure of the default rule."""
    share, wanted = float(refused[f"{Gate().confidence:.0%}"]), {0.0: "<= 0.1", 0.10: ">= 0.9"}.get(fall, "told")
    met = {0.0: share <= 0.1, 0.10: share >= 0.9}.get(fall, True)
    figure(f"refused, {tail}, falls by {fall:.2f}", round(share, 3), target=wanted, met=met,
           baseline=f"by the measured figure alone {refused['measured']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
