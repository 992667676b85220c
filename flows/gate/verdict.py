"""What the gates found: each finding, whether the graph may be served, and who said so against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

FINAL = ("parity",)  # a graph that answers otherwise than its networks is not what was proven on the way


@dataclass(frozen=True)
class Finding:
    """What one gate measured, and what it said of it.

    gate: "parity" or the recipe's key.
    after, before: of the new model and the serving one; None where there is none, or nothing to measure by.
    low, high: what the change lies between (of "class_floor": the accuracy itself), each at `gate.confidence`, one-sided.
    allowed: the recipe's bound.
    """

    gate: str
    passed: bool
    said: str
    allowed: float
    after: float | None = None
    before: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Override:
    """Somebody's word that a refused graph is to serve all the same."""

    by: str
    reason: str
    gates: list[str]  # that had refused it


@dataclass(frozen=True)
class Verdict:
    """Whether a model may be served, and why not or why so."""

    passed: bool
    reasons: tuple[str, ...]
    graph_sha256: str  # of exactly the bytes that were judged
    against: int | None = None  # the model version that served then
    findings: tuple[Finding, ...] = ()
    override: Override | None = None

    @property
    def may_serve(self) -> bool:
        """Whether it passed, or somebody answers for it."""
        return self.passed or self.override is not None

    @property
    def told(self) -> list[str]:
        """The reasons, and who overrode them."""
        told = self.override
        return [*self.reasons, *([f"overridden by {told.by}: {told.reason}"] if told else [])]

    def despite(self, reason: str, *, by: str) -> Verdict:
        """The verdict with an override of the gates that refused; itself where none did, or one that nobody may override."""
        gates = [finding.gate for finding in self.findings if not finding.passed]
        if self.passed:
            return self
        if final := set(gates) & set(FINAL):
            return replace(self, reasons=(*self.reasons, f"{', '.join(sorted(final))} cannot be overridden"))
        return replace(self, override=Override(by, reason, gates))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Verdict:
        """From what `asdict` made of it, through JSON; of earlier releases, too."""
        override = Override(**content["override"]) if content.get("override") else None
        findings = tuple(Finding(**each) for each in content.get("findings", ()))
        return cls(**{**content, "reasons": tuple(content["reasons"]), "findings": findings, "override": override})
