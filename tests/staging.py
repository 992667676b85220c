"""Process that writes a version and is killed by tests: `python -m tests.staging REPOSITORY GRAPH VERSION`."""

from __future__ import annotations

import sys
from pathlib import Path

from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images


def stage_graph(repository: ModelRepository, graph: Path, version: int) -> None:
    """Writes the graph as a version."""
    repository.write(graph, version=version, labels=LABELS, lineage={"run": "a"}, golden=golden_images())


if __name__ == "__main__":
    stage_graph(ModelRepository(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]))
