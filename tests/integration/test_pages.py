"""`cleanshelf web` in a headless Chromium, on a workspace with label issues."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from flows.data.versions import DataVersions
from flows.workspace import Workspace
from tests.cleaned import CLASSES
from tests.deliveries import deliver

pytestmark = [pytest.mark.browser, pytest.mark.dvc]
SLOW_MS = 120_000  # a busy machine


def take_in(page: Page, folder: Path) -> str:
    """Takes in a delivery with one broken file; returns what the page says about it."""
    page.goto("/deliveries")
    page.fill("#path", str(folder))
    page.click("#delivery button[type=submit]")
    expect(page.locator("#outcome-title")).to_have_text("What would be taken in", timeout=SLOW_MS)
    expect(page.locator("#outcome-text")).to_contain_text("1 row cannot be used")
    page.click("#outcome-next button")
    page.click("#confirm button[value=yes]")
    expect(page.locator("#outcome-title")).to_have_text("Taken in", timeout=SLOW_MS)
    return page.inner_text("#outcome-text")


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


def test_a_delivery_is_looked_at_and_then_taken_in(page: Page, shop: Path, tmp_path: Path) -> None:
    source = deliver(tmp_path / "march", {CLASSES[0]: 2, "Elan Oil": 3}, first_seed=5000, side=48)
    (source / "Elan Oil" / "notes.png").write_text("not a picture")
    before = DataVersions(Workspace(shop)).selected()
    page.goto("/deliveries")
    page.fill("#path", f"{source}/april")
    page.click("#delivery button[type=submit]")
    expect(page.locator(".notice.error")).to_contain_text("no such file or folder")
    says = take_in(page, source)
    version = DataVersions(Workspace(shop)).selected()
    assert version
    assert version != before
    assert "5 photos are new." in says
    assert f"data version {version[:12]}" in says
    page.reload()
    expect(page.locator("#outcome-text")).to_contain_text("5 photos are new."), "also when someone comes back"


def test_requests_of_other_sites_are_refused(address: str) -> None:
    rebound = httpx.get(address, headers={"host": "shop.example"})
    assert (rebound.status_code, "on this machine only" in rebound.text) == (400, True)
    forged = httpx.post(f"{address}/leave", headers={"origin": "http://shop.example"})
    assert (forged.status_code, "another site" in forged.text) == (403, True)
