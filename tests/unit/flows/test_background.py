"""Verbs that pages start as processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.errors import WorkspaceBusy
from flows.run.background import DELIVERY, RUN, Started, document, last, start_verb, stop
from flows.workspace import DATA_LOCK, Workspace
from serving.server.process import until
from tests.deliveries import deliver

pytestmark = pytest.mark.dvc


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.init(tmp_path_factory.mktemp("background") / "my shop")


def state(workspace: Workspace) -> Started:
    found = last(workspace, DELIVERY)
    assert found
    return found


def end_of(workspace: Workspace) -> Started:
    assert until(lambda: not state(workspace).is_alive, timeout_s=120)
    return state(workspace)


def test_one_verb_at_a_time_says_what_it_prints_and_why_it_fails(workspace: Workspace, tmp_path: Path) -> None:
    assert (last(workspace, DELIVERY), document(workspace, DELIVERY)) == (None, None)
    assert not stop(workspace, DELIVERY, by="Ana")
    source = deliver(tmp_path / "--dry-run", {"a": 4, "b": 4})  # a name like an option's
    start_verb(workspace, DELIVERY, "ingest", str(source), ["--dry-run", "--json"], by="Ana")
    with pytest.raises(WorkspaceBusy, match=r"what Ana started \(ingest\)"):
        start_verb(workspace, DELIVERY, "ingest", str(source), by="Ben")
    done = end_of(workspace)
    assert (done.has_failed, done.by, done.printed[0]) == (False, "Ana", "{")
    assert document(workspace, DELIVERY)["added"] == 8

    start_verb(workspace, DELIVERY, "ingest", str(tmp_path / "nowhere"), by="Ben")
    failed = end_of(workspace)
    assert (failed.has_failed, failed.printed) == (True, [])
    assert "no such file or folder" in failed.said
    assert last(workspace, RUN) is None, "a lane of its own"


def test_nothing_is_started_while_another_command_holds_what_it_needs(workspace: Workspace) -> None:
    before = last(workspace, DELIVERY)
    with workspace.lock("ingest", name=DATA_LOCK), pytest.raises(WorkspaceBusy, match="is busy: `ingest`"):
        start_verb(workspace, DELIVERY, "ingest", "/nowhere", by="Ana")
    with workspace.lock("retrain"), pytest.raises(WorkspaceBusy, match="is busy: `retrain`"):
        start_verb(workspace, RUN, "promote", "1", by="Ana")
    assert last(workspace, DELIVERY) == before
    assert last(workspace, RUN) is None


def test_a_damaged_note_counts_as_none(workspace: Workspace) -> None:
    for text in ("{", "[]", '{"recipe": "smoke", "pid": 1, "born": "x"}'):
        (workspace.state / "web-run.json").write_text(text)
        assert last(workspace, RUN) is None, text
