"""May a model be served? Pure functions from evidence to a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from models.config import Gate


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be served, and why not or why so."""

    passed: bool
    reasons: tuple[str, ...]
    graph_sha256: str  # of exactly the bytes that were judged


def judge(
    new: Mapping[str, float | None],
    serving: Mapping[str, float | None] | None,
    parity: Mapping[str, float],
    *,
    settings: Gate,
    graph_sha256: str,
    reference: str = "torch",
) -> Verdict:
    """Compares accuracies on the same test photos.

    Args:
        new: accuracy of the new graph, keys as in models.evaluate.Accuracy, shares in [0, 1] or None.
        serving: the same of the model now serving, or None where none does.
        parity: of the new graph with what it was made from; keys different_ids and probability.
        reference: what that is.
    """
    refusals, reasons = [], []
    if parity["different_ids"]:
        refusals.append(f"parity: {parity['different_ids']:.0f} answers differ from {reference}")
    reasons.append(f"parity: probabilities differ from {reference} by at most {parity['probability']:.1e}")
    if serving is None:
        reasons.append("nothing is serving yet, so there is nothing to be worse than")
        return Verdict(not refusals, tuple(refusals or reasons), graph_sha256)
    for name, key, allowed in (
        ("mean-class accuracy", "mean_class", settings.mean_class),
        ("tail accuracy", "tail", settings.tail),
    ):
        before, after = serving[key], new[key]
        if before is None or after is None:
            refusals.append(f"{name} cannot be measured: the data version has no test photos of these classes")
        elif after < before - allowed:
            refusals.append(f"{name} {after:.3f} is more than {allowed:.3f} below the serving model's {before:.3f}")
        else:
            reasons.append(f"{name} {after:.3f} against {before:.3f} now serving")
    return Verdict(not refusals, tuple(refusals or reasons), graph_sha256)
