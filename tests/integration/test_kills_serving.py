"""Publication and switches, killed at any point: versions are whole or absent, and no request is lost."""

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
from tests.graphs import write_graph, write_versions
from tests.kills import Kills
from tests.triton import Load, Triton, closed_loop, running_triton
from tests.version_writer import write_version

pytestmark = pytest.mark.faults


def test_publication(kills: Kills, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", seed=2, external=True)

    def prepare(folder: Path) -> Sequence[object]:
        write_versions(ModelRepository(folder), folder, 1)
        return ["tests.version_writer", folder, graph, 2]

    def check(folder: Path) -> None:
        repository = ModelRepository(folder)
        whole = repository.versions()
        for version in whole:
            repository.verify(version)
        assert all(path.name.startswith(".stage-2-") for path in repository.sweep())
        assert {path.name for path in repository.model.iterdir()} == {str(version) for version in whole}
        if 2 not in whole:
            write_version(repository, graph, 2)
        assert repository.versions() == (1, 2)
        assert {"model.onnx", "model.onnx.data"} <= repository.lineage(2)["files"].keys()
        repository.verify(2)

    kills.strike("publication", promises="I13 to I16", prepare=prepare, check=check)


@dataclass
class Shop:
    """A workspace with promoted model versions 1 and 2, its server, and clients that never pause."""

    workspace: Workspace
    triton: Triton
    load: Load


@pytest.fixture
def shop(tmp_path: Path, local_server: Callable[..., LocalServer]) -> Iterator[Shop]:
    workspace = Workspace.init(tmp_path / "shop")
    repository, models = ModelRepository(workspace.repository), ModelVersions(Ledger(workspace.root))
    write_versions(repository, tmp_path, 1, 2)
    for version in (1, 2):
        models.register(repository.lineage(version))
    for version in (2, 1):
        models.promote(version)
    repository.configure([1])
    with (
        running_triton(repository, local_server(repository.root, workspace.state)) as triton,
        closed_loop(triton) as load,
    ):
        yield Shop(workspace, triton, load)


@pytest.mark.dvc
@pytest.mark.triton
def test_switch(kills: Kills, shop: Shop) -> None:
    workspace, triton, load = shop.workspace, shop.triton, shop.load
    models, targets = ModelVersions(Ledger(workspace.root)), itertools.cycle((2, 1))
    commands = dict(process.commands())
    assert "--model-control-mode=explicit" in commands[running(workspace.state).pid]

    def prepare(_: Path) -> Sequence[object]:
        return ["tests.verbs", "model", "rollback", next(targets), "-w", workspace.root]

    def check(_: Path) -> None:
        assert set(triton.endpoint.active()) <= {1, 2}
        # Triton completes the commands that it received, so the version that answers may still change.
        assert load.wait_for_answers(1, 2, more=5), "one of the versions answers before the repair"
        with workspace.lock("reconcile", name="serving"):  # the kernel released the lock of the killed process
            serve_registered(workspace, triton.endpoint)
            triton.endpoint.sweep(triton.repository)
            assert not serve_registered(workspace, triton.endpoint), "one repair is enough"
        current = models.current()
        assert triton.endpoint.active() == triton.repository.configured() == (current,)
        assert triton.repository.leftovers() == []
        assert load.wait_for_answers(current, more=5)
        assert load.faults == []

    kills.strike("switch of the serving model", promises="I17 to I19", prepare=prepare, check=check)
    assert set(load.answers) == {1, 2}
