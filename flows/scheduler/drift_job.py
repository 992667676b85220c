"""The flow of a deployment that compares recent photos with the test photos of the current model."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from flows.drift import Drift, reported_drift
from flows.workspace import Workspace


@flow(name="drift")
def drift(workspace: str, traffic: str, photos: int = 1000) -> Drift:
    """`cleanshelf drift`, with plain parameters as a deployment passes them."""
    return reported_drift(Workspace.find(Path(workspace)), Path(traffic), photos)
