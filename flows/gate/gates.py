"""The gates: pure functions from measurements to a verdict. docs/tasks/gates.md explains the rules with an example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.gate.verdict import Finding, Verdict
from models.evaluation.bootstrap import DRAWS, class_share, differences
from models.recipe.config import Gate

THIRDS = ("head", "middle", "tail")
NEEDED = ("mean_class", "tail")  # refused if they cannot be measured; with two classes there is no head
NAMED = 5  # classes that a message names, and photos to look at


@dataclass(frozen=True)
class Hits:
    """The test photos that the new and the current model recognise.

    photo: (N,) ids.
    target: (N,) classes, all >= 0.
    new, serving: (N,) True for each photo recognised; serving is None if there is no current model.
    labels: (C,) names of the classes.
    third: (C,) 0 head, 1 middle, 2 tail, by number of training photos.
    """

    photo: NDArray[np.object_]
    target: NDArray[np.int64]
    new: NDArray[np.bool_]
    serving: NDArray[np.bool_] | None
    labels: NDArray[np.object_]
    third: NDArray[np.int64]


@dataclass(frozen=True)
class LeftOut:
    """Training photos that the model did not learn under their given label, because cleaning decided so.

    labels: (C,) names of the classes.
    given: (C,) training photos by given label.
    photo, target: (M,) ids of the photos left out, the most doubtful first, and the classes of their given labels.
    """

    labels: NDArray[np.object_]
    given: NDArray[np.int64]
    photo: NDArray[np.object_]
    target: NDArray[np.int64]


@dataclass(frozen=True)
class GateInput:
    """Everything that the gates judge.

    parity: how the new graph differs from what it was made from, which `reference` names; keys different_ids and probability.
    cleaning: None if nothing was trained.
    ms: per photo, of the new graph and, if there is one, of the current model; None if the recipe sets no budget.
    variant: the measurements of a graph of a lower precision; parity is then that of the float32 graph.
    """

    parity: Mapping[str, float]
    answers: Hits
    cleaning: LeftOut | None = None
    ms: tuple[float, ...] | None = None
    reference: str = "torch"
    variant: Mapping[str, Any] | None = None


def judge(evidence: GateInput, *, settings: Gate, graph_sha256: str, against: int | None = None) -> Verdict:
    """The verdict of all gates on a graph that may replace model version `against`."""
    findings = [same_as_its_networks(evidence)]
    if evidence.answers.serving is not None:
        findings += no_worse(evidence.answers, evidence.answers.serving, settings)
    findings.append(no_class_lost(evidence.answers, settings))
    if evidence.cleaning is not None:
        findings.append(better_than_guessing(evidence.answers, settings))
        findings.append(few_photos_left_out(evidence.cleaning, settings))
    if evidence.ms is not None:
        findings.append(quick_enough(evidence.ms, settings))
    refusals = [finding.said for finding in findings if not finding.passed]
    reasons = [finding.said for finding in findings]
    if evidence.answers.serving is None:
        reasons.insert(1, "there is no current model yet to compare with")
    return Verdict(not refusals, tuple(refusals or reasons), graph_sha256, against, tuple(findings))


def same_as_its_networks(evidence: GateInput) -> Finding:
    """Refuses a graph that answers a single photo otherwise than the networks it was made from."""
    parity, reference, variant = evidence.parity, evidence.reference, evidence.variant
    different = int(parity["different_ids"])
    message = f"probabilities differ from {reference} by at most {parity['probability']:.1e}"
    if different:
        message = f"{different} answer{'s differ' if different > 1 else ' differs'} from {reference}"
    elif variant is not None:
        message += (
            f"; its {variant['name']} variant agrees with it on {variant['agreement']:.1%} of the validation photos"
        )
    return _finding("parity", not different, f"parity: {message}", 0, different)


def better_than_guessing(answers: Hits, settings: Gate) -> Finding:
    """Refuses a graph that is not proven to recognise more than a guess does: an absolute bar, for first models too.

    A guess is a class at random, or always the class with the most test photos, whichever is right more often.
    """
    margin, num = settings.above_chance, len(answers.target)
    if margin < 0:
        return Finding("above_chance", True, "not compared with guessing, because gate.above_chance is below 0", margin)
    if not num:
        message = "accuracy cannot be compared with guessing: the data version has no test photos of trained classes"
        return Finding("above_chance", False, message, margin)
    shown, right = np.bincount(answers.target), int(answers.new.sum())
    most = 0.0 if np.count_nonzero(shown) == 1 else float(shown.max() / num)  # of a single class, nothing else is right
    guess = max(most, 1 / len(answers.labels))
    (low,), (high,) = wilson(np.array([right]), np.array([num]), confidence=settings.confidence)
    passed = low > guess + margin
    message = f"top-1 accuracy {right / num:.3f}, at least {low:.3f} beyond doubt, against {guess:.3f} by guessing"
    if not passed:
        message += f": not proven to be more than {margin:.3f} better; train longer, from pretrained weights, or on more photos"
    photos = () if passed else examples(answers.photo, answers.target, ~answers.new)
    return _finding("above_chance", passed, message, margin, right / num, guess, low, high, photos=photos)


def no_worse(answers: Hits, serving: NDArray[np.bool_], settings: Gate) -> list[Finding]:
    """Compares the accuracy over all classes, and over each third of them, with that of the current model."""
    third = answers.third[answers.target]
    parts = {"mean_class": np.ones(len(third), np.bool_)}
    parts |= {name: third == number for number, name in enumerate(THIRDS)}
    return [
        falls_no_further(
            name,
            answers.new[rows],
            serving[rows],
            answers.target[rows],
            settings,
            photo=answers.photo[rows],
            labels=answers.labels,
        )
        for name, rows in parts.items()
        if rows.any() or name in NEEDED
    ]


def falls_no_further(
    name: str,
    new: NDArray[np.bool_],
    serving: NDArray[np.bool_],
    target: NDArray[np.int64],
    settings: Gate,
    *,
    photo: NDArray[np.object_],
    labels: NDArray[np.object_],
) -> Finding:
    """Refuses an accuracy that falls by more than allowed, in the test photos and in `gate.confidence` of the bootstrap draws.

    Photos are drawn from all classes together: drawn class by class, the only photo of a class would always be drawn.
    """
    words, allowed = f"{name.replace('_', '-')} accuracy", float(getattr(settings, name))
    if not len(target):
        message = f"{words} cannot be measured: the data version has no test photos of these classes"
        return Finding(name, False, message, allowed)
    share = class_share(target)
    after, before = (float((hit * share).sum() / share.sum()) for hit in (new, serving))
    drawn = differences(new, serving, target, seed=0, draws=DRAWS)
    low, high = (float(np.quantile(drawn, q)) for q in (1 - settings.confidence, settings.confidence))
    passed = after >= before - allowed or high >= -allowed
    message = f"{after:.3f} against the current model's {before:.3f}"
    if not passed:
        message = f"{after:.3f} is more than {allowed:.3f} below the current model's {before:.3f}"
    finding = _finding(
        name, passed, f"{words} {message} ({low:+.3f} to {high:+.3f})", allowed, after, before, low, high
    )
    if passed:
        return finding
    lost = np.bincount(target, serving, len(labels)) - np.bincount(target, new, len(labels))
    return _about(finding, examples(photo, target, serving & ~new), labels, lost)


def no_class_lost(answers: Hits, settings: Gate) -> Finding:
    """Refuses a graph that recognises a class less often than the floor, unless the current model does no better.

    Few photos prove nothing, so a class passes unless its upper bound `high` is below the floor.
    """
    floor = settings.class_floor
    classes, row, shown = np.unique(answers.target, return_inverse=True, return_counts=True)
    if not len(classes):
        return Finding("class_floor", True, "no class can be measured: the data version has no test photos", floor)
    right = np.bincount(row, answers.new)
    low, high = wilson(right, shown, confidence=settings.confidence)
    lost, held = high < floor, None
    if answers.serving is not None:
        held = np.bincount(row, answers.serving)
        lost &= wilson(held, shown, confidence=settings.confidence)[1] >= floor
    worst = np.lexsort((high, ~lost))[0]
    message = f"no class falls below {floor:.2f} beyond doubt"
    if lost.any():
        message = f"recognised less often than {floor:.2f}: {_listed(answers.labels[classes], lost, right, shown)}"
    after, before = right[worst] / shown[worst], None if held is None else held[worst] / shown[worst]
    photos = examples(answers.photo, answers.target, lost[row] & ~answers.new)
    finding = _finding("class_floor", not lost.any(), message, floor, after, before, low[worst], high[worst])
    return _about(finding, photos, answers.labels[classes], lost * (1 - right / shown))


def few_photos_left_out(cleaning: LeftOut, settings: Gate) -> Finding:
    """Refuses if cleaning left out more than the allowed share of any class. Few photos prove nothing here either."""
    allowed, given = settings.decided_away, np.maximum(cleaning.given, 1)
    away = np.bincount(cleaning.target, minlength=len(given))
    low, high = wilson(away, given, confidence=settings.confidence)
    refused, worst = low > allowed, int(np.argmax(low))
    message = f"cleaning left out no more than {allowed:.0%} of any class beyond doubt"
    if refused.any():
        which = _listed(cleaning.labels, refused, away, given)
        message = f"cleaning left out more than {allowed:.0%} of {which}; check their labels"
    after = away[worst] / given[worst]
    photos = examples(cleaning.photo, cleaning.target, refused[cleaning.target])
    finding = _finding("decided_away", not refused.any(), message, allowed, after, None, low[worst], high[worst])
    return _about(finding, photos, cleaning.labels, refused * away / given)


def examples(photo: NDArray[np.object_], target: NDArray[np.int64], some: NDArray[np.bool_]) -> tuple[str, ...]:
    """Ids of a few of `some` photos (N,), in their order, from as many classes as possible."""
    rows = np.flatnonzero(some)
    by_class = rows[np.argsort(target[rows], kind="stable")]
    _, first, count = np.unique(target[by_class], return_index=True, return_counts=True)
    place = np.arange(len(by_class)) - np.repeat(first, count)  # of each photo within its class
    return tuple(str(each) for each in photo[by_class[np.argsort(place, kind="stable")[:NAMED]]])


def quick_enough(ms: tuple[float, ...], settings: Gate) -> Finding:
    """Refuses a graph that takes longer per photo than the budget; models.export.timing measures it."""
    after, before = ms[0], ms[1] if len(ms) > 1 else None
    message = f"{after:.1f} ms per photo" + ("" if before is None else f" against the current model's {before:.1f} ms")
    passed = after <= settings.latency_ms
    if not passed:
        message += f": more than the budget of {settings.latency_ms:g} ms"
    return _finding("latency_ms", passed, message, settings.latency_ms, after, before)


def wilson(
    right: NDArray[np.floating] | NDArray[np.int64], shown: NDArray[np.int64], *, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds (C,) of the shares `right` / `shown`, shown > 0: Wilson, JASA 1927, with Bonferroni's correction.

    confidence: probability that all lower bounds hold together, and likewise all upper bounds.
    """
    z = NormalDist().inv_cdf(1 - (1 - confidence) / len(shown))
    middle = (right + z**2 / 2) / (shown + z**2)
    reach = z / (shown + z**2) * np.sqrt(right * (1 - right / shown) + z**2 / 4)
    return middle - reach, middle + reach


