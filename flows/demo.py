"""The whole story on drawn sample products: what is asked of a user's data, told in a few minutes on two CPU cores."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flows.data_version import DataVersions
from flows.endpoint import free_ports, local_server
from flows.ingest import ingest
from flows.progress import print_seen, print_steps
from flows.retrain import Report, retrain
from flows.sample.deliver import deliver, read_truth
from flows.settings import REPOSITORY
from flows.workspace import Workspace
from models.config import load_recipe
from models.data.manifest import read_manifest
from serving.errors import PortInUse
from serving.server import running

log = logging.getLogger("cleanshelf")

TRUTH = Path(__file__).parent / "sample" / "truth.parquet"  # of the sample in data.dvc; for counting only
SEED = 7


@dataclass(frozen=True)
class Found:
    """How cleaning did against the planted errors."""

    planted: int
    dropped: int
    right: int

    def __str__(self) -> str:
        recall, precision = self.right / max(self.planted, 1), self.right / max(self.dropped, 1)
        return f"{self.right} of {self.planted} planted errors found ({recall:.0%}), {precision:.0%} of the {self.dropped} dropped were wrong"


def tell(workspace: Workspace) -> None:
    """Adopts the repository's sample, ingests a further delivery, publishes a baseline, retrains properly, and shows it."""
    began = time.perf_counter()
    adopt_sample(workspace)
    delivered = ingest_delivery(workspace)
    start_endpoint(workspace)
    baseline = retrain(workspace, load_recipe("demo", overrides=PLAIN))
    report = retrain(workspace, load_recipe("demo"))
    conclude(workspace, delivered, baseline, report, seconds=time.perf_counter() - began)


# Last year's way, published first: the labels are believed, one view per photo, the classifier as it was trained.
PLAIN = ("name=baseline", "clean.rounds=0", "balance.epochs=0", "balance.tau_max=0.0", "export.crops=1", "gate.mean_class=1.0", "gate.tail=1.0")
