"""The review in a browser: first paint, a key press to the next photo drawn, decisions a minute, memory of the server."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, Page

from browser.told import at_least, at_most, told

LOADS, BATCH = 5, 24
PAUSE_S = 0.25  # between presses: faster than anyone decides
KEY_MS = 50.0
KEYS, TILES = 40.0, 200.0  # decisions a minute
MEMORY_GB = 2.0
# Milliseconds to the first paint; it is told after the page has loaded.
FIRST_PAINT = """() => new Promise((told) => {
  new PerformanceObserver((list) => list.getEntriesByName("first-contentful-paint").forEach((each) => told(each.startTime)))
    .observe({ type: "paint", buffered: true });
})"""
PRESSED = """(number) => new Promise((told, failed) => {
  const look = () => (window.spent_.length > number ? told() : setTimeout(look, 2));
  setTimeout(() => failed(new Error("nothing was drawn after a key press")), 30000);
  look();
})"""
# Notes the milliseconds from each key press to the first frame after its change in which all pictures are there.
WATCH = """([selector, options, pictures]) => {
  window.spent_ = [];
  let began = 0;
  addEventListener("keydown", () => { began = performance.now(); }, true);
  new MutationObserver(() => {
    const since = began;
    const frame = () => {
      const isWhole = [...document.querySelectorAll(pictures)].every((each) => each.complete);
      if (isWhole) window.spent_.push(performance.now() - since);
      else requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }).observe(document.querySelector(selector), options);
}"""
ONE = ["#one", {"attributes": True, "attributeFilter": ["data-photo"]}, "#photo img"]
MANY = ["#many", {"childList": True}, "#many .tile img"]
BARE_PRESSES = """async (times) => {
  const spent = [];
  for (let i = 0; i < times; i += 1) {
    const began = performance.now();
    await (await fetch("/decide", {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ photo: String(i) }),
    })).json();
    document.title = String(i);
    await new Promise(requestAnimationFrame);
    spent.push(performance.now() - began);
  }
  return spent;
}"""


@dataclass(frozen=True)
class Pressed:
    """Presses of one key: milliseconds until the next was drawn, and seconds of all of them."""

    spent_ms: list[float]
    seconds: float

    @property
    def p95_ms(self) -> float:
        """95th percentile."""
        return float(np.percentile(self.spent_ms, 95))


def measure(browser: Browser, address: str, bare: str, *, name: str, paint_s: float, presses: int) -> None:
    """Prints the figures of one version, whose suspects are not decided yet."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    size = len(page.request.get(f"{address}/review").body())
    at_most(
        f"review of {name}, first paint, s",
        first_paint_s(page, f"{address}/review"),
        paint_s,
        first_paint_s(page, f"{bare}/?size={size}"),
    )
    floor = float(np.percentile(page.evaluate(BARE_PRESSES, presses), 95))  # the last page is the bare one
    page.goto(f"{address}/review")
    calm, fast = press(page, ONE, "k", presses, pause_s=PAUSE_S), press(page, ONE, "k", presses)
    at_most(f"review of {name}, key press to the next photo drawn, p95 ms", calm.p95_ms, KEY_MS, floor)
    told(f"review of {name}, the same, median ms", statistics.median(calm.spent_ms))
    told(f"review of {name}, the same, pressed as soon as the last is drawn, p95 ms", fast.p95_ms, floor)
    at_least(f"review of {name}, decisions a minute by keys", 60 * len(fast.spent_ms) / fast.seconds, KEYS)
    page.goto(f"{address}/review?mode=grid")
    page.wait_for_selector(".tile")
    many = press(page, MANY, "k", presses // 6)
    at_least(
        f"review of {name}, decisions a minute by batches of {BATCH}",
        60 * BATCH * len(many.spent_ms) / many.seconds,
        TILES,
    )
    page.close()


def first_paint_s(page: Page, address: str) -> float:
    """Seconds to the first paint, median of some loads after the first one."""
    found = []
    for _ in range(1 + LOADS):
        page.goto(address, wait_until="load")
        found.append(float(page.evaluate(FIRST_PAINT)))
    return statistics.median(found[1:]) / 1000


def press(page: Page, watched: list[Any], key: str, times: int, *, pause_s: float = 0.0) -> Pressed:
    """Presses a key repeatedly, each time when what the last one changed is drawn, and pauses in between."""
    page.wait_for_timeout(1000)  # what is fetched ahead after loading
    page.evaluate(WATCH, watched)
    done = page.evaluate("window.spent_.length")
    began = time.monotonic()
    for number in range(done, done + times):
        page.keyboard.press(key)
        page.evaluate(PRESSED, number)
        time.sleep(pause_s)
    seconds = time.monotonic() - began
    spent = page.evaluate("window.spent_")
    page.reload()
    return Pressed(spent[:times], seconds)


def measure_memory(workspace: Path, *, name: str) -> None:
    """Prints the memory of the server of a workspace."""
    pid = json.loads((workspace / "state" / "web.json").read_bytes())["pid"]
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    bytes_of = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    at_most(f"memory of the server of {name}, resident, GB", bytes_of["Rss"] / 1e9, MEMORY_GB)
    told(f"memory of the server of {name}, its share (PSS), GB", bytes_of["Pss"] / 1e9)
