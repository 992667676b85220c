"""A headless Chromium and running pages for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HERE = Path(__file__).resolve().parents[2]


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A headless Chromium, which ends with the block; `flags` are added to its command line.

    Without one the test is skipped, or fails if CI is true.
    """
    if CHROMIUM is None:
        reason = "there is no Chromium; on Debian: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        yield browser
        browser.close()


@contextmanager
def served_pages(workspace: Path, *options: str) -> Iterator[str]:
    """Address of the pages of a workspace, served by `cleanshelf web` on a free port until the block ends."""
    command = [sys.executable, "-m", "flows.cli", "web", "-w", str(workspace), "--port", "0", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=HERE, env=os.environ | {"PYTHONPATH": str(HERE)}
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("pages at "), line
    try:
        yield line.split()[-1].rstrip("/")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.stdout.close()
