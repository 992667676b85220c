"""The pages of versions, runs and the endpoint in a headless Chromium, on a workspace with two models."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from browser.chromium import chromium, served_pages
from playwright.sync_api import Browser, Page, expect
from starlette.testclient import TestClient

from flows.data.versions import DataVersions
from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.registry.versions import ModelVersions
from flows.run.record import note
from flows.run.run import Run
from flows.workspace import Workspace
from models.recipe.config import load_recipe
from serving.server.environment import Environment
from serving.server.process import birth
from serving.server.server import LocalServer
from tests.cleaned import cleaned_workspace
from tests.registered import registered_model

pytestmark = [pytest.mark.browser, pytest.mark.dvc]

RUN = "20300101-120000-abc123"
SLOW_MS = 60_000  # a busy machine


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Selected are the cleaned data; model version 2 is current, and 1 was before."""
    root = tmp_path_factory.mktemp("versions")
    workspace = cleaned_workspace(root)
    for seed in (1, 2):
        registered_model(workspace, root, seed=seed)
    return workspace


@pytest.fixture(scope="module")
def address(shop: Workspace) -> Iterator[str]:
    with served_pages(shop.root) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page whose script errors fail the test."""
    errors: list[str] = []
    page = browser.new_page(base_url=address)
    page.set_default_timeout(SLOW_MS)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


@pytest.fixture
def api(shop: Workspace) -> Iterator[TestClient]:
    """The API without a server, as the user of this machine."""
    people = People(shop.state, open_to_all=True)
    with TestClient(create_app(Site(shop), people), base_url="http://127.0.0.1") as client:
        yield client


def versions_of(shop: Workspace) -> tuple[str, str]:
    """The delivered and the cleaned version."""
    history = [entry.id for entry in DataVersions(shop).log()]
    return history[-1], history[-2]


def test_the_timeline_says_what_holds_and_data_are_rolled_back_from_it(page: Page, shop: Workspace) -> None:
    delivered, cleaned = versions_of(shop)
    page.goto("/versions")
    assert page.locator(f"#data-{cleaned[:12]} h3").inner_text() == f"Labels were cleaned {cleaned[:12]} selected"
    page.click(f"[data-roll-back='data/{delivered}']")
    plan = page.locator("#rollback-plan")
    expect(plan).to_contain_text(f"Data version {delivered[:12]} becomes the selected one", timeout=SLOW_MS)
    expect(plan).to_contain_text("6 photos take part in training again, 6 photos get another label")
    expect(plan).to_contain_text("The data of model versions 1 and 2 will count as withdrawn")
    page.click("#rollback-yes")
    expect(page.locator(".notice")).to_contain_text(f"{delivered[:12]} is selected", timeout=SLOW_MS)
    assert DataVersions(shop).selected() == delivered
    assert page.locator(f"#data-{cleaned[:12]} .tag").inner_text() == "withdrawn"
    assert "stays the current model, although its data were withdrawn" in page.inner_text("main")
    page.click(f"[data-roll-back='data/{cleaned}']")
    expect(plan).to_contain_text("will count as valid again", timeout=SLOW_MS)
    page.click("#rollback-yes")
    expect(page.locator(".notice")).to_contain_text(f"{cleaned[:12]} is selected", timeout=SLOW_MS)
    assert DataVersions(shop).selected() == cleaned


def test_what_cannot_be_rolled_back_is_said_first_and_nothing_changes(page: Page, shop: Workspace) -> None:
    delivered, cleaned = versions_of(shop)
    (shop.data / "notes.txt").write_text("mine")
    page.goto("/versions")
    page.click(f"[data-roll-back='data/{delivered}']")
    expect(page.locator("#rollback-problem")).to_contain_text("move these files away", timeout=SLOW_MS)
    assert page.is_disabled("#rollback-yes")
    (shop.data / "notes.txt").unlink()
    assert DataVersions(shop).selected() == cleaned


def test_a_model_is_rolled_back_from_its_page(page: Page, shop: Workspace) -> None:
    models = ModelVersions(DataVersions(shop).ledger)
    page.goto("/versions/models/1")
    assert "Photos named right\n60.0%" in page.inner_text("main")
    page.click("[data-roll-back='models/1']")
    plan = page.locator("#rollback-plan")
    expect(plan).to_contain_text("Model version 1 becomes the current model in place of 2", timeout=SLOW_MS)
    expect(plan).to_contain_text("No endpoint is running")
    page.click("#rollback-yes")
    expect(page.locator(".notice")).to_contain_text("Model version 1 is the current model", timeout=SLOW_MS)
    assert models.current() == 1


def test_changed_photos_are_shown(page: Page, shop: Workspace) -> None:
    delivered, cleaned = versions_of(shop)
    page.goto(f"/versions/changes?old={delivered}&new={cleaned}")
    assert "6 dropped" in page.inner_text("main")
    page.click("[data-change='0']")
    pictures = page.locator("#pictures img")
    expect(pictures).to_have_count(3, timeout=SLOW_MS)
    for number in range(3):
        expect(pictures.nth(number)).to_have_js_property("naturalWidth", 48, timeout=SLOW_MS)


def test_a_run_under_way_is_followed_and_its_report_runs_no_script(page: Page, shop: Workspace) -> None:
    run = Run(shop, load_recipe("smoke"), id=RUN)
    run.open({"data_version": versions_of(shop)[0]})
    note(run.folder, "begun", verb="retrain", pid=os.getpid(), born=birth(os.getpid()), machine=platform.node())
    note(run.folder, "started", step="train member 0")
    page.goto("/runs")
    current = page.locator("#current")
    expect(current).to_contain_text("is running", timeout=SLOW_MS)
    note(run.folder, "progress", step="train member 0", title="train-0", text="training: 40%  9 s left", share=0.4)
    expect(current).to_contain_text("9 s left", timeout=SLOW_MS)
    assert page.locator("#current progress").get_attribute("value") == "0.4"
    note(run.folder, "ended", outcome="failed", text="the disk is full")
    expect(page.locator("#runs")).to_contain_text("the disk is full", timeout=SLOW_MS)
    (run.folder / "report.html").write_text("<h1>Report</h1><script>document.title = 'run'</script>")
    page.goto(f"/runs/{RUN}/report")
    assert (page.inner_text("h1"), page.title()) == ("Report", "")


def test_a_retraining_that_is_refused_at_once_says_why(page: Page) -> None:
    page.goto("/runs")
    page.select_option("#recipe", "smoke")
    page.click("summary")
    page.fill("#overrides", "train.epochs=many")
    page.click("#start button[type=submit]")
    expect(page.locator(".notice.error")).to_contain_text("train.epochs", timeout=SLOW_MS)
    page.fill("#overrides", "")
    page.click("#start button[type=submit]")
    refusal = "has ended: export.input_size: 64, but model version"
    expect(page.locator("#started")).to_contain_text(refusal, timeout=2 * SLOW_MS)


@pytest.mark.parametrize(
    "path",
    [
        "/runs/20300101-120000-ffffff",
        "/runs/..%2Fstate/report",
        "/api/runs/stages",
        "/versions/changes?old=ffff&new=selected",
        "/api/versions/changes/photos?old=selected&new=selected&change=99999999999999999999",
        "/versions/models/99",
        "/api/versions/models/0/rollback",
        "/api/versions/data/ffff/rollback",
    ],
)
def test_what_does_not_exist_is_not_found(api: TestClient, path: str) -> None:
    assert api.get(path).status_code == 404


def test_a_rollback_is_refused_if_another_version_is_selected_by_now(api: TestClient, shop: Workspace) -> None:
    delivered, cleaned = versions_of(shop)
    answer = api.post(f"/api/versions/data/{delivered}/rollback", json={"in_place_of": delivered})
    assert (answer.status_code, "look again" in answer.json()["error"]["message"]) == (409, True)
    assert DataVersions(shop).selected() == cleaned


def test_a_run_is_not_started_while_another_command_holds_the_workspace(api: TestClient, shop: Workspace) -> None:
    with shop.lock("retrain"):
        answer = api.post("/api/runs", json={"recipe": "smoke"})
    assert (answer.status_code, "is busy" in answer.json()["error"]["message"]) == (409, True)
    answer = api.post("/api/runs", json={"recipe": "../../recipe.toml"})
    assert (answer.status_code, "choose one of" in answer.json()["error"]["message"]) == (400, True)


def test_who_may_only_look_changes_nothing(shop: Workspace) -> None:
    people = People(shop.state, open_to_all=False)
    token = people.invite("Ana", "look")
    with TestClient(create_app(Site(shop), people), headers={"authorization": f"Bearer {token}"}) as client:
        assert "Start a retraining" not in client.get("/runs").text
        assert "data-roll-back" not in client.get("/versions").text
        for path in ("runs", "runs/stop", "endpoint/start", "endpoint/stop", "versions/models/1/rollback"):
            assert client.post(f"/api/{path}", json={}).status_code == 403


@pytest.mark.triton
def test_the_endpoint_is_started_watched_and_stopped_from_its_page(
    page: Page, address: str, triton_environment: Environment, local_server: Callable[..., LocalServer], tmp_path: Path
) -> None:
    free = local_server(tmp_path, tmp_path / "state")
    page.goto("/endpoint")
    assert "No endpoint is running" in page.inner_text("main")
    page.click("summary")
    for name in ("http_port", "grpc_port", "metrics_port"):
        page.fill(f"#{name}", str(getattr(free, name)))
    page.click("#start")
    try:
        expect(page.locator("#models")).to_contain_text("products, version ", timeout=3 * SLOW_MS)
        page.click("#check")
        expect(page.locator("#health")).to_contain_text("repeats the recorded answers", timeout=SLOW_MS)
        expect(page.locator("#about")).to_contain_text("It is restarted if it dies")
        [model, *_] = httpx.get(f"{address}/api/endpoint").json()["state"]["models"]
        assert model["answered"] >= 1
        assert model["compute_us"] > 0
        within = model["quantiles_ms"]
        assert 0 < within["0.5"] <= within["0.99"]
        half, most = page.locator("#models tr", has_text="products, version ").locator("td").all_inner_texts()[-2:]
        assert (half[-3:], most[-3:]) == (" ms", " ms")
        expect(page.locator("#means-only")).to_be_hidden()
        view = httpx.get(f"{address}/api/endpoint").json()
        for each in view["state"]["models"]:
            each["quantiles_ms"] = {}  # as of a server that an earlier release started
        page.route("**/api/endpoint", lambda route: route.fulfill(json=view))
        expect(page.locator("#means-only")).to_be_visible()
        expect(page.locator("#models")).to_contain_text("not measured")
        page.unroute("**/api/endpoint")
        page.click("#stop")
        page.click("#confirm button[value=yes]")
        expect(page.locator("#about")).to_contain_text("No endpoint is running", timeout=SLOW_MS)
    finally:
        httpx.post(f"{address}/api/endpoint/stop", timeout=60)
