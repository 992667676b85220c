"""Writes a model version in a process that tests kill: `python -m tests.version_writer REPOSITORY GRAPH VERSION`."""

from __future__ import annotations

import sys
from pathlib import Path

from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images


def write_version(repository: ModelRepository, graph: Path, version: int) -> None:
    """Writes the graph as a model version."""
    repository.write(graph, version=version, labels=LABELS, lineage={"run": "a"}, golden=golden_images())


if __name__ == "__main__":
    write_version(ModelRepository(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]))
