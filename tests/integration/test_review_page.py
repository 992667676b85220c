"""The review in a headless Chromium: one by one by keys, many at once, two people, saving as a version."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from flows.data.versions import DataVersions
from flows.review.decisions import Decision, Decisions
from flows.workspace import Workspace
from models.data.manifest import Manifest, read_manifest
from tests.cleaned import suggestion

pytestmark = pytest.mark.browser


@pytest.fixture
def decisions(shop: Path) -> Iterator[Decisions]:
    """The decisions, without those of earlier tests."""
    decisions = Decisions(shop / "state")
    yield decisions
    decisions.forget(list(decisions.pending()))


def selected(shop: Path) -> Manifest:
    return read_manifest(DataVersions(Workspace(shop)).materialise("selected"))


def shown(page: Page) -> str:
    return page.locator("#one").get_attribute("data-photo") or ""


def press(page: Page, *keys: str) -> list[str]:
    """Presses keys, each of which moves on to another photo; returns the photos that were shown before."""
    photos = []
    for key in keys:
        photos.append(shown(page))
        page.keyboard.press(key)
        expect(page.locator("#one")).not_to_have_attribute("data-photo", photos[-1])
    return photos


def test_reviewed_by_keys_and_saved_as_a_version(page: Page, shop: Path, decisions: Decisions) -> None:
    """The worst photo comes first; arrows look only, keys are dead while typing, and undo goes back."""
    before = selected(shop)
    page.goto("/review")
    expect(page.locator("#numbers")).to_contain_text("0 of 18 decided")
    (first,) = press(page, "ArrowRight")
    (second,) = press(page, "ArrowLeft")
    assert shown(page) == first != second
    photos = press(page, "t", "k", "n", "s")
    assert [each.kind for each in decisions.pending().values()] == ["take", "keep", "none", "skip"]
    rows = before.rows_of(photos)
    assert [float(score) for score in before.score[rows]] == sorted(before.score[before.decision != ""].tolist())[:4]
    expect(page.locator("#unsaved")).to_have_text("3 not saved yet")
    photos.append(shown(page))
    page.keyboard.press("l")
    page.keyboard.type("zoe", delay=20)
    page.keyboard.press("Enter")
    expect(page.locator("#one")).not_to_have_attribute("data-photo", photos[4])
    press(page, "t", "u")
    held = decisions.pending()
    assert list(held) == photos
    assert (held[photos[0]].label, held[photos[4]].label) == (suggestion(before, int(rows[0])), "Zoë's Salt")
    page.get_by_role("button", name="Save as version").click()
    expect(page.locator("#notices")).to_contain_text(re.compile("Saved as version .*1 photo taken out"))
    after = selected(shop)
    assert after.label[before.rows_of(photos[4:])].tolist() == ["Zoë's Salt"]
    assert after.scored_by[rows[0]].startswith("person: review by ")
    expect(page.locator("#numbers")).to_contain_text("0 of 14 decided, 1 skipped")
    assert list(decisions.pending()) == [photos[3]]


def test_an_answer_that_is_given_up_halfway_is_not_taken_for_an_empty_one(page: Page) -> None:
    """Fast typing gives up a search while its answer comes in; that must not replace what was found."""
    page.goto("/review")
    name = page.evaluate(
        """async () => {
            const { call } = await import("/static/page.js");
            const abort = new DOMException("given up", "AbortError");
            window.fetch = async () => ({ ok: true, json: () => Promise.reject(abort) });
            return call("/api/review/classes").then((found) => JSON.stringify(found), (error) => error.name);
        }"""
    )
    assert name == "AbortError"


def test_many_at_once(page: Page, shop: Path, decisions: Decisions) -> None:
    """One tile is left out by click, one by key; the key for the rest decides about the others of the mix-up."""
    page.goto("/review")
    page.locator("#groups summary").click()
    page.locator("#confusions a").first.click()
    tiles = page.locator(".tile")
    expect(tiles.first).to_be_visible()
    number = tiles.count()
    tiles.first.click()
    expect(tiles.first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("t")
    expect(page.locator("#many")).to_contain_text("Nothing more here")
    assert {each.kind for each in decisions.pending().values()} == {"take"}
    assert len(decisions.pending()) == number - 1
    page.get_by_role("button", name="Undo").click()
    expect(tiles).to_have_count(number)
    assert decisions.pending() == {}
    page.get_by_text("More than this page").click()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/review?mode=grid")
    page.get_by_text("More than this page").click()
    page.get_by_role("button", name="None that match is a product").click()
    expect(page.locator("#many")).to_contain_text("Nothing more here")
    assert {each.kind for each in decisions.pending().values()} == {"none"}


def test_two_people_at_once(browser: Browser, address: str, decisions: Decisions) -> None:
    """Ben is told that Ana has decided about the photo that he still sees, and nothing of hers is lost."""
    with browser.new_context(base_url=address) as ana, browser.new_context(base_url=address) as ben:
        pages = {"Ana": ana.new_page(), "Ben": ben.new_page()}
        for name, page in pages.items():
            page.goto("/review")
            page.locator("#own summary").click()
            page.get_by_label("You are").fill(name)
            page.get_by_role("button", name="Change").click()
            expect(page.locator(".who")).to_have_text(name)
            expect(page.locator("#one")).to_be_visible()
        (photo,) = press(pages["Ana"], "k")
        assert shown(pages["Ben"]) == photo
        pages["Ben"].keyboard.press("n")
        expect(pages["Ben"].locator("#notices")).to_contain_text("Ana has decided about photo")
        expect(pages["Ben"].locator("#facts")).to_contain_text("Ana: the label is right")
        press(pages["Ben"], "ArrowRight")
        (other,) = press(pages["Ben"], "n")
        assert {each.photo: (each.who, each.kind) for each in decisions.pending().values()} == {
            photo: ("Ana", "keep"),
            other: ("Ben", "none"),
        }


def test_keys_can_be_changed_and_a_taken_one_is_refused(page: Page, decisions: Decisions) -> None:
    page.goto("/review")
    page.keyboard.press("?")
    page.get_by_role("button", name="Key for: Keep the label").click()
    page.keyboard.press("t")
    expect(page.locator("#keys-said")).to_contain_text("That key is taken: Take the suggestion")
    page.keyboard.press("j")
    page.get_by_role("button", name="Close", exact=True).click()
    page.reload()
    press(page, "j")
    assert [each.kind for each in decisions.pending().values()] == ["keep"]


def test_a_decision_of_a_reviewer_in_another_window_is_shown(page: Page, shop: Path, decisions: Decisions) -> None:
    version = DataVersions(Workspace(shop)).selected() or ""
    page.goto("/review?state=all")
    photo = shown(page)
    decisions.add([Decision(photo, "relabel", "Dune Rice", "Cleo", version)])
    page.goto("/review?state=all")
    expect(page.locator("#facts")).to_contain_text("Cleo: another label: Dune Rice")
    page.goto("/review?state=decided")
    assert shown(page) == photo


def test_decided_by_touch_on_a_phone(browser: Browser, address: str, decisions: Decisions) -> None:
    """Taps decide, leave a tile of the grid out and take it in again, and a finger that scrolls does neither."""
    with browser.new_context(base_url=address, has_touch=True, viewport={"width": 390, "height": 800}) as phone:
        page = phone.new_page()
        page.goto("/review")
        first = shown(page)
        page.get_by_role("button", name="Keep the label").tap()
        expect(page.locator("#one")).not_to_have_attribute("data-photo", first)
        page.get_by_role("button", name="Undo").tap()
        expect(page.locator("#one")).to_have_attribute("data-photo", first)
        assert decisions.pending() == {}

        page.goto("/review?mode=grid")
        left_out = page.locator(".tile[aria-pressed=true]")
        for number in (1, 0):
            page.locator(".tile").first.tap()
            expect(left_out).to_have_count(number)
        before = page.evaluate("scrollY")
        _swipe(page, page.locator(".tile").first, up=300)
        page.wait_for_timeout(300)  # a tap would be taken by now
        assert page.evaluate("scrollY") > before
        assert left_out.count() == 0


def _swipe(page: Page, start: Locator, *, up: int) -> None:
    """Moves a finger from the middle of an element upwards."""
    box, finger = start.bounding_box(), page.context.new_cdp_session(page)
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for kind, points in [
        ("touchStart", [{"x": x, "y": y}]),
        *(("touchMove", [{"x": x, "y": y - up * share / 10}]) for share in range(1, 11)),
        ("touchEnd", []),
    ]:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
