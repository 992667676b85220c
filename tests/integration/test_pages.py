"""`cleanshelf web` in a headless Chromium, on a workspace with label issues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.browser import chromium, served_pages
from tests.cleaned import cleaned_workspace

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cleaned_workspace(tmp_path_factory.mktemp("pages")).root


@pytest.fixture(scope="module")
def address(shop: Path) -> Iterator[str]:
    with served_pages(shop) as address:
        yield address


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page whose script errors fail the test."""
    errors: list[str] = []
    page = browser.new_page(base_url=address)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def test_the_overview_counts_label_issues(page: Page) -> None:
    page.goto("/")
    assert "photos whose label is probably wrong" in page.inner_text("main")


def test_requests_of_other_sites_are_refused(address: str) -> None:
    rebound = httpx.get(address, headers={"host": "shop.example"})
    assert (rebound.status_code, "on this machine only" in rebound.text) == (400, True)
    forged = httpx.post(f"{address}/leave", headers={"origin": "http://shop.example"})
    assert (forged.status_code, "another site" in forged.text) == (403, True)
