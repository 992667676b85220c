"""The verdict on a graph: what each gate found, whether the graph may serve, and who overrode a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

# Gates that cannot be overridden: a graph that differs from its networks is not what the run measured.
FINAL = ("parity",)


@dataclass(frozen=True)
class Finding:
    """The measurement of one gate, and its message `said`.

    gate: "parity" or the gate's key in the recipe.
    allowed: the recipe's bound.
    after, before: of the new and of the current model; None if there is none, or if nothing could be measured.
    low, high: bounds of the change (for "above_chance" and "class_floor" of the accuracy itself), each one-sided at
        `gate.confidence`.
    photos: ids of a few photos that explain a refusal.
    products, num_products: names of a few products that a refusal is about, the worst first, and how many there are.
    """

    gate: str
    passed: bool
    said: str
    allowed: float
    after: float | None = None
    before: float | None = None
    low: float | None = None
    high: float | None = None
    photos: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    num_products: int = 0

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Finding:
        """Reads a finding from the JSON of its `asdict`, also that of earlier releases."""
        return cls(**dict(content) | {name: tuple(content.get(name, ())) for name in ("photos", "products")})


@dataclass(frozen=True)
class Override:
    """A user's decision to serve a graph that gates refused."""

    by: str
    reason: str
    gates: list[str]  # the gates that refused it


@dataclass(frozen=True)
class Verdict:
    """The gates' judgement of a graph, with the reasons."""

    passed: bool
    reasons: tuple[str, ...]  # of the refusal if there is one, otherwise of passing
    graph_sha256: str  # of the bytes that were judged
    against: int | None = None  # the current model at that time
    findings: tuple[Finding, ...] = ()
    override: Override | None = None

    @property
    def may_serve(self) -> bool:
        """True if the graph passed or a user overrode the refusal."""
        return self.passed or self.override is not None

    @property
    def explanation(self) -> list[str]:
        """The reasons, and the override if there is one."""
        overridden = [f"overridden by {self.override.by}: {self.override.reason}"] if self.override else []
        return [*self.reasons, *overridden]

    def despite(self, reason: str, *, by: str) -> Verdict:
        """The verdict with an override of the refusing gates; without one if it passed or a gate cannot be overridden.

        A verdict that was overridden before keeps the gates of that override if it has no findings.
        """
        gates = [finding.gate for finding in self.findings if not finding.passed]
        gates = gates or (self.override.gates if self.override else [])
        if self.passed:
            return self
        if final := set(gates) & set(FINAL):
            return replace(self, reasons=(*self.reasons, f"{', '.join(sorted(final))} cannot be overridden"))
        return replace(self, override=Override(by, reason, gates))

    def is_that_of(self, lineage: Mapping[str, Any]) -> bool:
        """True if a model version was registered with this verdict."""
        override = self.override and asdict(self.override)
        return (list(self.reasons), override) == (lineage.get("verdict"), lineage.get("override"))

    @classmethod
    def of_lineage(cls, lineage: Mapping[str, Any]) -> Verdict:
        """The verdict that a model version was registered with, without its findings."""
        override = Override(**lineage["override"]) if lineage.get("override") else None
        reasons, sha256 = tuple(lineage.get("verdict", ())), lineage["graph_sha256"]
        return cls(override is None, reasons, sha256, against=lineage.get("parent"), override=override)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Verdict:
        """Reads a verdict from the JSON of its `asdict`, also that of earlier releases."""
        override = Override(**content["override"]) if content.get("override") else None
        findings = tuple(Finding.of(each) for each in content.get("findings", ()))
        return cls(**{**content, "reasons": tuple(content["reasons"]), "findings": findings, "override": override})
