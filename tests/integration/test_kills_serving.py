"""Publication and switches, killed anywhere: versions are whole or absent, and no request is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows.endpoint.server import serve_registered
from flows.registry.versions import ModelVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.repository.repository import ModelRepository
from serving.server import process
from serving.server.server import LocalServer, running
from tests.graphs import stage, write_graph
from tests.kills import Kills
from tests.served import Load, Served, closed_loop, serving
from tests.staging import stage_graph

pytestmark = pytest.mark.faults


def test_publication(kills: Kills, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", seed=2, external=True)

    def prepare(place: Path) -> Sequence[object]:
        stage(ModelRepository(place), place, 1)
        return ["tests.staging", place, graph, 2]

    def check(place: Path) -> None:
        repository = ModelRepository(place)
        whole = repository.versions()
        for version in whole:
            repository.verify(version)
        assert all(path.name.startswith(".stage-2-") for path in repository.sweep())
        assert {path.name for path in repository.model.iterdir()} == {str(version) for version in whole}
        if 2 not in whole:
            stage_graph(repository, graph, 2)
        assert repository.versions() == (1, 2)
        assert {"model.onnx", "model.onnx.data"} <= repository.lineage(2)["files"].keys()
        repository.verify(2)

    kills.strike("publication", promises="I13 to I16", prepare=prepare, check=check)


@dataclass
class Shop:
    """A workspace whose model versions 1 and 2 served in turns, and a client that never pauses."""

    workspace: Workspace
    served: Served
    load: Load


@pytest.fixture
def shop(tmp_path: Path, local_server: Callable[..., LocalServer]) -> Iterator[Shop]:
    workspace = Workspace.init(tmp_path / "shop")
    repository, models = ModelRepository(workspace.repository), ModelVersions(Ledger(workspace.root))
    stage(repository, tmp_path, 1, 2)
    for version in (1, 2):
        models.register(repository.lineage(version))
    for version in (2, 1):
        models.promote(version)
    repository.configure([1])
    with serving(repository, local_server(repository.root, workspace.state)) as served, closed_loop(served) as load:
        yield Shop(workspace, served, load)


@pytest.mark.dvc
@pytest.mark.triton
def test_switch(kills: Kills, shop: Shop) -> None:
    workspace, served, load = shop.workspace, shop.served, shop.load
    models, targets = ModelVersions(Ledger(workspace.root)), itertools.cycle((2, 1))
    commands = dict(process.commands())
    assert "--model-control-mode=explicit" in commands[running(workspace.state).pid]

    def prepare(_: Path) -> Sequence[object]:
        return ["tests.verbs", "model", "rollback", next(targets), "-w", workspace.root]

    def check(_: Path) -> None:
        assert set(served.endpoint.active()) <= {1, 2}
        # Triton completes what it was told, so the version that answers may change meanwhile.
        assert load.meet(1, 2, more=5), "some version answers before the repair"
        with workspace.lock("reconcile", name="serving"):  # the kernel freed it
            serve_registered(workspace, served.endpoint)
            served.endpoint.sweep(served.repository)
            assert not serve_registered(workspace, served.endpoint), "once is enough"
        wanted = models.current()
        assert served.endpoint.active() == served.repository.configured() == (wanted,)
        assert served.repository.leftovers() == []
        assert load.meet(wanted, more=5)
        assert load.faults == []

    kills.strike("switch of the serving model", promises="I17 to I19", prepare=prepare, check=check)
    assert set(load.answered) == {1, 2}
