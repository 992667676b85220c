"""May a model be served? Pure functions from evidence to a verdict; docs/tasks/gates.md tells the rules, with an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.gate.verdict import Finding, Verdict
from models.evaluation.bootstrap import DRAWS, class_share, differences
from models.recipe.config import Gate

THIRDS = ("head", "middle", "tail")
NEEDED = ("mean_class", "tail")  # what cannot be measured is no permission; of two classes none is the head
NAMED = 5


@dataclass(frozen=True)
class Hits:
    """The same test photos, asked of the new model and of the serving one.

    target: (N,) classes, all >= 0; new, serving: (N,) whether each was recognised, serving None where no model serves.
    labels: (C,) names; third: (C,) 0 head, 1 middle, 2 tail, by number of training photos.
    """

    target: NDArray[np.int64]
    new: NDArray[np.bool_]
    serving: NDArray[np.bool_] | None
    labels: NDArray[np.object_]
    third: NDArray[np.int64]


@dataclass(frozen=True)
class Decided:
    """given: (C,) training photos under each label as received; away: (C,) those of them that cleaning disbelieves."""

    labels: NDArray[np.object_]
    given: NDArray[np.int64]
    away: NDArray[np.int64]


@dataclass(frozen=True)
class GateInput:
    """All that is judged.

    parity: of the new graph with what it was made from, named by `reference`; keys different_ids and probability.
    variant: where the new graph is of a lower precision, what was measured of it; parity is then of the float32 graph.
    decided: None where nothing was trained.
    ms: per photo, of the new graph and, where one serves, of that; None where there is no budget.
    """

    parity: Mapping[str, float]
    answers: Hits
    decided: Decided | None = None
    ms: tuple[float, ...] | None = None
    reference: str = "torch"
    variant: Mapping[str, Any] | None = None


def judge(evidence: GateInput, *, settings: Gate, graph_sha256: str, against: int | None = None) -> Verdict:
    """What every gate says of a graph, and whether it may take the place of model version `against`."""
    findings = [same_as_its_networks(evidence)]
    if evidence.answers.serving is not None:
        findings += no_worse(evidence.answers, evidence.answers.serving, settings)
    findings.append(no_class_lost(evidence.answers, settings))
    if evidence.decided is not None:
        findings.append(labels_stand(evidence.decided, settings))
    if evidence.ms is not None:
        findings.append(quick_enough(evidence.ms, settings))
    refusals = [finding.said for finding in findings if not finding.passed]
    reasons = [finding.said for finding in findings]
    if evidence.answers.serving is None:
        reasons.insert(1, "nothing is serving yet, so there is nothing to be worse than")
    return Verdict(not refusals, tuple(refusals or reasons), graph_sha256, against, tuple(findings))


def same_as_its_networks(evidence: GateInput) -> Finding:
    """Not one photo is answered otherwise than by the networks that the graph was made from."""
    parity, reference, variant = evidence.parity, evidence.reference, evidence.variant
    different = int(parity["different_ids"])
    said = f"probabilities differ from {reference} by at most {parity['probability']:.1e}"
    if different:
        said = f"{different} answers differ from {reference}"
    elif variant is not None:
        said += f"; {variant['name']} instead of that agrees on {variant['agreement']:.1%} of the validation photos"
    return _finding("parity", not different, f"parity: {said}", 0, different)


def no_worse(answers: Hits, serving: NDArray[np.bool_], settings: Gate) -> list[Finding]:
    """Accuracy over all classes, and over each third of them."""
    third = answers.third[answers.target]
    parts = {"mean_class": np.ones(len(third), np.bool_)} | {name: third == place for place, name in enumerate(THIRDS)}
    return [
        falls_no_further(name, answers.new[on], serving[on], answers.target[on], settings)
        for name, on in parts.items()
        if on.any() or name in NEEDED
    ]


def falls_no_further(
    name: str, new: NDArray[np.bool_], serving: NDArray[np.bool_], target: NDArray[np.int64], settings: Gate
) -> Finding:
    """Refuses a fall beyond what is allowed, where as many of the bootstrap draws as `gate.confidence` say so too.

    Photos are drawn from all classes together: drawn class by class, the one photo of a class would never be in doubt.
    """
    words, allowed = f"{name.replace('_', '-')} accuracy", float(getattr(settings, name))
    if not len(target):
        said = f"{words} cannot be measured: the data version has no test photos of these classes"
        return Finding(name, False, said, allowed)
    share = class_share(target)
    after, before = (float((hit * share).sum() / share.sum()) for hit in (new, serving))
    drawn = differences(new, serving, target, seed=0, draws=DRAWS)
    low, high = (float(np.quantile(drawn, at)) for at in (1 - settings.confidence, settings.confidence))
    passed = after >= before - allowed or high >= -allowed
    said = f"{after:.3f} against {before:.3f} now serving"
    if not passed:
        said = f"{after:.3f} is more than {allowed:.3f} below the serving model's {before:.3f}"
    return _finding(name, passed, f"{words} {said} ({low:+.3f} to {high:+.3f})", allowed, after, before, low, high)


def no_class_lost(answers: Hits, settings: Gate) -> Finding:
    """No class is recognised less often than the floor, unless the serving model does no better.

    A class of few photos is in doubt, and what is in doubt passes: the bound `high` has to be below.
    """
    floor = settings.class_floor
    classes, place, shown = np.unique(answers.target, return_inverse=True, return_counts=True)
    if not len(classes):
        return Finding("class_floor", True, "no class can be asked about: there are no test photos", floor)
    right = np.bincount(place, answers.new)
    low, high = wilson(right, shown, confidence=settings.confidence)
    lost, held = high < floor, None
    if answers.serving is not None:
        held = np.bincount(place, answers.serving)
        lost &= wilson(held, shown, confidence=settings.confidence)[1] >= floor
    worst = np.lexsort((high, ~lost))[0]
    said = f"no class falls below {floor:.2f} beyond doubt"
    if lost.any():
        said = f"recognised less often than {floor:.2f}: {_listed(answers.labels[classes], lost, right, shown)}"
    after, before = right[worst] / shown[worst], None if held is None else held[worst] / shown[worst]
    return _finding("class_floor", not lost.any(), said, floor, after, before, low[worst], high[worst])


def labels_stand(decided: Decided, settings: Gate) -> Finding:
    """Of no class did cleaning disbelieve more than the allowed share of the training photos; few photos are in doubt, as above."""
    allowed, given = settings.decided_away, np.maximum(decided.given, 1)
    low, high = wilson(decided.away, given, confidence=settings.confidence)
    gone, worst = low > allowed, int(np.argmax(low))
    said = f"no class decided away by more than {allowed:.0%} beyond doubt"
    if gone.any():
        which = _listed(decided.labels, gone, decided.away, given)
        said = f"cleaning decided away more than {allowed:.0%} of {which}; look at their labels"
    after = decided.away[worst] / given[worst]
    return _finding("decided_away", not gone.any(), said, allowed, after, None, low[worst], high[worst])


def quick_enough(ms: tuple[float, ...], settings: Gate) -> Finding:
    """The time of one photo, as models.export.timing takes it, is within the budget."""
    after, before = ms[0], ms[1] if len(ms) > 1 else None
    said = f"{after:.1f} ms per photo" + ("" if before is None else f" against {before:.1f} ms now serving")
    passed = after <= settings.latency_ms
    if not passed:
        said += f": more than the budget of {settings.latency_ms:g} ms"
    return _finding("latency_ms", passed, said, settings.latency_ms, after, before)


def wilson(
    right: NDArray[np.floating] | NDArray[np.int64], shown: NDArray[np.int64], *, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds (C,) of the shares `right` / `shown`, shown > 0. Wilson, JASA 1927, with Bonferroni's correction.

    confidence: one-sided, that all lower bounds hold together, and likewise all upper ones.
    """
    z = NormalDist().inv_cdf(1 - (1 - confidence) / len(shown))
    middle = (right + z**2 / 2) / (shown + z**2)
    reach = z / (shown + z**2) * np.sqrt(right * (1 - right / shown) + z**2 / 4)
    return middle - reach, middle + reach


def _finding(gate: str, passed: bool, said: str, allowed: float, *measured: float | None) -> Finding:
    """`measured`: after, before, low, high, as far as there are any; as plain numbers of six decimals."""
    plain = (None if each is None else round(float(each), 6) for each in measured)
    return Finding(gate, bool(passed), said, allowed, *plain)


def _listed(labels: NDArray[np.object_], some: NDArray[np.bool_], part: NDArray[Any], whole: NDArray[np.int64]) -> str:
    """Some of the classes, each with how many of its photos are meant."""
    rows = np.flatnonzero(some)
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return ", ".join(f"{labels[row]} ({part[row]:.0f} of {whole[row]} photos)" for row in rows[:NAMED]) + more
