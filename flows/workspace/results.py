"""Kinds of folders that steps take and return, so that mypy refuses one kind where another is needed.

All are plain paths at run time: they travel to Dask workers like any other path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NewType

DataFolder = NewType("DataFolder", Path)  # a data version: photos, index.parquet, labels.parquet
Fold = NewType("Fold", Path)  # scores.parquet of a fold, and embeddings.npy or features.npy if cleaning compares photos
Trained = NewType("Trained", Path)  # network.pt and scores.parquet of a member, trained or fine-tuned, or of a student
Balanced = NewType("Balanced", Trained)  # the same after re-balancing, and balance.json
Weights = NewType("Weights", Path)  # ensemble.json
Answers = NewType("Answers", Path)  # answers of a teacher to the photos of its student (models.training.answers)
Crops = NewType("Crops", Path)  # crops.json
Calibration = NewType("Calibration", Path)  # calibration.json
Exported = NewType("Exported", Path)  # model.onnx, golden.npy, parity.json, and all of Measured
Measured = NewType("Measured", Path)  # answers.npz, accuracy.json and features of a graph on the test photos


@dataclass(frozen=True)
class Served:
    """The networks that the graph is made of, and their weights: the ensemble, or the student alone.

    made_from: results that these come from and that are not in the graph. students: the student, also if it was dropped;
    empty without distillation. decision: why it was kept or dropped.
    """

    networks: Sequence[Trained]
    weights: Weights
    made_from: tuple[Path, ...] = ()
    students: tuple[Trained, ...] = ()
    decision: dict[str, Any] | None = None

    @property
    def shares(self) -> list[float]:
        """The weight of each network, with sum 1."""
        return list(json.loads((self.weights / "ensemble.json").read_text(encoding="utf-8"))["weights"])
