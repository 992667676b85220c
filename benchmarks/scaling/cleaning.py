"""One round of cleaning from drawn scores: `python -m scaling.cleaning FOLDER PHOTOS CLASSES draw|clean`.

Two folds have scored all photos, with embeddings. `draw` writes their files; `clean` decides as the step of a retraining does
(posterior with neighbours, linear vote and confusion) and prints one JSON line.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flows.run.run import Run
from flows.steps.clean import decided
from flows.workspace import Workspace
from flows.workspace.results import Fold
from models.data.manifest import Manifest
from models.evaluation.scores import KEEP, Scores, write_scores
from models.recipe.config import from_dict

FOLDS, WIDTH, BLOCK = 2, 512, 16_384
WRONG, VALIDATION = 0.08, 0.05  # shares of photos
RECIPE = {
    "name": "cleaning",
    "clean": {"rule": "posterior", "use": "weigh", "correct": True, "folds": FOLDS},
}


def drawn(photos: int, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """True and given classes (N,), and whether each photo is for validation; the same numbers draw the same."""
    random = np.random.default_rng(0)
    true = (random.random(photos) ** 2 * classes).astype(np.int64)
    given = np.where(random.random(photos) < WRONG, (true + 1 + (random.random(photos) < 0.3) * 7) % classes, true)
    return true, given, random.random(photos) < VALIDATION


def draw(folder: Path, photos: int, classes: int) -> None:
    """Writes scores.parquet and embeddings.npy of each fold: its own photos and all validation photos."""
    true, given, validation = drawn(photos, classes)
    random = np.random.default_rng(1)
    centres = random.standard_normal((classes, WIDTH), np.float32)
    ids = names(photos)
    for fold in range(FOLDS):
        rows = np.flatnonzero((np.arange(photos) % FOLDS == fold) | validation)
        top = (true[rows, None] + np.arange(KEEP)) % classes
        probs = np.sort(random.dirichlet(np.full(KEEP, 0.3), len(rows)).astype(np.float32), 1)[:, ::-1]
        is_own = top == given[rows, None]
        p_label = np.where(is_own.any(1), (probs * is_own).sum(1), 1e-4).astype(np.float32)
        place = folder / f"fold-{fold}"
        place.mkdir(parents=True, exist_ok=True)
        write_scores(
            Scores(ids[rows], given[rows], p_label, top, np.ascontiguousarray(probs)), place / "scores.parquet"
        )
        table = np.lib.format.open_memmap(place / "embeddings.npy", "w+", np.float16, (len(rows), WIDTH))
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            table[start : start + len(part)] = centres[true[part]] + random.standard_normal(
                (len(part), WIDTH), np.float32
            )
        table.flush()


def names(photos: int) -> NDArray[np.str_]:
    """Sorted ids of photos."""
    return np.char.zfill(np.arange(photos).astype("U8"), 16)


def clean(folder: Path, photos: int, classes: int) -> dict[str, float]:
    """Decides about all labels; seconds, and the shares of wrong and of right labels that are flagged."""
    true, given, validation = drawn(photos, classes)
    texts = np.array([f"Product {number:06d}" for number in range(classes)], object)
    none = np.full(photos, "", object)
    manifest = Manifest(
        data=folder, id=names(photos).astype(object), given_label=texts[given], label=texts[given],
        split=np.where(validation, "val", "train").astype(object), kept=np.ones(photos, np.bool_), decision=none,
        score=np.full(photos, np.nan, np.float32), round=np.zeros(photos, np.int8), scored_by=none, shard=none,
        offset=np.zeros(photos, np.int64), size=np.zeros(photos, np.int32),
    )  # fmt: skip
    run = Run(Workspace(folder), from_dict(RECIPE), id="")
    began = time.monotonic()
    after, _ = decided(run, manifest, [Fold(folder / f"fold-{fold}") for fold in range(FOLDS)], round=1)
    flagged, wrong = after.decision != "", (given != true) & ~validation
    return {
        "seconds": time.monotonic() - began,
        "found": float(flagged[wrong].mean()),
        "lost": float(flagged[~wrong & ~validation].mean()),
    }


if __name__ == "__main__":
    where, sizes = Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(draw(where, *sizes) if sys.argv[4] == "draw" else clean(where, *sizes)))
