"""JSON API of near-duplicates and conflicts, in process: filters, what was decided, and settling a conflict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flows.data.versions import DataVersions
from flows.feedback import save_decisions
from flows.pages.access import LOOK, People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.review.decisions import KEEP, RELABEL
from flows.workspace import Workspace
from tests.doubles import CLAIMED, MILK, SOAP, version_with_doubles

pytestmark = pytest.mark.dvc


def site_with_doubles(root: Path) -> Site:
    workspace = Workspace.init(root / "shop")
    versions = DataVersions(workspace)
    folder = versions.new_folder()
    version_with_doubles(root / "source", folder)
    versions.commit(folder, step="ingest", message="doubles")
    return Site(workspace)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return site_with_doubles(tmp_path_factory.mktemp("duplicates"))


def listed(client: TestClient, **wanted: Any) -> dict[str, Any]:
    answer = client.get("/api/duplicates", params=wanted)
    assert answer.status_code == 200, answer.text
    assert client.get("/duplicates", params=wanted).status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def conflict_of(client: TestClient, *labels: str) -> dict[str, Any]:
    items = listed(client, kind="conflict")["items"]
    return next(item for item in items if {choice["label"] for choice in item["choices"]} == set(labels))


def settle(client: TestClient, photo: str, label: str, **body: Any) -> Any:
    return client.post("/api/duplicates/settle", json={"photo": photo, "label": label, "seen": 0} | body)


@pytest.mark.parametrize(
    ("kind", "total"),
    [("near", 2), ("near-test", 2), ("near-train", 0), ("near-kept", 0), ("conflict", 2), ("conflict-open", 2),
     ("conflict-settled", 0)],
)  # fmt: skip
def test_kinds_are_told_apart(client: TestClient, kind: str, total: int) -> None:
    found = listed(client, kind=kind)
    assert (found["total"], len(found["items"]), found["pages"]) == (total, total, min(total, 1))


def test_a_pair_says_which_photo_stays(client: TestClient) -> None:
    first, second = listed(client, kind="near")["items"]
    assert (first["photo"]["kept"], first["partner"]["split"]) == (False, "test")
    assert (first["distance"], first["difference"]) == (3.5, 0.25)
    assert "left out of training" in first["outcome"]
    assert second["partner"] is None


def test_a_product_chooses_pairs_and_claims(client: TestClient) -> None:
    assert listed(client, kind="conflict", product=CLAIMED)["total"] == 1
    assert listed(client, kind="conflict", product=MILK)["total"] == 2
    near = {label: listed(client, kind="near", product=label)["total"] for label in (MILK, SOAP)}
    assert sum(near.values()) >= 2
    refused = client.get("/api/duplicates", params={"product": "x" * 500})
    assert (refused.status_code, "no photo has the product" in refused.text) == (400, True)


def test_pages_behind_the_last_are_empty(client: TestClient) -> None:
    assert listed(client, kind="near", page=10**9)["items"] == []
    assert listed(client, kind="conflict", page=3)["items"] == []


def test_one_of_the_labels_settles_a_conflict(client: TestClient, site: Site) -> None:
    item = conflict_of(client, MILK, SOAP)
    photo, given = item["photo"]["id"], item["photo"]["given_label"]
    seen = 0
    for label in (given, SOAP if given == MILK else MILK):
        done = settle(client, photo, label, seen=seen)
        assert done.status_code == 200
        seen = done.json()["seen"]
        decided = site.decisions.pending()[photo]
        assert (decided.kind, decided.label) == (KEEP if label == given else RELABEL, label)
    again = conflict_of(client, MILK, SOAP)
    assert (again["decided"]["label"], again["open"]) == (label, True)


@pytest.mark.parametrize(
    ("label", "message"),
    [("Dune Rice", "did not come with the label 'Dune Rice'"), (CLAIMED, "no training photo shows")],
)
def test_other_labels_settle_nothing(client: TestClient, site: Site, label: str, message: str) -> None:
    item = conflict_of(client, MILK, CLAIMED)
    assert {choice["label"]: choice["known"] for choice in item["choices"]} == {MILK: True, CLAIMED: False}
    refused = settle(client, item["photo"]["id"], label)
    assert (refused.status_code, message in refused.text) == (400, True)
    assert site.decisions.pending() == {}


def test_another_persons_decision_is_not_overwritten(client: TestClient) -> None:
    photo = conflict_of(client, MILK, SOAP)["photo"]["id"]
    client.cookies.set("cleanshelf_name", "Ana")
    assert settle(client, photo, MILK).json()["who"] == "Ana"
    client.cookies.set("cleanshelf_name", "Ben")
    refused = settle(client, photo, SOAP)
    assert (refused.status_code, "Ana has decided" in refused.text) == (409, True)


def test_who_may_look_only_settles_nothing(site: Site) -> None:
    people = People(site.workspace.state, open_to_all=False)
    token = {"authorization": f"Bearer {people.invite('Eve', LOOK)}"}
    with TestClient(create_app(site, people), base_url="https://shop.example", headers=token) as client:
        photo = conflict_of(client, MILK, SOAP)["photo"]["id"]
        assert 'class="choose"' not in client.get("/duplicates?kind=conflict").text
        assert settle(client, photo, MILK).status_code == 403


def test_a_saved_choice_is_shown_as_settled(tmp_path: Path) -> None:
    site = site_with_doubles(tmp_path)
    people = People(site.workspace.state, open_to_all=True)
    with TestClient(create_app(site, people), base_url="http://127.0.0.1") as client:
        settle(client, conflict_of(client, MILK, SOAP)["photo"]["id"], SOAP)
        done, left_out = save_decisions(site.workspace, site.decisions)
        [item] = listed(client, kind="conflict-settled")["items"]
        assert (item["photo"]["label"], item["photo"]["kept"], item["open"]) == (SOAP, True, False)
        assert item["decided"]["saved"] == done.data_version
        assert left_out == []
