"""Keeps the steps of a retraining that gain on the selection photos, and the figures of every decision."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.run.run import Run
from flows.run.step import step
from flows.workspace.results import Balanced, Crops, DataFolder, Trained, Weights
from models.cleaning import HALF
from models.data.manifest import Manifest, read_manifest
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.bootstrap import gain
from models.evaluation.scores import Scores, read_scores
from models.recipe.config import Proof

log = logging.getLogger("cleanshelf")


@dataclass(frozen=True)
class Selection:
    """The networks kept so far, one per member, and the decisions that led to them, in the order of the steps."""

    networks: list[Trained]
    decisions: tuple[dict[str, Any], ...] = ()


@step("keep gains of {step}")
def keep_gains(run: Run, data: DataFolder, step: str, before: Selection, after: list[Trained]) -> Selection:
    """The selection after a step: each member's network after the step if the step gained, otherwise the one before."""
    measured = SelectionPhotos(with_selection_photos(read_manifest(data), run.recipe.proof.photos))
    kept: list[Trained] = []
    decisions = list(before.decisions)
    for member, (early, late) in enumerate(zip(before.networks, after, strict=True), start=1):
        decision = {"step": step, "member": member, **measured.compare(early, late, settings=run.recipe.proof)}
        log.info("%s, member %d: %s", step, member, in_words(decision))
        decisions.append(decision)
        kept.append(late if decision["stays"] else early)
    return Selection(kept, tuple(decisions))


def learnt_from(
    kept: Selection, retrained: Sequence[Trained], labels: Sequence[DataFolder], *, before: DataFolder
) -> list[DataFolder]:
    """The labels that each kept network learnt from: those it was retrained on, or those `before` cleaning."""
    members = zip(kept.networks, retrained, labels, strict=True)
    return [own if network == late else before for network, late, own in members]


@dataclass(frozen=True)
class SelectionPhotos:
    """The photos of a data version on which networks are compared."""

    manifest: Manifest

    def compare(self, before: Trained, after: Trained, *, settings: Proof) -> dict[str, Any]:
        """The gain on the selection photos; `believed`: the gain on those of them whose label cleaning does not doubt.

        Cleaning doubts the photos that its own networks do not recognise, which flatters networks like them. The further the
        two figures lie apart, the stronger that bias.
        """
        selected = selection_photos(self.manifest)
        hits = self.recognised(before), self.recognised(after)
        figures = self._gain(*hits, selected, settings=settings)
        if not settings.photos:
            figures["believed"] = self._gain(*hits, selected & ~(self.manifest.score < HALF), settings=settings)
        return figures

    def _gain(
        self, early: NDArray[np.bool_], late: NDArray[np.bool_], rows: NDArray[np.bool_], *, settings: Proof
    ) -> dict[str, Any]:
        return gain(early[rows], late[rows], self.manifest.target[rows], confidence=settings.confidence).to_dict()

    def recognised(self, folder: Trained) -> NDArray[np.bool_]:
        """(N,) True for each photo that the network recognises; False for photos that it did not score."""
        return self.hits(read_scores(folder / "scores.parquet"))

    def hits(self, scores: Scores) -> NDArray[np.bool_]:
        """(N,) True for each photo whose best class is that of its label; False for photos that were not scored."""
        hit = np.zeros(len(self.manifest), np.bool_)
        row = self.manifest.rows_of(scores.id)
        hit[row] = scores.top[:, 0] == self.manifest.target[row]
        return hit


def in_words(decision: dict[str, Any]) -> str:
    """The decision in one line."""
    if not decision["photos"]:
        return "kept as the recipe says, because there are no validation photos to measure it on"
    before, after, low = decision["before"], decision["after"], decision["low"]
    figures = f"mean-class accuracy {before:.3f} -> {after:.3f} (at least {low:+.3f}) on {decision['photos']} photos"
    return f"{figures}: {'kept' if decision['stays'] else 'dropped'}"


def decisions_of(
    selection: Selection,
    balanced: list[Balanced],
    weights: Weights,
    crops: Crops,
    *,
    student: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Every decision of the run, in the order of its steps; `student`: the one on distillation."""
    decisions = list(selection.decisions)
    for member, folder in enumerate(balanced, start=1):
        choice = _read_json(folder / "balance.json")
        decisions.append({"step": "balance", "member": member, "method": choice["chosen"]["method"], **choice["gain"]})
    decisions += _of_ensemble("ensemble", weights / "ensemble.json")
    decisions += [student] if student else []
    decisions += _of_ensemble("crops", crops / "crops.json")
    return decisions


def _of_ensemble(step: str, file: Path) -> list[dict[str, Any]]:
    gained = _read_json(file).get("gain")
    return [{"step": step, "member": None, **gained}] if gained else []


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
