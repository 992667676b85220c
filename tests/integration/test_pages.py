"""`cleanshelf web` in a headless Chromium, on a workspace with label issues."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_the_overview_counts_label_issues_and_shows_the_most_frequent_mistakes(page: Page) -> None:
    page.goto("/")
    counted = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert (int(counted["probably wrong"]) > 6, counted["products"]) == (True, "6")
    widths = page.locator(".worst img").evaluate_all("pictures => pictures.map((each) => each.naturalWidth)")
    assert len(widths) == 6
    assert all(widths)
    page.locator(".worst a").first.click()
    expect(page.locator("h1")).to_contain_text("Review")
    assert "suggested=" in page.url


def test_requests_of_other_sites_are_refused(address: str) -> None:
    rebound = httpx.get(address, headers={"host": "shop.example"})
    assert (rebound.status_code, "on this machine only" in rebound.text) == (400, True)
    forged = httpx.post(f"{address}/leave", headers={"origin": "http://shop.example"})
    assert (forged.status_code, "another site" in forged.text) == (403, True)
