"""The last photos of the page Recognise: at most fifty, without what cameras note in them, and deleted for good."""

from __future__ import annotations

import io
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from flows.endpoint import recent
from flows.endpoint.recent import Recent
from flows.errors import UnknownPhoto
from flows.pages import recognise
from flows.pages.access import DECIDE, People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.recognise import Connection
from flows.workspace import Workspace
from pixels import BadPhoto
from serving import Recognition
from tests.deliveries import photo
from tests.page_client import bearer

ANSWER = Recognition((("Tea", 0.75), ("Salt", 0.25)), 0.875, 3, "d" * 32)
REJECTED = Recognition((), 0.125, 3, "d" * 32)


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def test_the_last_photos_are_kept_with_their_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST", 3)
    kept = Recent(tmp_path)
    for seed in range(4):
        kept.add(photo(seed), ANSWER)
    kept.add(photo(2), REJECTED)

    assert [each.sha256 for each in kept.photos()] == [digest(photo(seed)) for seed in (2, 3, 1)]
    again, last, _ = kept.photos()
    assert (again.label, again.probability, again.known, again.score) == ("", 0.0, False, 0.125)
    assert (last.label, last.probability, last.known, last.model_version) == ("Tea", 0.75, True, 3)
    assert len(list(kept.folder.iterdir())) == 3
    assert {path.stat().st_mode & 0o777 for path in kept.folder.iterdir()} == {0o600}
    assert kept.folder.stat().st_mode & 0o777 == 0o700


def test_the_picture_is_small_and_says_nothing_of_place_and_device(tmp_path: Path) -> None:
    image, file = Image.new("RGB", (900, 600), "red"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0110] = "Ana's phone"  # Model
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    image.save(file, "JPEG", exif=exif, comment=b"at Ana's", xmp=b"<x>Ana</x>")
    assert file.getvalue().count(b"Ana") == 3
    kept = Recent(tmp_path)
    kept.add(file.getvalue(), ANSWER)

    picture = kept.picture(digest(file.getvalue()))
    assert Image.open(io.BytesIO(picture)).size == (256, 171)
    assert b"Ana" not in picture
    assert not Image.open(io.BytesIO(picture)).getexif()


def test_photos_are_deleted_one_by_one_in_a_purge_and_all_at_once(tmp_path: Path) -> None:
    kept = Recent(tmp_path)
    for seed in range(4):
        kept.add(photo(seed), ANSWER)
    killed = kept.folder / f".{digest(photo(1))}.{2**22 + 1}-1.part"  # of a process that cannot exist
    killed.write_bytes(b"{}")
    kept.remove(digest(photo(0)))
    kept.forget([digest(photo(1)), "0" * 64])

    assert {each.sha256 for each in kept.photos()} == {digest(photo(2)), digest(photo(3))}
    assert not killed.exists()
    for unknown in (digest(photo(0)), "../web.people.json", "A" * 64):
        with pytest.raises(UnknownPhoto):
            kept.remove(unknown)
        with pytest.raises(UnknownPhoto):
            kept.picture(unknown)
    kept.clear()
    assert list(kept.folder.iterdir()) == []


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace whose endpoint gives one answer to all photos, and cannot read those that begin with `bad`."""

    def ask(connection: Connection, photos: list[bytes], *, embedding: bool = False) -> list[Recognition | BadPhoto]:
        return [BadPhoto("torn") if each.startswith(b"\xffbad") else ANSWER for each in photos]

    monkeypatch.setattr(Connection, "ask", ask)
    yield Workspace.init(tmp_path / "shop")
    recognise._connection.cache_clear()


def sent(client: TestClient, *photos: bytes) -> None:
    files = [("photos", ("shelf.png", each)) for each in photos]
    assert client.post("/api/recognise", files=files).status_code == 200


@pytest.mark.parametrize("keeps", [True, False])
def test_photos_of_the_page_are_kept_only_if_that_is_switched_on(workspace: Workspace, keeps: bool) -> None:
    app = create_app(Site(workspace, keeps_photos=keeps), People(workspace.state, open_to_all=True))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        sent(client, photo(1), b"\xffbad", b"a text", photo(2))
        found = client.get("/api/endpoint/photos").json()
        wanted = [digest(photo(2)), digest(photo(1))] if keeps else []
        assert (found["kept"], [each["sha256"] for each in found["photos"]]) == (keeps, wanted)
        assert ("keeps the last 50 photos" in client.get("/recognise").text) == keeps
        for each in wanted:
            assert client.get(f"/api/endpoint/photos/{each}").headers["content-type"] == "image/jpeg"
            client.delete(f"/api/endpoint/photos/{each}")
            assert client.get(f"/api/endpoint/photos/{each}").status_code == 404
        sent(client, photo(1), photo(2))
        assert client.delete("/api/endpoint/photos").json()["photos"] == []
        assert list(Recent(workspace.state).folder.glob("*")) == []


def test_an_answer_comes_even_if_its_photo_cannot_be_kept(workspace: Workspace) -> None:
    Recent(workspace.state).folder.write_text("in the way")
    app = create_app(Site(workspace, keeps_photos=True), People(workspace.state, open_to_all=True))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        sent(client, photo(1))


def test_kept_photos_are_shown_to_all_and_deleted_by_who_operates(workspace: Workspace) -> None:
    Recent(workspace.state).add(photo(1), ANSWER)
    people = People(workspace.state, open_to_all=False)
    header = bearer(people.invite("Ana", DECIDE))
    with TestClient(create_app(Site(workspace), people), base_url="https://shop.example") as client:
        address = f"/api/endpoint/photos/{digest(photo(1))}"
        assert client.get(address).status_code == 403
        assert client.get(address, headers=header).status_code == 200
        assert client.delete(address, headers=header).status_code == 403
        assert client.delete("/api/endpoint/photos", headers=header).status_code == 403
        assert 'id="forget"' not in client.get("/endpoint", headers=header).text
