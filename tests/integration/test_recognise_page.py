"""The pages Recognise and Duplicates in a headless Chromium: bad files, an endpoint that is away, and a real Triton."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from flows.data.versions import DataVersions
from flows.ingest import ingest
from flows.review.decisions import RELABEL, Decisions
from flows.review.photos import read_photos
from flows.workspace import Workspace
from serving.repository.repository import ModelRepository
from serving.server.server import LocalServer
from tests.cleaned import CLASSES, cleaned_workspace
from tests.command_line import cleanshelf
from tests.deliveries import photo
from tests.graphs import golden_images, write_graph

pytestmark = [pytest.mark.browser, pytest.mark.triton]
MB = 1024 * 1024


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with two photos that came with two labels each."""
    root = tmp_path_factory.mktemp("recognise")
    workspace = cleaned_workspace(root, photos=6)
    (root / "again" / CLASSES[2]).mkdir(parents=True)
    for seed in (0, 1, 900):
        (root / "again" / CLASSES[2] / f"{seed}.png").write_bytes(photo(seed, side=48))
    (root / "again" / CLASSES[0]).mkdir()
    (root / "again" / CLASSES[0] / "901.png").write_bytes(photo(901, side=48))
    ingest(workspace, root / "again")
    return workspace


@pytest.fixture(scope="module")
def shop(workspace: Workspace) -> Path:
    return workspace.root


@pytest.fixture(scope="module")
def server(
    workspace: Workspace, tmp_path_factory: pytest.TempPathFactory, local_server: Callable[..., LocalServer]
) -> Iterator[LocalServer]:
    """A running Triton of the workspace, whose model version 1 answers."""
    repository = ModelRepository(workspace.repository)
    labels = [*CLASSES, "sold out", "never sold"]
    path = write_graph(
        tmp_path_factory.mktemp("graphs") / "1.onnx", metadata={"data_version": "data1", "labels": json.dumps(labels)}
    )
    repository.write(path, version=1, labels=labels, lineage={}, golden=golden_images())
    repository.configure([1])
    server = local_server(workspace.repository, workspace.state)
    server.start()
    yield server
    server.stop()


def files(folder: Path, sent: dict[str, bytes]) -> list[Path]:
    for name, data in sent.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in sent]


