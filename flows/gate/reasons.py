"""Findings of the gates in plain sentences for the manager of a shop: what got worse, by how much, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flows.gate.verdict import Finding

GROUPS = {
    "mean_class": "all products",
    "head": "the products with the most photos",
    "middle": "the products with a medium number of photos",
    "tail": "the products with the fewest photos",
}
NAMED = 3  # products of a sentence
LONGEST = 60  # characters of a product's name
MORE_TEST_PHOTOS = "Deliver test photos of these products, and retrain."
NEXT = {
    "parity": "Retrain. If it happens again, show the log of the run to the person who looks after CleanShelf. This check cannot "
    "be overruled.",
    "mean_class": "Look through the labels of these products on the page Review, or deliver more photos; then retrain.",
    "head": "Look through the labels of these products on the page Review, or deliver more photos; then retrain.",
    "middle": "Look through the labels of these products on the page Review, or deliver more photos; then retrain.",
    "tail": "Deliver more photos of these products, or look through their labels on the page Review; then retrain.",
    "above_chance": "Deliver more photos, or start a retraining with a recipe that trains longer.",
    "class_floor": "Deliver more photos of these products, or correct their labels on the page Review; then retrain.",
    "decided_away": "Look at these products on the page Review, confirm the labels that are right, correct the others, save "
    "them as a version, and retrain.",
    "latency_ms": "Retrain with a faster recipe, or allow more time with the setting `gate.latency_ms`.",
}


@dataclass(frozen=True)
class Reason:
    """A finding in plain words. todo: what to do next; "" if the gate passed."""

    gate: str
    passed: bool
    says: str
    todo: str = ""


def reason_of(finding: Finding) -> Reason:
    """The finding in plain words; in its own if no sentence is known for its gate."""
    known = SENTENCES.get(finding.gate)
    todo = "" if finding.passed else NEXT.get(finding.gate, "")
    if todo and finding.after is None:
        todo = MORE_TEST_PHOTOS
    return Reason(finding.gate, finding.passed, known(finding) if known else f"{finding.said}.", todo)


def _accuracy(finding: Finding) -> str:
    group = GROUPS[finding.gate]
    if finding.after is None or finding.before is None:
        return f"The accuracy for {group} could not be measured, because they have no test photos."
    both = f"the new model recognises {finding.after:.1%} of the test photos, the model in use {finding.before:.1%}"
    if finding.passed:
        return f"On average over {group}, {both}."
    fall = finding.before - finding.after
    change = f"{100 * abs(fall):.1f} points {'worse' if fall > 0 else 'better'}" if fall else "no change"
    at_most, at_least = "at most {:g} points worse are accepted", "at least {:g} points better are demanded"
    limit = (at_most if finding.allowed >= 0 else at_least).format(round(100 * abs(finding.allowed), 4))
    where = f" It lost most with {_products(finding)}." if finding.products else ""
    return f"On average over {group}, {both}. That is {change}; {limit}.{where}"


def _guessing(finding: Finding) -> str:
    if finding.after is None or finding.before is None:
        reason = "this check is switched off" if finding.passed else "there are no test photos"
        return f"The new model was not compared with guessing, because {reason}."
    both = (
        f"The new model recognises {finding.after:.1%} of the test photos, and guessing gets {finding.before:.1%} right"
    )
    return f"{both}." if finding.passed else f"{both}. So nothing proves that it has learnt enough."


def _lost(finding: Finding) -> str:
    if finding.after is None:
        return "No single product could be checked, because there are no test photos."
    if finding.passed:
        return f"No product is proven to be recognised in fewer than {finding.allowed:.0%} of its test photos."
    return f"The new model hardly recognises {_products(finding)}: in fewer than {finding.allowed:.0%} of their test photos."


def _left_out(finding: Finding) -> str:
    if finding.passed:
        return f"Cleaning is not proven to leave out more than {finding.allowed:.0%} of the photos of any product."
    what = f"Cleaning left out more than {finding.allowed:.0%} of the photos of {_products(finding)}"
    return f"{what}. Either their labels were mixed up at the source, or cleaning does not understand these products."


def _time(finding: Finding) -> str:
    before = "" if finding.before is None else f", the model in use {finding.before:.1f} ms"
    limit = "" if finding.passed else f" At most {finding.allowed:g} ms are accepted."
    return f"The new model takes {finding.after:.1f} ms for a photo{before}.{limit}"


def _same(finding: Finding) -> str:
    if finding.passed:
        return "The finished model gives the same answers as the networks that it was made from."
    number = int(finding.after or 0)
    photos = "1 photo" if number == 1 else f"{number:,} photos"
    return f"The finished model answers {photos} differently from the networks that it was made from, so it is faulty."


def _products(finding: Finding) -> str:
    """The worst of the products that a finding is about, and how many more there are."""
    names = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in finding.products[:NAMED]]
    if not names:
        return "some products"
    more = finding.num_products - len(names)
    parts = [*names, f"{more:,} more"] if more > 0 else names
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


SENTENCES: dict[str, Callable[[Finding], str]] = {
    **dict.fromkeys(GROUPS, _accuracy),
    "parity": _same,
    "above_chance": _guessing,
    "class_floor": _lost,
    "decided_away": _left_out,
    "latency_ms": _time,
}
