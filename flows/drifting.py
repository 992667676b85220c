"""Drift as a flow: the artifact `drift` for people, the event `cleanshelf.drift.found` for automations."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.drift import Drift, drift
from flows.orchestrator import told
from flows.prefect_server import answers, happened, standing_server
from flows.story import emit, table
from flows.workspace import Workspace

log = logging.getLogger("cleanshelf")


def look(workspace: Workspace, traffic: Path, *, photos: int) -> Drift:
    """What `drift` finds: by a flow where a Prefect server stays up, else without, for nobody would look at it there.

    Raises:
        UnknownVersion, InputError: as `drift`.
    """
    url = standing_server(workspace)
    if url and answers(url):
        with told(url):
            return drifting(str(workspace.root), str(traffic), photos)
    if url:
        log.warning("drift: %s does not answer, so Prefect is not told", url)
    return drift(workspace, traffic, photos=photos)


@flow(name="drift")
def drifting(workspace: str, traffic: str, photos: int = 1000) -> Drift:
    """The same with plain parameters, as a deployment gives them."""
    found = drift(Workspace.find(Path(workspace)), Path(traffic), photos=photos)
    create_markdown_artifact(markdown(found), key="drift", description=f"{traffic}: {found.verdict}")
    if found.verdict == "drifted":
        emit(happened("drift.found", to="traffic", name=traffic, **asdict(found)))
    return found


def markdown(found: Drift) -> str:
    """The verdict, its measures, and the products whose share changed most."""
    return "\n\n".join([
        f"# {found.verdict}",
        f"{found.photos} recent photos, {found.unknown:.1%} of them unknown, against {found.reference_photos} test photos, "
        f"{found.reference_unknown:.1%} of them unknown.",
        table([asdict(shift) for shift in found.shifts]),
        table(found.shares()),
    ]) + "\n"  # fmt: skip
