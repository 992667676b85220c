"""What runs left, and whether it is still what a model was made of."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.config import digest
from serving.durable import sha256


@dataclass(frozen=True)
class Result:
    """A file that a stage left: the sha256 that it had, has now, and has by the stage's own word; None for no file."""

    path: Path
    wanted: str
    found: str | None
    made: str | None

    @classmethod
    def read(cls, folder: Path, name: str, wanted: str) -> Result:
        """As it is now."""
        path = folder / name
        return cls(path, wanted, sha256(path) if path.exists() else None, _json(folder / "done.json").get(name))

    @property
    def is_gone(self) -> bool:
        """Whether it is not here any more; a stage that was made again may have another result."""
        return self.found != self.wanted and (self.found == self.made or not self.path.parent.exists())

    @property
    def is_broken(self) -> bool:
        """Whether it is neither what it was nor what the stage says it is."""
        return self.found != self.wanted and not self.is_gone


def recipe_digest(recipe: Path) -> str:
    """Of a resolved recipe as a run keeps it, that of the recipe itself; another one where it is no JSON any more."""
    return digest(_json(recipe))


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or none of JSON."""
    with suppress(FileNotFoundError, ValueError):
        return dict(json.loads(path.read_bytes()))
    return {}
