"""JSON API of the page Recognise, in process and without an endpoint: photos that people name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from flows.data.versions import DataVersions
from flows.pages.access import DECIDE, People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.review.decisions import KEEP, RELABEL
from flows.review.inbox import Inbox
from tests.cleaned import CLASSES, cleaned_workspace
from tests.deliveries import photo

pytestmark = pytest.mark.dvc


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(cleaned_workspace(tmp_path_factory.mktemp("recognise"), photos=6))


@pytest.fixture(autouse=True)
def empty_inbox(site: Site) -> Iterator[None]:
    yield
    inbox = Inbox(site.workspace.state)
    inbox.clear(inbox.waiting())


def name(client: TestClient, data: bytes, label: str) -> Any:
    return client.post("/api/recognise/name", files={"photo": ("shelf.png", data)}, data={"label": label})


def _fail(inbox: Inbox, photos: object) -> None:
    raise OSError("killed")


@pytest.mark.parametrize(("label", "kind"), [(CLASSES[0], KEEP), (CLASSES[1], RELABEL)])
def test_a_photo_of_the_version_becomes_a_decision(client: TestClient, site: Site, label: str, kind: str) -> None:
    known = photo(0, side=48)  # the first photo of the first class
    assert name(client, known, label).json()["kept_as"] == "decision"
    [decided] = site.decisions.pending().values()
    assert (decided.kind, decided.label) == (kind, label)
    assert Inbox(site.workspace.state).count() == 0


def test_the_decision_of_another_person_stays(client: TestClient, site: Site) -> None:
    client.cookies.set("cleanshelf_name", "Ana")
    name(client, photo(0, side=48), CLASSES[0])
    client.cookies.set("cleanshelf_name", "Ben")
    refused = name(client, photo(0, side=48), CLASSES[1])
    assert (refused.status_code, "Ana has decided" in refused.text) == (409, True)


def test_a_decision_that_was_saved_can_be_revised(client: TestClient, site: Site) -> None:
    client.cookies.set("cleanshelf_name", "Ana")
    name(client, photo(0, side=48), CLASSES[0])
    site.decisions.mark_saved("f" * 32, upto=site.decisions.state()[0])
    client.cookies.set("cleanshelf_name", "Ben")
    assert name(client, photo(0, side=48), CLASSES[1]).status_code == 200


def test_a_photo_of_the_version_gets_no_new_product(client: TestClient, site: Site) -> None:
    refused = name(client, photo(0, side=48), "Brand New")
    assert (refused.status_code, "is a new product" in refused.text) == (400, True)
    assert site.decisions.pending() == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello", "it is a text"),
        (b"", "the file is empty"),
        (photo(1)[:-20], "cannot be kept"),
        (b"\x00\x00\x00\x18ftypisom", "it is a film"),
        (b"%PDF-1.7", "it is a PDF"),
        (b"\xff\xfe\x00bad bytes", "not a picture"),
    ],
)
def test_what_is_not_a_photo_is_not_kept(client: TestClient, site: Site, data: bytes, message: str) -> None:
    refused = name(client, data, CLASSES[0])
    assert (refused.status_code, message in refused.text) == (400, True)
    assert Inbox(site.workspace.state).count() == 0


def test_a_named_photo_can_be_seen_and_taken_out(client: TestClient) -> None:
    assert name(client, photo(5000, side=48), CLASSES[0]).json()["waiting"] == 1
    [waiting] = client.get("/api/recognise/waiting").json()["photos"]
    address = f"/api/recognise/waiting/{waiting['sha256']}"
    assert client.get(address).headers["content-type"] == "image/jpeg"
    assert client.delete(address).json() == {"waiting": 0}
    assert client.get(address).status_code == client.delete(address).status_code == 404


def test_an_addition_that_was_interrupted_is_done_again(
    client: TestClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(site.photos("selected"))
    name(client, photo(5001, side=48), "Brand New")
    name(client, photo(5002, side=48), CLASSES[0])
    with monkeypatch.context() as killed:
        killed.setattr(Inbox, "clear", _fail)
        assert client.post("/api/recognise/waiting/save").status_code == 500
    assert client.get("/api/recognise/waiting").json()["waiting"] == 2
    done = client.post("/api/recognise/waiting/save").json()
    assert done["waiting"] == 0
    assert "2 duplicates" in done["report"]
    photos = site.photos("selected")
    assert (len(photos), "Brand New" in photos.classes) == (before + 2, True)
    assert photos.version == DataVersions(site.workspace).resolve("selected") == done["data_version"]
    nothing = client.post("/api/recognise/waiting/save")
    assert (nothing.status_code, "no photo waits" in nothing.text) == (400, True)


def test_who_may_decide_names_photos_and_does_not_add_them(site: Site) -> None:
    people = People(site.workspace.state, open_to_all=False)
    token = {"authorization": f"Bearer {people.invite('Ana', DECIDE)}"}
    with TestClient(create_app(site, people), base_url="https://shop.example", headers=token) as client:
        assert name(client, photo(5003, side=48), CLASSES[0]).json()["kept_as"] == "waiting"
        assert client.post("/api/recognise/waiting/save").status_code == 403
        [waiting] = client.get("/api/recognise/waiting").json()["photos"]
        assert waiting["who"] == "Ana"
        assert 'id="save"' not in client.get("/recognise").text
        client.delete(f"/api/recognise/waiting/{waiting['sha256']}")
