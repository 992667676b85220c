"""The demo from the data.dvc of this git repository, with networks that hardly learn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.demo import run_demo
from flows.endpoint.server import stop_endpoint
from flows.registry.history import model_history
from flows.registry.repository import repository
from flows.sample.workspace import fresh_workspace
from flows.workspace import Workspace
from models.data.manifest import read_manifest
from serving import Recognizer
from serving.server.environment import Environment
from serving.server.server import running

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.triton,
]

# The gate has to pass accuracies near chance, and a network that is unsure of everything has to drop some labels.
QUICK = ("train.epochs=1", "clean.epochs=1", "balance.epochs=1", "clean.rule=log_margin", "clean.params.threshold=0",
         "gate.mean_class=1", "gate.head=1", "gate.middle=1", "gate.tail=1", "gate.decided_away=1",
         "proof.confidence=0")  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path, prefect_server: None, triton_environment: Environment) -> Iterator[Workspace]:
    workspace = fresh_workspace(tmp_path / "a 'demo'")
    yield workspace
    stop_endpoint(workspace)
    assert running(workspace.state) is None


def test_the_demo_reports_data_models_endpoint_and_answers(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo(workspace, recipe="smoke", overrides=QUICK)
    output = capsys.readouterr().out

    cleaned, delivered, sample = DataVersions(workspace).log()
    assert [sample.step, delivered.step, cleaned.step] == ["adopt", "ingest", "clean-1"]
    assert (delivered.parent, cleaned.parent) == (sample.id, delivered.id)
    assert " -> ".join(each.id[:12] for each in (sample, delivered, cleaned)) in output

    found = re.search(
        r"(\d+) of (\d+) planted label errors of training photos found \(\d+%\); of (\d+) flagged labels", output
    )
    assert found
    right, planted, flagged = map(int, found.groups())
    assert flagged == cleaned.counts["dropped"] > 0
    assert 100 < planted < 200, "a quarter of about 600 photos"
    assert right <= min(planted, flagged)

    shown = re.findall(
        r"^  (\d+) photos? labelled (.+), more likely (.+)\n    /review\?given=\S+&version=(\w+)$", output, re.MULTILINE
    )
    assert 1 <= len(shown) <= 3
    assert all(given != suggested and version == cleaned.id for _, given, suggested, version in shown)
    assert re.search(r"cleanshelf web -w ", output)

    assert "models    1 (baseline, labels as delivered) -> 2 (answers now)" in output
    assert [(model["version"], model["serving"]) for model in model_history(workspace)] == [(2, True), (1, False)]
    assert [model["data_version"] for model in model_history(workspace)] == [cleaned.id, delivered.id]

    server = running(workspace.state)
    assert server is not None, "the endpoint keeps running"
    assert f"endpoint  gRPC {server.url}   HTTP 127.0.0.1:{server.http_port}" in output
    manifest = read_manifest(workspace.data)
    with Recognizer(server.access, labels=repository(workspace).labels) as recognizer:
        answer = recognizer.recognise([manifest.read_photo(0)])[0]
    assert (answer.model_version, answer.data_version) == (2, cleaned.id)

    table = re.findall(r"^([0-9a-f]{8})  (.+?)  +(0\.\d{3}) +(.+?)  +(yes|NO) *$", output, re.MULTILINE)
    assert len(table) == 6
    for _, label, _, truth, right_or_not in table:
        assert {label, truth} <= set(manifest.classes)
        assert (label == truth) == (right_or_not == "yes")
