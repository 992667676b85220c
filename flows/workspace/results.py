"""Kinds of folders that steps take and return, so that mypy refuses one kind where another is needed.

All are plain paths at run time: they travel to Dask workers like any other path.
"""

from __future__ import annotations

from pathlib import Path
from typing import NewType

DataFolder = NewType("DataFolder", Path)  # a data version: photos, index.parquet, labels.parquet
Fold = NewType("Fold", Path)  # scores.parquet of a fold, and embeddings.npy or features.npy if cleaning compares photos
Trained = NewType("Trained", Path)  # network.pt and scores.parquet of a member, trained or fine-tuned
Balanced = NewType("Balanced", Path)  # the same after re-balancing, and balance.json
Weights = NewType("Weights", Path)  # ensemble.json
Crops = NewType("Crops", Path)  # crops.json
Calibration = NewType("Calibration", Path)  # calibration.json
Exported = NewType("Exported", Path)  # model.onnx, golden.npy, parity.json, and all of Measured
Measured = NewType("Measured", Path)  # answers.npz, accuracy.json and features of a graph on the test photos
