"""Work that operators start from the pages: deliveries, publications and promotions, up to the moment a process would start."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from flows.errors import Denied, InputError
from flows.gate.verdict import Finding
from flows.pages.access import People, Person, as_author, user
from flows.pages.app import create_app
from flows.pages.deliveries import source_of
from flows.pages.runs import RunDetails, offer
from flows.pages.site import Site
from flows.run.history import RunState
from flows.workspace import Workspace
from tests.page_client import bearer

RUN = "20300101-120000-abc123"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.init(tmp_path_factory.mktemp("operations") / "shop")
    (workspace.runs / RUN).mkdir(parents=True)
    return workspace


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox" / "march").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    return tmp_path / "inbox"


def test_deliveries_lie_in_the_folders_that_were_named(workspace: Workspace, inbox: Path) -> None:
    site = Site(workspace, deliveries=[inbox])
    assert source_of(site, f" {inbox}/march ") == (inbox / "march").resolve()
    (inbox / "link").symlink_to(inbox.parent / "secret")
    (inbox / "loop").symlink_to("loop")
    for path in (f"{inbox}/../secret", f"{inbox}/link", f"{inbox}x", "/etc/passwd", "/", f"{inbox}/loop/../../secret"):
        with pytest.raises(Denied, match="those are"):
            source_of(site, path)


def test_whether_a_file_elsewhere_exists_is_not_said(workspace: Workspace, inbox: Path) -> None:
    texts = set()
    for path in ("/etc/passwd", "/etc/nothing-of-this-name"):
        with pytest.raises(Denied) as refused:
            source_of(Site(workspace, deliveries=[inbox]), path)
        texts.add(str(refused.value))
    assert len(texts) == 1


@pytest.mark.parametrize("path", ["march", "~/march", "", "/a\nb", "/a\0b"])
def test_a_path_that_is_not_whole_is_refused(workspace: Workspace, path: str) -> None:
    with pytest.raises(InputError, match="whole path"):
        source_of(Site(workspace, deliveries=None), path)


def test_without_folders_nothing_is_taken_in(workspace: Workspace, inbox: Path) -> None:
    with pytest.raises(Denied, match="--deliveries"):
        source_of(Site(workspace), str(inbox))


def test_only_operators_start_something(workspace: Workspace, inbox: Path) -> None:
    people = People(workspace.state, open_to_all=False)
    client = TestClient(create_app(Site(workspace, deliveries=None), people), "https://shop.example")
    tokens = {role: people.invite(role, role) for role in ("look", "decide", "operate")}
    for path, body in (
        ("deliveries", {"path": str(inbox / "nothing")}),
        (f"runs/{RUN}/publish", {"despite": " \n"}),
        ("versions/models/1/promote", {}),
    ):
        answers = {
            role: client.post(f"/api/{path}", json=body, headers=bearer(token)) for role, token in tokens.items()
        }
        assert [answers[role].status_code for role in ("look", "decide")] == [403, 403], path
        assert answers["operate"].status_code in (400, 404), answers["operate"].text
        forged = client.post(f"/api/{path}", json=body, headers=bearer(tokens["operate"]) | {"origin": "https://x"})
        assert forged.status_code == 403


def test_what_is_wrong_is_said_before_anything_starts(workspace: Workspace, inbox: Path) -> None:
    client = TestClient(
        create_app(Site(workspace, deliveries=None), People(workspace.state, open_to_all=True)), "http://127.0.0.1"
    )
    for path, body, says in (
        ("deliveries", {"path": f"{inbox}/april"}, "no such file or folder"),
        ("runs/20300101-120000-ffffff/publish", {}, "not a run of this workspace"),
        (f"runs/{RUN}/publish", {"despite": "  "}, "say in a few words"),
        ("versions/models/9/promote", {"in_place_of": None}, "9"),
    ):
        answer = client.post(f"/api/{path}", json=body)
        assert says in answer.json()["error"]["message"], answer.text
    assert not list(workspace.state.glob("web-*.json"))


def test_records_name_the_person_and_not_the_server(workspace: Workspace) -> None:
    code = "from pathlib import Path; from flows.workspace.ledger import Ledger; print(Ledger(Path('.')).user())"
    own = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.email", "GIT_CONFIG_VALUE_0": "server@shop.example"}
    variables = os.environ | own | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def known_as(person: Person) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_CONFIG_COUNT", "1")
            named = as_author(person)
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env=variables | named, cwd=workspace.root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert known_as(Person("Zoë Müller", "operate")) == "Zoë Müller"
    assert known_as(Person(user(), "operate")).endswith("<server@shop.example>")


@pytest.mark.parametrize(
    ("state", "refusing", "offered"),
    [
        ("refused", "tail", "despite"),
        ("refused", "parity", "final"),
        ("staged", "", "again"),
        ("killed", "", "again"),
        ("published", "", ""),
        ("running", "tail", ""),
    ],
)
def test_what_a_run_offers(state: str, refusing: str, offered: str) -> None:
    run = RunState(RUN, state, "retrain", "smoke", "2030-01-01T12:00:00+00:00", 1.0, "a" * 32, None, [])
    passed = [Finding("head", True, "x", 0.1)]
    found = RunDetails(run, findings=passed)
    if refusing:
        found = replace(found, findings=[*passed, Finding(refusing, False, "x", 0.1)], ways_out=["more photos"])
    assert offer(found) == offered
    assert offer(RunDetails(run)) == ""
    assert asdict(found)["reasons"] == []
