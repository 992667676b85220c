"""Claim: at 2.5 million photos and 50,030 classes the pages paint within 1 s, and the next photo is drawn within 50 ms of a key.

The real server and pages in a headless Chromium. Versions are drawn as by large_version.py: one with about 10,000 label issues
and one with 2.5 million photos. Baselines, in the same run: a bare route of FastAPI that answers as many bytes (first paint), one
that writes a row to disk (key press), an empty file (report).
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from browser import kills, map_page, report_page, review_page
from browser.bare import bare_pages
from browser.chromium import chromium, served_pages
from figure import header
from large_version import CLASSES, PHOTOS, large_version

from flows.data.versions import DataVersions
from flows.review.decisions import Decisions
from flows.workspace import Workspace
from models.data.manifest import read_manifest

CLAIM = "the next photo is drawn within 50 ms of a key press, at 10,000 label issues and at 2.5 million photos"
FEW_PHOTOS, FEW_CLASSES = 111_000, 5_000  # about 10,000 label issues
PARTS = ("review", "large", "map", "kills", "report")


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=PHOTOS, help="of the large version")
    parser.add_argument("--classes", type=int, default=CLASSES)
    parser.add_argument("--few", type=int, default=FEW_PHOTOS, help="photos of the version with few label issues")
    parser.add_argument("--presses", type=int, default=60, help="of a key")
    parser.add_argument("--points", type=int, default=250_000, help="of the map")
    parser.add_argument("--seconds", type=float, default=4.0, help="for which the map is dragged")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="keep the drawn workspaces in this folder, or take them from it")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    args = parser.parse_args(words)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["browser.bare", "flows.web"])
    header(CLAIM)
    with TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        if {"review", "kills"} & set(args.only):
            few = drawn(folder / "few", args.few, min(FEW_CLASSES, args.few // 20))
        if "review" in args.only:
            review(
                few, Path(temporary), name=f"{args.few * 9 // 100:,} label issues", paint_s=0.5, presses=args.presses
            )
        if "large" in args.only:
            large = drawn(folder / "large", args.photos, args.classes)
            review(
                large,
                Path(temporary),
                name=f"{args.photos:,} photos",
                paint_s=1.0,
                presses=args.presses,
                with_memory=True,
            )
        if "map" in args.only:
            map_page.measure(args.points, args.seconds)
        if "kills" in args.only:
            kill(few, args.kills)
        if "report" in args.only:
            with chromium() as browser:
                report_page.measure(browser, Path(temporary), args.classes)


def drawn(root: Path, photos: int, classes: int) -> Workspace:
    """The workspace of a drawn version, without decisions."""
    workspace = Workspace.find(root) if root.exists() else large_version(root, photos, classes)
    _forget(workspace)
    return workspace


def review(
    workspace: Workspace, folder: Path, *, name: str, paint_s: float, presses: int, with_memory: bool = False
) -> None:
    """Prints the figures of reviewing a version."""
    with served_pages(workspace.root) as address, bare_pages(folder) as bare, chromium() as browser:
        review_page.measure(browser, address, bare, name=name, paint_s=paint_s, presses=presses)
        if with_memory:
            review_page.measure_memory(workspace.root, name=name)


def kill(workspace: Workspace, number: int) -> None:
    """Prints the figure of killing the server while two people decide about the label issues."""
    versions = DataVersions(workspace)
    version = versions.selected() or ""
    manifest = read_manifest(versions.materialise(version))
    _forget(workspace)
    kills.measure(workspace.root, version, manifest.id[manifest.decision != ""].tolist(), number)


def _forget(workspace: Workspace) -> None:
    decisions = Decisions(workspace.state)
    decisions.forget(list(decisions.pending()))


if __name__ == "__main__":
    main()
