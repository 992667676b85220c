"""Trainings as a user starts them, and their speed by their own metrics.jsonl."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from models.recipe.config import Recipe, from_dict
from models.recipe.tables import set_key
from models.training.job import Job
from models.training.train import train


def recipe_of(
    member: Mapping[str, Any], train: Mapping[str, Any], *, side: int, settings: Sequence[str] = ()
) -> Recipe:
    """Recipe of one member with cross-entropy and the default augmentation.

    Args:
        side: of the photos that views are taken from, in px.
        settings: overrides such as "train.threads=2".
    """
    tables = {
        "name": "pace",
        "members": [dict(member)],
        "loss": {"name": "ce"},
        "train": dict(train),
        "export": {"input_size": side},
    }
    for setting in settings:
        set_key(tables, setting)
    return from_dict(tables)


@dataclass(frozen=True)
class Epochs:
    """Epochs of one training after the first, which also starts processes and reserves memory."""

    lines: tuple[dict[str, float], ...]

    @property
    def photos_per_s(self) -> float:
        """Speed over all of them; they have the same length."""
        return len(self.lines) / sum(1 / line["photos_per_s"] for line in self.lines)

    @property
    def waiting(self) -> float:
        """Share of the time in which the device waited for photos; NaN if trainings do not tell."""
        return sum(line.get("waiting", math.nan) for line in self.lines) / len(self.lines)


def run(data: Path, recipe: Recipe, *, out: Path) -> Epochs:
    """Trains in this process, in an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    train(Job(data=data, recipe=recipe, member=0, out=out))
    return read_epochs(out)


def read_epochs(out: Path) -> Epochs:
    """Epochs of the training in folder `out`."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return Epochs(tuple(json.loads(line) for line in lines[1:]))


@dataclass
class Written:
    """Context that counts how often a file is replaced, by looking at it."""

    path: Path
    poll_s: float = 0.005
    seen: set[tuple[int, int]] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Written:
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()

    def _look(self) -> None:
        while not self.over.wait(self.poll_s):
            with suppress(FileNotFoundError):
                status = self.path.stat()
                self.seen.add((status.st_ino, status.st_mtime_ns))
