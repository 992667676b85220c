"""The way from an empty workspace to a served, promoted and rolled-back model by the pages alone, in a headless Chromium."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from flows.workspace import Workspace
from serving.server.environment import Environment
from serving.server.server import LocalServer
from tests.integration.test_pages import take_in

pytestmark = [
    pytest.mark.browser,
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.triton,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]
SLOW_MS, TRAINING_MS = 120_000, 900_000
COLOURS = {
    "Alma Milk": (220, 40, 40),
    "Brio Soap": (40, 200, 60),
    "Cora Tea": (50, 60, 220),
    "Dune Rice": (230, 210, 50),
}
PER_CLASS = 24
QUICK = ("clean.rounds=1", "train.epochs=2", "clean.epochs=1", "balance.epochs=1")


def picture(label: str, seed: int) -> bytes:
    """A photo of a product: its colour, with noise."""
    noise = np.random.default_rng(seed).integers(-40, 40, (72, 72, 3))
    pixels = np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def deliver(folder: Path, *, first_seed: int, per_class: int) -> Path:
    for number, label in enumerate(COLOURS):
        (folder / label).mkdir(parents=True)
        for seed in range(first_seed + per_class * number, first_seed + per_class * (number + 1)):
            (folder / label / f"{seed}.png").write_bytes(picture(label, seed))
    (folder / "Alma Milk" / "notes.png").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Workspace.init(tmp_path_factory.mktemp("whole") / "shop").root


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s")


def retrain(page: Page, *settings: str, promote: bool = True) -> str:
    """Starts a retraining and waits for its end; returns the text of its row in the list of runs."""
    page.goto("/runs")
    page.select_option("#recipe", "smoke")
    page.click("#start summary")
    page.fill("#overrides", "\n".join(settings))
    page.set_checked("#start [name=promote]", promote)
    page.click("#start button[type=submit]")
    expect(page.locator("#notices")).to_contain_text("The retraining is starting")
    expect(page.locator("#current")).to_contain_text("so far", timeout=SLOW_MS)
    expect(page.locator("#current")).to_contain_text("No retraining is running", timeout=TRAINING_MS)
    return page.locator("#runs tr").first.inner_text()


def use(page: Page, path: str, button: str) -> None:
    page.goto(path)
    page.click(button)
    page.click("#publishing-yes")
    expect(page.locator("#notices")).to_contain_text("The model is in use", timeout=SLOW_MS)


def test_the_whole_path_by_the_pages_alone(
    page: Page,
    address: str,
    tmp_path: Path,
    triton_environment: Environment,
    local_server: Callable[..., LocalServer],
) -> None:
    page.goto("/")
    page.click("text=Take in a delivery")
    with timed("first delivery"):
        take_in(page, deliver(tmp_path / "first", first_seed=0, per_class=PER_CLASS))
    assert "96 photos are new. " in page.inner_text("#outcome-text").replace("\n", " ")
    assert "data version " in page.inner_text("#outcome-text")
    with timed("first retraining"):
        row = retrain(page, *QUICK)
    assert "published" in row
    with timed("start of the endpoint"):
        free = local_server(tmp_path, tmp_path / "state")
        page.goto("/endpoint")
        page.click("summary")
        for name in ("http_port", "grpc_port", "metrics_port"):
            page.fill(f"#{name}", str(getattr(free, name)))
        page.click("#start")
        expect(page.locator("#models")).to_contain_text("products, version 1", timeout=SLOW_MS)
    try:
        with timed("second delivery"):
            take_in(page, deliver(tmp_path / "second", first_seed=10_000, per_class=4))
        with timed("second retraining, refused"):
            row = retrain(page, *QUICK, "gate.mean_class=-1")
        assert "refused" in row
        assert "points better are demanded" in row
        page.click("#runs a")
        page.fill("#reason", "the demand was a mistake")
        with timed("publication despite the refusal"):
            page.click("#publish button")
            page.click("#publishing-yes")
            expect(page.locator("#notices")).to_contain_text("The model is in use", timeout=SLOW_MS)
        page.goto("/versions/models/2")
        assert "the demand was a mistake" in page.inner_text("main")
        with timed("third retraining, registered only"):
            row = retrain(
                page,
                "train.epochs=2",
                "gate.mean_class=1",
                "gate.head=1",
                "gate.middle=1",
                "gate.tail=1",
                promote=False,
            )
        assert "staged" in row
        with timed("promotion"):
            use(page, "/versions/models/3", "[data-promote]")
        (tmp_path / "photo.png").write_bytes(picture("Brio Soap", 99))
        with timed("recognition"):
            page.goto("/recognise")
            page.set_input_files("#files", tmp_path / "photo.png")
            expect(page.locator("#answers > li")).to_contain_text("version 3", timeout=SLOW_MS)
        with timed("rollback"):
            page.goto("/versions/models/1")
            page.click("[data-roll-back]")
            page.click("#rollback-yes")
            expect(page.locator("h1")).to_contain_text("current model", timeout=SLOW_MS)
    finally:
        httpx.post(f"{address}/api/endpoint/stop", timeout=60)
