"""Answers of a teacher to the photos that its student learns from, as files of a folder.

classes.npy   (N, K) int32, the best classes of each photo, best first
probs.npy     (N, K + 1) float16, their probabilities, and last the sum of all others
answers.json  what the answers depend on, and how many of the photos have one

The arrays have their full size from the start and are filled in order. 2.5 million photos take 300 MB, whatever the
number of classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from durable import overwrite
from models.data.manifest import NEAR, UNLABELLED, Manifest
from models.errors import CheckpointMismatch

KEEP = 20  # best classes of a photo
STATUS = "answers.json"
LABEL_IN_DOUBT = ("dropped", "conflict")  # decisions that left a photo out because of its label alone


def student_rows(manifest: Manifest) -> NDArray[np.int64]:
    """Positions of the photos that a student learns from: train photos, also with a distrusted label, and photos without one.

    Photos that a person took out, and near-duplicates of test photos, stay out.
    """
    usable = manifest.kept | manifest.has_decision(LABEL_IN_DOUBT)
    is_taught = (manifest.split == "train") | (manifest.split == UNLABELLED)
    return np.flatnonzero(is_taught & usable & ~manifest.has_decision(NEAR))


@dataclass(frozen=True)
class Answers:
    """Answers to N photos, in arrays that are mapped from files: classes (N, K) int32 and probs (N, K + 1) float16.

    key: what they depend on. done: number of photos that have an answer.
    """

    folder: Path
    classes: NDArray[np.int32]
    probs: NDArray[np.float16]
    key: str
    done: int = 0

    def __len__(self) -> int:
        return len(self.classes)

    def save(self, done: int) -> None:
        """Records that the first `done` photos have an answer, once these are on the disk."""
        for array in (self.classes, self.probs):
            assert isinstance(array, np.memmap)
            array.flush()
        overwrite(self.folder / STATUS, json.dumps({"key": self.key, "done": done}).encode())


def open_answers(folder: Path, *, num_photos: int, num_classes: int, key: str) -> Answers:
    """Answers to be filled; those of a killed run with the same key are continued."""
    if (kept := _status(folder)) and kept["key"] == key:
        return _opened(folder, kept, mode="r+")
    keep = min(KEEP, num_classes - 1)  # so that there is always a rest
    (folder / STATUS).unlink(missing_ok=True)
    classes = np.lib.format.open_memmap(folder / "classes.npy", "w+", np.int32, (num_photos, keep))
    probs = np.lib.format.open_memmap(folder / "probs.npy", "w+", np.float16, (num_photos, keep + 1))
    return Answers(folder, classes, probs, key)


def read_answers(folder: Path, *, num_photos: int) -> Answers:
    """Complete answers; pages that a student changes are not written back.

    Raises:
        CheckpointMismatch: they are not complete, or belong to another number of photos.
    """
    status = _status(folder)
    if not status or status["done"] != num_photos:
        done = status["done"] if status else 0
        raise CheckpointMismatch(
            f"{folder / STATUS}: {done} photos have an answer of the teacher, but the student learns from {num_photos}; run "
            "models.export.teacher again on the same data version and recipe"
        )
    return _opened(folder, status, mode="c")


def _status(folder: Path) -> dict[str, Any] | None:
    """Content of answers.json; None if there is no such file."""
    file = folder / STATUS
    return dict(json.loads(file.read_bytes())) if file.exists() else None


def _opened(folder: Path, status: dict[str, Any], *, mode: Literal["r+", "c"]) -> Answers:
    """Answers in existing files: "r+" to fill them, "c" to read them, so that changes stay in memory."""
    classes, probs = (np.load(folder / f"{name}.npy", mmap_mode=mode) for name in ("classes", "probs"))
    return Answers(folder, classes, probs, **status)
