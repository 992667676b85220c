"""JSON API of the review, in process: what it refuses, decisions on many photos, search, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flows.data.versions import DataVersions
from flows.pages import deciding
from flows.pages.access import DECIDE, LOOK, People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.workspace import Workspace
from tests.cleaned import cleaned_workspace

pytestmark = pytest.mark.dvc


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(cleaned_workspace(tmp_path_factory.mktemp("review"), photos=8))


def queue(client: TestClient, **wanted: Any) -> dict[str, Any]:
    answer = client.get("/api/review/queue", params=wanted)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def decide(client: TestClient, page: dict[str, Any], **body: Any) -> Any:
    body = {
        "version": page["version"],
        "seen": page["seen"],
        "photos": [page["photos"][0]["photo"]],
        "kind": "keep",
    } | body
    return client.post("/api/review/decide", json=body)


def test_photos_come_with_their_evidence(client: TestClient) -> None:
    page = queue(client, limit=3)
    first = page["photos"][0]
    assert [each["rank"] for each in page["photos"]] == [0, 1, 2]
    assert first["suggested"]["probability"] == pytest.approx(0.7, abs=0.01)
    assert first["photo"] not in first["given"]["samples"]
    near = client.get(f"/api/review/photos/{first['photo']}/neighbours").json()
    assert near[0]["label"] == first["suggested"]["label"]
    assert queue(client, before=2, limit=1)["photos"][0]["rank"] == 1
    (alone,) = client.get(f"/api/review/photos/{first['photo']}").json()["photos"]
    assert alone == first


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"photos": ["0" * 16]}, 404, "has no photo 0000"),
        ({"photos": []}, 422, "photos"),
        ({"kind": "destroy"}, 422, "kind"),
        ({"kind": "relabel", "label": "<b>Rum</b>"}, 400, "is not a product of this version; choose one from the list"),
        ({"kind": "relabel", "label": "x" * 2001}, 422, "label"),
        ({"version": "f" * 32}, 404, "is not a data version"),
        ({"seen": -1}, 422, "seen"),
    ],
)
def test_what_cannot_be_decided_is_refused(client: TestClient, body: dict[str, Any], status: int, says: str) -> None:
    answer = decide(client, queue(client), **body)
    assert (answer.status_code, says in answer.json()["error"]["message"]) == (status, True), answer.text


def test_a_photo_without_a_suggestion_keeps_its_label(client: TestClient) -> None:
    page = queue(client, scope="all", above=0.8)
    assert page["photos"][0]["suggested"] is None
    assert "there is no suggestion to take" in decide(client, page, kind="take").json()["error"]["message"]
    assert decide(client, page, kind="keep").json()["decided"] == 1


def test_another_person_is_not_overwritten(client: TestClient) -> None:
    page = queue(client)
    client.cookies.set("cleanshelf_name", "Ana")
    assert decide(client, page).status_code == 200
    client.cookies.set("cleanshelf_name", "Zo%C3%AB")
    answer = decide(client, page, kind="none")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (409, "Decided")
    assert decide(client, page | {"photos": page["photos"][1:]}).status_code == 200
    assert {
        each.who for each in Site(Workspace(client.app.state.site.workspace.root)).decisions.pending().values()
    } == {"Ana", "Zoë"}  # type: ignore[attr-defined]


def test_all_that_match_except_some(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    page = queue(client)
    given = page["photos"][0]["given"]["label"]
    of_class = [each["photo"] for each in page["photos"] if each["given"]["label"] == given]
    body = {"version": page["version"], "filter": {"given": given}, "kind": "take", "left_out": of_class[:1]}
    done = client.post("/api/review/decide-matching", json=body).json()
    assert (done["decided"], done["left_out"]) == (len(of_class) - 1, 0)
    far = client.get("/api/review/progress", params={"given": given}).json()
    assert (far["here"]["left"], far["unsaved"], far["classes"][0]["left"]) == (1, len(of_class) - 1, 1)
    assert client.post("/api/review/undo").json()["count"] == len(of_class) - 1
    monkeypatch.setattr(deciding, "MOST", 1)
    assert "narrow the filter" in client.post("/api/review/decide-matching", json=body).json()["error"]["message"]


def test_the_cleanest_are_right(client: TestClient) -> None:
    wanted = {"scope": "all", "split": "train"}
    preview = client.get("/api/review/cleanest", params={**wanted, "count": 3}).json()
    body = {"version": queue(client)["version"], "filter": wanted, "count": 3}
    assert client.post("/api/review/decide-cleanest", json=body).json()["decided"] == preview["count"] == 3
    decided = queue(client, **wanted, state="decided")["photos"]
    assert sorted(each["photo"] for each in decided) == sorted(preview["last"])
    assert all(each["score"] == 0.9 and each["decided"]["kind"] == "keep" for each in decided)


def test_search_and_selection(client: TestClient) -> None:
    photo = queue(client)["photos"][0]["photo"]
    assert client.get("/api/review/classes", params={"q": "zOE"}).json()[0]["label"] == "Zoë's Salt"
    likely = client.get("/api/review/classes", params={"photo": photo}).json()
    assert likely[0]["probability"] == pytest.approx(0.7, abs=0.01)
    token = client.post("/api/review/selections", json={"photos": [photo]}).json()["selection"]
    assert [each["photo"] for each in queue(client, selection=token)["photos"]] == [photo]
    assert client.get("/api/review/queue", params={"selection": "gone"}).status_code == 400
    assert client.post("/api/review/selections", json={"photos": ["../etc"]}).status_code == 400


def test_the_page_takes_the_empty_fields_of_its_form(client: TestClient) -> None:
    answer = client.get("/review", params={"given": "", "above": "", "below": "0.5", "state": "all"})
    assert (answer.status_code, "Which photos" in answer.text, "<i onload" in answer.text) == (200, True, False)
    assert client.get("/review", params={"version": "f" * 32}).status_code == 404
    assert client.get("/review", params={"below": "cheap"}).status_code == 422


def test_the_page_of_a_workspace_without_photos(tmp_path: Path) -> None:
    site = Site(Workspace.init(tmp_path / "new"))
    app = create_app(site, People(site.workspace.state, open_to_all=True))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert "There are no photos yet" in client.get("/review").text


def test_roles(site: Site) -> None:
    people = People(site.workspace.state, open_to_all=False)
    with TestClient(create_app(site, people), base_url="https://shop.example") as client:
        page = None
        for role, allowed in ((LOOK, ""), (DECIDE, "decide")):
            client.headers["authorization"] = f"Bearer {people.invite(role, role)}"
            page = queue(client)
            assert decide(client, page).status_code == (200 if allowed else 403)
            assert client.post("/api/review/save").status_code == 403
    site.decisions.forget(list(site.decisions.pending()))


def test_the_page_of_runs_warns_of_decisions_that_a_retraining_would_not_learn_from(client: TestClient) -> None:
    assert "not saved yet" not in client.get("/runs").text
    decide(client, queue(client, limit=1))
    assert "1 decision of the review is not saved yet" in client.get("/runs").text


def test_saving_makes_a_version_and_twice_is_refused(tmp_path: Path) -> None:
    site = Site(cleaned_workspace(tmp_path, photos=4))
    people = People(site.workspace.state, open_to_all=True)
    with TestClient(create_app(site, people), base_url="http://127.0.0.1") as client:
        before = queue(client)
        decide(client, before, kind="take")
        saved = client.post("/api/review/save").json()
        assert saved["data_version"] == DataVersions(site.workspace).selected() != before["version"]
        assert saved["confirmed"] + saved["relabelled"] == 1
        assert len(queue(client)["photos"]) == len(before["photos"]) - 1
        assert "nothing to save" in client.post("/api/review/save").json()["error"]["message"]
