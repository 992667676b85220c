"""The map in a browser that draws WebGL by the processor (SwiftShader); its photos and positions are made up, 200 clusters.

Measured from the start of the navigation to the first complete drawing, and while the mouse drags the map in circles.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from playwright.sync_api import Page

from browser.chromium import chromium
from browser.told import at_least, at_most
from flows.map.points import Points, file_of, write_points
from flows.map.sources import find_source
from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.review.photos import Photos, Words
from flows.workspace import Workspace

FIRST_S, FRAMES = 3.0, 30.0
SOFTWARE = "--enable-unsafe-swiftshader"  # Chromium's name for WebGL without a graphics card
FOLD = "fold-0-made-up"
RADIUS_PX, TURNS = 200, 3
DRAWN = "performance.getEntriesByName('drawn')"
COUNT = "window.frames_ = 0; (function next() { window.frames_++; requestAnimationFrame(next); })()"


class MadeUp(Site):
    """A site whose only data version is made up."""

    def __init__(self, workspace: Workspace, num: int) -> None:
        super().__init__(workspace)
        self.made_up = made_up_photos(workspace.root, num)

    def photos(self, version: str) -> Photos:
        """The made-up photos."""
        return self.made_up


def measure(points: int, seconds: float) -> None:
    """Prints the figures of a map with this number of points, which is dragged for some seconds."""
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), points) as address,
        chromium(SOFTWARE) as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/map")
        first_s = first_frame_s(page)
        rate = frames_per_s(page, seconds=seconds)
    where = f"map of {points:,} points"
    at_most(f"{where}, first frame, s", first_s, FIRST_S)
    at_least(f"{where}, frames a second while dragging", rate, FRAMES)


def first_frame_s(page: Page) -> float:
    """Seconds from the start of the navigation to the first complete drawing."""
    page.wait_for_selector("#plot[data-drawn]", timeout=120_000)
    return float(page.evaluate(f"{DRAWN}[0].startTime")) / 1000


def frames_per_s(page: Page, *, seconds: float) -> float:
    """Frames of the page per second, while the mouse drags the map in circles."""
    page.wait_for_timeout(500)
    box = page.locator("#plot").bounding_box()
    assert box
    left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(left, top)
    page.mouse.down()
    page.evaluate(COUNT)
    began = time.monotonic()
    before = page.evaluate("window.frames_")
    while (taken := time.monotonic() - began) < seconds:
        angle = 2 * math.pi * TURNS * taken / seconds
        page.mouse.move(left + RADIUS_PX * math.sin(angle), top + RADIUS_PX * (1 - math.cos(angle)))
    rate = (page.evaluate("window.frames_") - before) / (time.monotonic() - began)
    page.mouse.up()
    return float(rate)


@contextmanager
def served(folder: Path, num: int) -> Iterator[str]:
    """Address of the pages of a made-up site."""
    site = MadeUp(Workspace.init(folder / "shop"), num)
    write_map(site)
    config = uvicorn.Config(create_app(site, People(site.workspace.state, open_to_all=True)), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def write_map(site: MadeUp) -> None:
    """Writes the cached result that scored the photos, and the points of their map: 200 clusters."""
    stages, draw, count = site.workspace.runs / "stages", np.random.default_rng(0), len(site.made_up)
    (stages / FOLD).mkdir(parents=True)
    np.save(stages / FOLD / "features.npy", np.ones((1, 2)))
    centre = draw.uniform(-0.9, 0.9, (200, 2))
    xy = centre[site.made_up.label.codes % 200] + draw.normal(0, 0.03, (count, 2))
    file = file_of(site.workspace.maps, find_source(stages, site.made_up), site.made_up)
    write_points(file, Points(site.made_up.id, np.clip(xy, -1, 1).astype(np.float32)))


def made_up_photos(folder: Path, num: int) -> Photos:
    """Photos of 500 classes, a tenth of them with a label issue."""
    draw = np.random.default_rng(0)

    def column(values: list[str], weights: Sequence[float] | None = None) -> Words:
        return Words(draw.choice(len(values), num, p=weights).astype(np.int32), values)

    classes = column([f"product {number:03}" for number in range(500)])
    return Photos(
        version="0" * 32,
        folder=folder,
        id=np.unique(draw.integers(0, 2**63, num, dtype=np.uint64)),
        given=classes,
        label=classes,
        split=column(["train", "val", "test"], [0.8, 0.1, 0.1]),
        decision=column(["", "doubted", "dropped"], [0.9, 0.05, 0.05]),
        scored_by=Words(np.zeros(num, np.int32), [FOLD]),
        source=Words(np.zeros(num, np.int32), [""]),
        shard=Words(np.zeros(num, np.int32), [""]),
        kept=np.ones(num, np.bool_),
        score=draw.random(num, np.float32),
        offset=np.zeros(num, np.int64),
        size=np.zeros(num, np.int32),
    )
