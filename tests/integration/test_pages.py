"""`cleanshelf web` in a headless Chromium, on a workspace with label issues."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_the_overview_counts_label_issues(page: Page) -> None:
    page.goto("/")
    assert "photos whose label is probably wrong" in page.inner_text("main")


def test_requests_of_other_sites_are_refused(address: str) -> None:
    rebound = httpx.get(address, headers={"host": "shop.example"})
    assert (rebound.status_code, "on this machine only" in rebound.text) == (400, True)
    forged = httpx.post(f"{address}/leave", headers={"origin": "http://shop.example"})
    assert (forged.status_code, "another site" in forged.text) == (403, True)
