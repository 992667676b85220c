"""Pages on a full disk: a message with the way out, nothing that was confirmed is lost, and all goes on once there is space."""

from __future__ import annotations

import gc
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from flows.endpoint.recent import Recent
from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.review.decisions import KEEP, Decision, Decisions
from flows.review.inbox import Inbox
from flows.workspace import Workspace
from serving import Recognition
from tests.cleaned import CLASSES, cleaned_workspace
from tests.command_line import cleanshelf
from tests.deliveries import photo
from tests.disks import fill, small_disk

pytestmark = [pytest.mark.dvc, pytest.mark.faults]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace on a disk of 8 MB."""
    cleaned_workspace(tmp_path, photos=6)
    with small_disk(tmp_path / "disk", 8) as disk:
        yield Workspace.find(Path(shutil.copytree(tmp_path / "shop", disk / "shop", symlinks=True)))


def named(client: TestClient, seed: int) -> Response:
    """The answer to a person who says what a photo shows; the first ones are in the data, so theirs are decisions."""
    sent = {"photo": ("shelf.png", photo(seed, side=48))}
    return client.post("/api/recognise/name", files=sent, data={"label": CLASSES[0]})


def test_nothing_is_lost_and_people_are_told(shop: Workspace) -> None:
    app = create_app(Site(shop), People(shop.state, open_to_all=True))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert [named(client, seed).status_code for seed in (0, 1, 700)] == [200] * 3
        filler = fill(shop.root.parent)
        for seed in (2, 3, 701):
            refused = named(client, seed)
            assert (refused.status_code, refused.json()["error"]["kind"]) == (507, "DiskFull")
            assert "the disk of the server is full, so this was not kept" in refused.text
        pages = ("/", "/review", "/recognise", "/duplicates", "/versions", "/runs", "/endpoint", "/api/review/queue")
        assert {page: client.get(page).status_code for page in pages} == dict.fromkeys(pages, 200)
        assert (len(Decisions(shop.state).pending()), Inbox(shop.state).count()) == (2, 1)
        filler.unlink()
        assert [named(client, seed).status_code for seed in (2, 3, 701)] == [200] * 3
        assert (len(Decisions(shop.state).pending()), Inbox(shop.state).count()) == (4, 2)


def test_pages_do_not_start_without_space_for_decisions(shop: Workspace) -> None:
    Decisions(shop.state)
    gc.collect()  # closes its connection, without which the next one needs space
    fill(shop.root.parent)
    done = cleanshelf("web", "--port", 0, "-w", shop.root)
    assert (done.returncode, "no space left while starting the pages" in done.stderr) == (2, True), done.stderr


def test_decisions_go_on_after_a_full_disk(shop: Workspace) -> None:
    """All in one thread, whose transaction must not stay open."""
    decisions, kept, refused = Decisions(shop.state), 0, 0
    filler = fill(shop.root.parent, leaving=60_000)
    while refused < 3:
        if is_kept(decisions, f"{kept:016x}"):
            kept += 1
        else:
            refused += 1
    filler.unlink()
    assert is_kept(decisions, f"{kept:016x}")
    assert len(decisions.pending()) == kept + 1


def is_kept(decisions: Decisions, photo: str) -> bool:
    """False if the disk is too full for a decision."""
    try:
        decisions.add([Decision(photo, KEEP, CLASSES[0], "Ana", "f" * 32)])
    except sqlite3.OperationalError as error:
        return "disk is full" not in str(error)
    return True


def test_a_photo_that_is_not_kept_leaves_nothing(shop: Workspace) -> None:
    recent, answer = Recent(shop.state), Recognition((), 0.5, 1, "d")
    recent.add(photo(1), answer)
    filler = fill(shop.root.parent)
    with pytest.raises(OSError, match="No space left"):
        recent.add(photo(2, side=400), answer)
    assert [path.name for path in recent.folder.iterdir()] == [recent.photos()[0].sha256]
    filler.unlink()