def answers_to(page: Page, *sent: Path) -> list[str]:
    """The cards of the answers after these files were chosen."""
    page.goto("/recognise")
    page.set_input_files("#files", sent)
    expect(page.locator("#progress")).to_contain_text("answered")
    expect(page.locator("#answers .soft", has_text="Asking")).to_have_count(0)
    return page.locator("#answers > li").all_inner_texts()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A photo that no data version has."""
    [path] = files(tmp_path, {"shelf.png": photo(7002, side=48)})
    return path


def test_files_that_are_no_photos_are_refused_in_words(page: Page, workspace: Workspace, tmp_path: Path) -> None:
    before = sorted(workspace.state.rglob("*"))
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>window.ran = true</script></svg>'
    sent = {
        "list.jpg": b"milk, bread, soap",
        "logo.svg": svg,
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(64),
        "huge.jpg": bytes(20 * MB + 1),
        "empty.jpg": b"",
    }
    said = answers_to(page, *files(tmp_path, sent))

    reasons = ("is a text, not a photo", "is a drawing (SVG)", "Most Compatible", "more than 20 MB", "file is empty")
    assert [reason in text for reason, text in zip(reasons, said, strict=True)] == [True] * 5
    assert page.evaluate("window.ran") is None
    assert sorted(workspace.state.rglob("*")) == before


def test_a_page_without_endpoint_says_what_to_do(page: Page, shelf: Path) -> None:
    [said] = answers_to(page, shelf)
    assert "no endpoint is running" in said
    assert "cleanshelf serve" in said


def test_too_much_at_once_is_refused(page: Page, address: str, tmp_path: Path) -> None:
    page.goto("/recognise")
    page.set_input_files("#files", files(tmp_path, {f"{number}.jpg": b"x" for number in range(101)}))
    expect(page.locator(".notice.error")).to_contain_text("101 photos at once; send at most 100")
    many: Any = [("photos", (f"{number}.jpg", b"x")) for number in range(101)]
    refused = httpx.post(f"{address}/api/recognise", files=many)
    assert (refused.status_code, "at most 100" in refused.text) == (400, True)
    large = HTTPConnection(address.removeprefix("http://"))
    large.putrequest("POST", "/api/recognise")
    large.putheader("content-length", str(200 * MB))
    large.endheaders()
    answer = large.getresponse()
    assert (answer.status, b"more than 64 MB" in answer.read()) == (413, True)
    large.close()


@pytest.mark.parametrize("label", ["x" * 2000, " ", "a\x00b"])
def test_names_that_are_no_products_are_refused(address: str, label: str) -> None:
    sent = {"photo": ("shelf.png", photo(7001, side=48))}
    refused = httpx.post(f"{address}/api/recognise/name", files=sent, data={"label": label})
    assert refused.status_code == 400
    assert "cannot be used" in refused.json()["error"]["message"]


def test_a_conflict_is_settled_by_choosing_a_label(page: Page, workspace: Workspace) -> None:
    page.goto("/duplicates?kind=conflict-open")
    first = page.locator("li.card").first
    photo = first.locator("figcaption code").inner_text()
    first.get_by_role("button", name=CLASSES[2]).click()
    expect(first.locator(".state")).to_contain_text(f"chose {CLASSES[2]}")
    [decided] = [each for each in Decisions(workspace.state).pending().values() if each.photo == photo]
    assert (decided.kind, decided.label) == (RELABEL, CLASSES[2])
    page.goto(f"/duplicates?kind=conflict&product={CLASSES[4]}")
    expect(page.locator("main")).to_contain_text("0 found")


def test_review_alone_names_the_pages_that_run(address: str, shop: Path) -> None:
    done = cleanshelf("review", "--no-open", "-w", shop)
    assert (done.stdout.strip(), done.returncode) == (f"review at {address}/review", 0)


def test_a_photo_is_recognised_named_and_added_to_the_data(
    page: Page, workspace: Workspace, server: LocalServer, shelf: Path
) -> None:
    [said] = answers_to(page, shelf)
    assert "model version 1" in said
    assert page.locator("#answers meter").count() == 5
    page.get_by_text("Wrong? Say what it is").click()
    page.fill("#answers input[name=label]", "<b>New & odd</b>")
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("#named")).to_contain_text("<b>New & odd</b>")
    page.click("#save")
    expect(page.locator(".notice")).to_contain_text("1 new photos")
    expect(page.locator("#count")).to_have_text("0")
    version = DataVersions(workspace).resolve("selected")
    assert "<b>New & odd</b>" in read_photos(DataVersions(workspace).materialise(version), version=version).classes


def test_the_most_similar_photos_of_the_ranked_products_are_shown(
    page: Page, workspace: Workspace, server: LocalServer, tmp_path: Path
) -> None:
    """A photo that the data have is the most similar one to itself, if its product is among the ranked ones."""
    version = DataVersions(workspace).resolve("selected")
    photos = read_photos(DataVersions(workspace).materialise(version), version=version)
    answers_to(page, *files(tmp_path, {"shelf.png": photo(7003, side=48)}))
    ranked = [text for text in page.locator(".ranking .label").all_inner_texts() if text in CLASSES]
    row = int(photos.of_class(photos.label.code(ranked[0]))[0])

    answers_to(page, *files(tmp_path, {"known.png": photos.read(row)}))
    page.get_by_text("The most similar photos").click()
    expect(page.locator(".similar figure")).to_have_count(8)
    nearest = page.locator(".similar figure").first
    assert photos.name(row) in str(nearest.locator("img").get_attribute("src"))
    assert nearest.inner_text().split() == [*photos.label[row].split(), "1.00"]
    rows = sum(len(photos.of_class(photos.label.code(label))) for label in ranked)
    expect(page.locator("#answers")).to_contain_text(f"Compared with {rows} photos")
    expect(page.locator("#answers")).to_contain_text("by model version 1")


@pytest.mark.slow  # the server starts again: 13 s
def test_the_page_asks_a_restarted_server(
    page: Page, workspace: Workspace, server: LocalServer, local_server: Callable[..., LocalServer], shelf: Path
) -> None:
    server.stop()
    [away] = answers_to(page, shelf)
    assert "no endpoint is running" in away
    again = local_server(workspace.repository, workspace.state)
    again.start()
    try:
        [said] = answers_to(page, shelf)
        assert "model version 1" in said
    finally:
        again.stop()
