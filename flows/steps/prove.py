"""Which steps of a retraining stay: those that validation photos prove. Every decision is kept with its figures."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.run.run import Run
from flows.run.step import step
from flows.workspace.results import Balanced, Crops, DataFolder, Trained, Weights
from models.data.manifest import Manifest, read_manifest
from models.data.trusted import selection_photos, with_selection_photos
from models.evaluation.bootstrap import gain
from models.evaluation.scores import read_scores
from models.recipe.config import Proof

log = logging.getLogger("cleanshelf")


@step("prove {step}")
def prove(run: Run, data: DataFolder, step: str, *, before: list[Trained], after: list[Trained]) -> list[Trained]:
    """Of each member the result after the step where that gained, else the one before; run.json says why."""
    hits = Hits(with_selection_photos(read_manifest(data), run.recipe.proof.photos))
    found = [hits.compare(*pair, settings=run.recipe.proof) for pair in zip(before, after, strict=True)]
    decisions = [{"step": step, "member": number, **each} for number, each in enumerate(found, start=1)]
    (run.folder / f"evidence-{step}.json").write_text(json.dumps(decisions, indent=1), encoding="utf-8")
    for each in decisions:
        log.info("%s, member %d: %s", step, each["member"], in_words(each))
    return [late if each["stays"] else early for early, late, each in zip(before, after, found, strict=True)]


@dataclass(frozen=True)
class Hits:
    """What networks recognise of the validation photos of a data version."""

    manifest: Manifest

    def compare(self, before: Trained, after: Trained, *, settings: Proof) -> dict[str, Any]:
        """The gain on the photos that judge; `believed` on those of them that cleaning believes.

        Cleaning leaves out the photos that its own networks do not recognise, which flatters networks like them. The wider the
        two figures lie apart, the more.
        """
        on = selection_photos(self.manifest)
        part = {} if settings.photos else {"believed": self._gain(before, after, on & self.manifest.kept, settings)}
        return self._gain(before, after, on, settings) | part

    def _gain(self, before: Trained, after: Trained, on: NDArray[np.bool_], settings: Proof) -> dict[str, Any]:
        one, other = (self.of(folder)[on] for folder in (before, after))
        return gain(one, other, self.manifest.target[on], confidence=settings.confidence).to_dict()

    def of(self, folder: Trained) -> NDArray[np.bool_]:
        """(N,) whether each photo of the version is recognised; False where the network was not asked."""
        scores, hit = read_scores(folder / "scores.parquet"), np.zeros(len(self.manifest), np.bool_)
        row = np.searchsorted(self.manifest.id, scores.id)
        hit[row] = scores.top[:, 0] == self.manifest.target[row]
        return hit


def in_words(decision: dict[str, Any]) -> str:
    """One line for people."""
    if not decision["photos"]:
        return "stays as the recipe says, for there is no validation photo to judge by"
    figures = "mean-class accuracy {before:.3f} -> {after:.3f} (at least {low:+.3f}) on {photos} photos".format(
        **decision
    )
    return f"{figures}: {'stays' if decision['stays'] else 'goes'}"


def evidence(run: Run, balanced: list[Balanced], weights: Weights, crops: Crops) -> list[dict[str, Any]]:
    """Every decision of the run, in the order of its steps."""
    proven = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.folder.glob("evidence-*.json"))]
    choices = [json.loads((folder / "balance.json").read_text(encoding="utf-8")) for folder in balanced]
    rebalanced = [{"step": "balance", "member": number, "method": each["chosen"]["method"], **each["gain"]}
                  for number, each in enumerate(choices, start=1)]  # fmt: skip
    whole = [{"step": file.stem, "member": None, **gained} for file in (weights / "ensemble.json", crops / "crops.json")
             if (gained := json.loads(file.read_text(encoding="utf-8")).get("gain"))]  # fmt: skip
    return [*(decision for each in proven for decision in each), *rebalanced, *whole]