def _finding(
    gate: str, passed: bool, message: str, allowed: float, *measured: float | None, photos: tuple[str, ...] = ()
) -> Finding:
    """A finding with plain numbers of six decimals. measured: after, before, low, high; fewer if there are no more."""
    plain = [None if each is None else round(float(each), 6) for each in measured]
    after, before, low, high = [*plain, None, None, None][:4]
    return Finding(gate, bool(passed), message, allowed, after, before, low, high, photos)


def _about(finding: Finding, photos: tuple[str, ...], labels: NDArray[np.object_], harm: NDArray[Any]) -> Finding:
    """The finding with photos that explain it, and the products with the most harm; harm (C,) is 0 where there is none."""
    concerned = np.flatnonzero(harm > 0)
    worst = concerned[np.argsort(-harm[concerned], kind="stable")[:NAMED]]
    names = tuple(str(name) for name in labels[worst])
    return replace(finding, photos=photos, products=names, num_products=len(concerned))


def _listed(labels: NDArray[np.object_], some: NDArray[np.bool_], part: NDArray[Any], whole: NDArray[np.int64]) -> str:
    """The first of these classes, each with the number of its photos concerned, and how many more there are."""
    rows = np.flatnonzero(some)
    named = ", ".join(f"{labels[row]} ({part[row]:.0f} of {whole[row]} photos)" for row in rows[:NAMED])
    return f"{named} and {len(rows) - NAMED} more" if len(rows) > NAMED else named
