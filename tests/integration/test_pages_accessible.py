"""Every page with a keyboard, a screen reader's checks (axe), two widths, light and dark, and 200 % zoom."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser.chromium import chromium, served_pages
from playwright.sync_api import Browser, Page

from flows.endpoint.recent import Recent
from flows.pages.site import PAGES
from flows.workspace import Workspace
from serving import Recognition
from tests.cleaned import cleaned_workspace
from tests.deliveries import photo

pytestmark = pytest.mark.browser
SERIOUS = ("serious", "critical")
TABS = 60  # at most, on one page
ADDRESSES = ("/", "/enter", "/api", "/nowhere", *(address for address, _ in PAGES))
# Elements that Tab has to reach: visible, enabled, and the chosen one of several radio buttons.
REACHABLE = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
    .filter((each) => each.checkVisibility({visibilityProperty: true}) && !each.disabled && each.tabIndex >= 0
        && !each.closest('[inert]') && !(each.type === 'radio' && !each.checked))"""
FOCUSED = """() => {
    const at = document.activeElement, style = getComputedStyle(at);
    const outline = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1;
    return [outline || style.boxShadow !== 'none', at.outerHTML.slice(0, 120)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = cleaned_workspace(tmp_path_factory.mktemp("accessible"))
    Recent(workspace.state).add(photo(1), Recognition((("Brio Soap", 0.75),), 0.25, 1, "d" * 32))
    return workspace


@pytest.fixture(scope="module")
def page(browser: Browser, shop: Workspace) -> Iterator[Page]:
    with served_pages(shop.root) as address:
        page = browser.new_page(base_url=address)
        yield page
        page.close()


@pytest.fixture(params=ADDRESSES)
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_page_is_there(page: Page, address: str) -> None:
    answer = page.goto(address)
    assert answer
    assert answer.status == (404 if address == "/nowhere" else 200)


def test_axe_finds_nothing_serious(page: Page, address: str) -> None:
    found = []
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(address)
        for scheme, rules in (("light", None), ("dark", ["color-contrast"])):  # nothing else differs in the dark
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # playwright takes literals
            options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
            results = Axe().run(page, options=options).response["violations"]
            found += [
                f"{width} px, {scheme}: {each['id']}: {node['html'][:200]}: {node['failureSummary'][:300]}"
                for each in results
                if each["impact"] in SERIOUS
                for node in each["nodes"]
            ]

    assert not found, "\n".join(found)


@pytest.mark.parametrize("width", [320, 640], ids=["phone", "200 % zoom"])
def test_a_narrow_page_does_not_scroll_sideways(page: Page, address: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 640})
    page.goto(address)

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: Page, address: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(address)
    wanted = page.evaluate(f"({REACHABLE})().length")
    page.evaluate("document.body.tabIndex = -1; document.body.focus(); window.seen = new Set()")
    unseen = []
    for _ in range(min(wanted, TABS) + 5):
        page.keyboard.press("Tab")
        page.evaluate("window.seen.add(document.activeElement)")
        is_shown, html = page.evaluate(FOCUSED)
        unseen += [] if is_shown or html.startswith("<body") else [html]
    missed = page.evaluate(f"({REACHABLE})().filter((each) => !window.seen.has(each)).map((each) => each.outerHTML)")

    assert unseen == []
    assert len(missed) <= max(0, wanted - TABS), missed


def test_the_first_tab_offers_to_skip_the_bar(page: Page) -> None:
    page.goto("/api")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.getElementById('main').contains(document.activeElement)")
