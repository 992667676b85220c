"""Model versions in the registry of a workspace, made of tiny graphs without a training."""

from __future__ import annotations

from pathlib import Path

from durable import sha256
from flows.data.versions import DataVersions
from flows.endpoint.promotion import register
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.server.control import load_on_start
from tests.graphs import LABELS, golden_images, write_graph


def registered_model(workspace: Workspace, folder: Path, *, seed: int, data_version: str = "selected") -> int:
    """The number of a new model version, which is made the current model. Its graph is that of `seed`."""
    data = DataVersions(workspace).resolve(data_version)
    graph = write_graph(folder / f"{seed}.onnx", seed=seed, metadata={"data_version": data})
    models = ModelVersions(Ledger(workspace.root))
    lineage = {
        "data_version": data,
        "graph_sha256": sha256(graph),
        "metrics": {"top1": 0.5 + seed / 10, "mean_class": 0.5, "head": 0.6, "middle": 0.5, "tail": None},
        "override": None,
        "parent": models.current(),
        "recipe": "smoke",
        "run": "20300101-120000-abc123",
        "verdict": ["every gate passed"],
    }
    number = register(workspace, graph, lineage=lineage, labels=LABELS, golden=golden_images())
    load_on_start(repository(workspace), number)
    models.promote(number)
    return number
