"""The report of a run with many classes in a browser: its size and its first paint."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser

from browser.drawn_report import jpeg, large_report
from browser.review_page import first_paint_s
from browser.told import at_most
from flows.report.html.page import PAGE, page
from flows.report.html.pictures import picture, shown_photos

MEGABYTES, PAINT_S = 5.0, 1.0


def measure(browser: Browser, folder: Path, classes: int) -> None:
    """Prints the figures of a report whose labels are as long as they may be, and its pictures as large as they can be."""
    told, largest = large_report(classes), picture(jpeg())
    file, empty = folder / PAGE, folder / "empty.html"
    file.write_text(page(told, dict.fromkeys(shown_photos(told), largest)), encoding="utf-8")
    empty.write_text("<!doctype html><title>empty</title><p>empty", encoding="utf-8")
    name, tab = f"report of {classes:,} classes", browser.new_page()
    at_most(f"{name}, MB", file.stat().st_size / 1e6, MEGABYTES)
    paint_s, floor_s = first_paint_s(tab, file.as_uri()), first_paint_s(tab, empty.as_uri())
    at_most(f"{name}, first paint, s", paint_s, PAINT_S, floor_s)
