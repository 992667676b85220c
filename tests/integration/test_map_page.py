"""The page Map in a headless Chromium: drawn, looked up, selected; and made if it is missing."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.chromium import chromium, served_pages
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from flows.data.versions import DataVersions
from flows.map.points import Points, file_of, write_points
from flows.map.sources import find_source
from flows.review.photos import Photos, read_photos
from flows.workspace import Workspace
from tests.cleaned import FOLD, cleaned_workspace

pytestmark = pytest.mark.browser
DRAWN = "#plot[data-drawn]"  # all points are on the screen
SOFTWARE = "--enable-unsafe-swiftshader"  # WebGL without a graphics card


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(SOFTWARE) as browser:
        yield browser


def photos_of(shop: Workspace) -> Photos:
    version = DataVersions(shop).selected()
    assert version
    return read_photos(DataVersions(shop).materialise(version), version=version)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Photos, Points]:
    """A workspace with a map whose points are far from each other: a grid, by id from left to right and upwards."""
    shop = cleaned_workspace(tmp_path_factory.mktemp("map"), photos=20)
    photos = photos_of(shop)
    ids = photos.id[photos.scored_by.is_one_of([FOLD])]
    number, side = np.arange(len(ids)), int(np.ceil(np.sqrt(len(ids))))
    xy = np.stack([number % side, number // side], axis=1) / (side - 1) * 1.8 - 0.9
    points = Points(ids, xy.astype(np.float32))
    source = find_source(shop.runs / "stages", photos)
    write_points(file_of(shop.maps, source, photos), points)
    return shop, photos, points


@pytest.fixture(scope="module")
def address(drawn: tuple[Workspace, Photos, Points]) -> Iterator[str]:
    with served_pages(drawn[0].root) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    errors: list[str] = []
    page = browser.new_page(base_url=address, viewport={"width": 1200, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto("/map")
    page.wait_for_selector(DRAWN)
    yield page
    page.close()
    assert not errors


def place(page: Page, x: float, y: float) -> tuple[float, float]:
    """Pixels of the screen at coordinates of the map, while all of it is shown."""
    left, top, width, height = page.evaluate(
        "() => { const p = document.getElementById('plot'), b = p.getBoundingClientRect();"
        " return [b.left + p.clientLeft, b.top + p.clientTop, p.clientWidth, p.clientHeight] }"
    )
    unit = min(width, height) / 2
    return left + width / 2 + x * unit, top + height / 2 - y * unit


def test_points_are_drawn_where_they_are_and_show_their_photo(
    page: Page, drawn: tuple[Workspace, Photos, Points]
) -> None:
    _, photos, points = drawn
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), np.int64)

    def colour(x: float, y: float) -> np.ndarray:
        left, top = place(page, x, y)
        return np.asarray(picture[round(top), round(left)])

    ground = colour(-0.97, 0.97)
    assert all(np.abs(colour(*xy) - ground).sum() > 30 for xy in points.xy.tolist())
    for number in (0, 31, len(points.id) - 1):
        page.mouse.move(*place(page, *points.xy[number].tolist()))
        expect(page.locator("#photo")).to_have_attribute("data-photo", f"{int(points.id[number]):016x}")
        row = photos.row(f"{int(points.id[number]):016x}")
        assert photos.label[row] in page.inner_text("#photo")
        expect(page.locator("#photo img")).to_have_js_property("complete", True)
        assert page.evaluate("document.querySelector('#photo img').naturalWidth") > 0


def test_an_area_is_selected_and_escape_clears_it(page: Page, drawn: tuple[Workspace, Photos, Points]) -> None:
    points = drawn[2]
    corners = [(-1.0, -1.0), (-1.0, 0.99), (0.0, 0.99), (0.0, -0.99), (-0.99, -0.99)]
    page.mouse.move(*place(page, *corners[0]))
    page.keyboard.down("Shift")
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*place(page, *corner), steps=5)
    page.mouse.up()
    page.keyboard.up("Shift")
    inside = int((points.xy[:, 0] < 0).sum())
    expect(page.locator("#selected")).to_contain_text(f"{inside} photos selected")
    link = page.locator("#selected a").get_attribute("href")
    assert link
    asked = page.request.get(link.replace("/review", "/api/review/queue") + "&limit=100").json()
    assert len(asked["photos"]) == inside
    page.keyboard.press("Escape")
    expect(page.locator("#selected")).to_be_empty()
    page.click("#seen")
    expect(page.locator("#selected")).to_contain_text(f"{len(points.id)} photos selected")


def test_one_photo_is_reviewed(page: Page, drawn: tuple[Workspace, Photos, Points]) -> None:
    points = drawn[2]
    page.mouse.click(*place(page, *points.xy[5].tolist()))
    page.mouse.move(*place(page, *points.xy[6].tolist()), steps=3)
    expect(page.locator("#photo")).to_have_attribute("data-photo", f"{int(points.id[5]):016x}")
    page.get_by_role("button", name="Review this photo").click()
    page.wait_for_url("**/review?*")
    expect(page.locator(f"img[src*='{int(points.id[5]):016x}']").first).to_be_visible()


def test_the_map_works_by_keys_and_in_the_dark(page: Page) -> None:
    page.focus("#plot")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#photo img")).to_be_visible()
    first = page.get_attribute("#photo", "data-photo")
    for _ in range(4):
        page.keyboard.press("+")
    for _ in range(8):
        page.keyboard.press("ArrowUp")
    expect(page.locator("#photo")).not_to_have_attribute("data-photo", str(first))
    page.keyboard.press("Home")
    page.select_option("#colour", label="decision")
    page.get_by_role("button", name="in doubt").press("Enter")
    expect(page.locator("#legend [aria-pressed=true]")).to_have_text(re.compile(r"^in doubt \(\d+\)$"))
    expect(page.locator("#legend [aria-pressed=true]")).to_be_focused()
    page.emulate_media(color_scheme="dark")
    page.select_option("#colour", label="score")
    expect(page.locator("#legend")).to_contain_text("0.9 to 1")
    serious = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
    assert not serious


def test_areas_and_points_that_do_not_exist_are_refused(address: str) -> None:
    line = httpx.post(f"{address}/api/map/selection", json={"corners": [[0, 0], [1, 1]]})
    assert (line.status_code, "corners" in line.text) == (422, True)
    beyond = httpx.post(f"{address}/api/map/selection", content='{"corners": [[0,0],[1,1],[1e999,0]]}',
                        headers={"content-type": "application/json"})  # fmt: skip
    assert beyond.status_code == 422
    point = httpx.get(f"{address}/api/map/points/100000")
    assert (point.status_code, "reload the page" in point.text) == (400, True)
    assert httpx.get(f"{address}/api/map?version=0000000").status_code == 404


def test_a_missing_map_is_made_by_the_page(browser: Browser, tmp_path: Path) -> None:
    shop = cleaned_workspace(tmp_path, photos=2, every=5)  # so few photos that principal components place them
    with served_pages(shop.root) as address:
        page = browser.new_page(base_url=address)
        page.goto("/map")
        expect(page.locator("#message")).to_contain_text("There is no map of this version yet")
        page.click("#make")
        page.wait_for_selector(DRAWN, timeout=120_000)
        ready = httpx.get(f"{address}/api/map").json()
        page.close()
    assert ready["state"] == "ready"
    assert ready["points"] == int(photos_of(shop).scored_by.is_one_of([FOLD]).sum())
