"""A demonstration of the whole pipeline on drawn sample products, in a few minutes on two CPU cores."""

from __future__ import annotations

import logging
import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from flows.data.versions import DataVersions
from flows.endpoint.server import free_ports, local_server, stop_endpoint
from flows.ingest import Ingested, ingest
from flows.orchestrator.server import orchestrated
from flows.report.run_report import Report
from flows.report.terminal import print_answers, print_steps
from flows.retrain import retrain
from flows.review.filters import Filter
from flows.review.photos import read_photos
from flows.review.queue import Queue
from flows.review.selections import Selections
from flows.review.suggestions import read_suggestions
from flows.sample.build import SEED, TRUTH, VAL_SHARE
from flows.sample.deliver import Truth, deliver, read_truth
from flows.settings import REPOSITORY
from flows.workspace import Workspace
from models.data.manifest import FLAGGED, read_manifest
from models.recipe.config import load_recipe
from serving.errors import PortInUse
from serving.server.server import RunningServer

log = logging.getLogger("cleanshelf")

# Overrides of the first model: labels as delivered, one crop per photo, the classifier as it was trained.
BASELINE = ("name=baseline", "clean.rounds=0", "balance.method=none", "export.crops=1")
SHOWN = 3  # confusions
WRONG = ("flipped", "non-product")  # kinds of planted errors; see flows.sample.deliver


@dataclass(frozen=True)
class FoundErrors:
    """The labels that cleaning flagged, against the errors planted among the training photos that it scored."""

    planted: int
    flagged: int
    both: int

    def __str__(self) -> str:
        recall, precision = self.both / max(self.planted, 1), self.both / max(self.flagged, 1)
        found = f"{self.both} of {self.planted} planted label errors of training photos found ({recall:.0%})"
        return f"{found}; of {self.flagged} flagged labels {precision:.0%} were wrong"


def run_demo(workspace: Workspace, *, recipe: str = "demo", overrides: Sequence[str] = ()) -> Report:
    """Imports the repository's sample, ingests a delivery, publishes a baseline, retrains, and prints what each step gained.

    Returns the report of the retraining.

    Args:
        recipe, overrides: the recipe of the retraining, as for `load_recipe`; the baseline is the same recipe without its
            remedies.
    """
    with orchestrated(workspace):  # one Prefect server for all flows
        return _run_demo(workspace, recipe, overrides)


def _run_demo(workspace: Workspace, recipe: str, overrides: Sequence[str]) -> Report:
    began = time.perf_counter()
    sample = import_sample(workspace)
    delivered, truth = ingest_delivery(workspace)
    server = start_endpoint(workspace)
    try:
        baseline = retrain(workspace, load_recipe(recipe, overrides=[*overrides, *BASELINE]))
        report = retrain(workspace, load_recipe(recipe, overrides=overrides))
    except BaseException:
        stop_endpoint(workspace)
        raise
    found = count_found(workspace, report, truth)
    conclude(workspace, server, [sample, delivered.data_version], found, baseline, report)
    print(f"\nThe flow took {time.perf_counter() - began:.0f} s.")
    return report


def import_sample(workspace: Workspace) -> str:
    """Imports the sample of the repository's own data.dvc, verified, as the first data version. Returns its id."""
    version = DataVersions(workspace).import_from(REPOSITORY)
    log.info("sample: data version %s restored from data.dvc, every hash verified", version[:12])
    return version


def ingest_delivery(workspace: Workspace) -> tuple[Ingested, Truth]:
    """Draws and ingests another delivery: more photos, more wrong labels, a few broken files."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "delivery"
        truth = deliver(source, seed=SEED, part="delivery")
        return ingest(workspace, source, val_share=VAL_SHARE), truth


def start_endpoint(workspace: Workspace) -> RunningServer:
    """Starts Triton on its usual ports, or on free ones if those are taken. It keeps running after the demo."""
    try:
        server = local_server(workspace, http_port=8000, grpc_port=8001, metrics_port=8002).start()
    except PortInUse:
        http, grpc, metrics = free_ports(3)
        server = local_server(workspace, http_port=http, grpc_port=grpc, metrics_port=metrics).start()
    log.info("triton: started without a model; gRPC %s", server.url)
    return server


def count_found(workspace: Workspace, report: Report, delivered: Truth) -> FoundErrors:
    """Compares the decisions of cleaning with the true labels of both deliveries, which it never sees."""
    manifest = read_manifest(DataVersions(workspace).materialise(report.cleaned))
    rows = [*read_truth(TRUTH).to_pylist(), *delivered.to_pylist()]
    wrong = {row["id"] for row in rows if row["kind"] in WRONG}
    scored = (manifest.round > 0) & (manifest.split == "train")  # cleaning leaves the labels of validation photos alone
    planted = np.array([photo in wrong for photo in manifest.id[scored]], bool)
    flagged = manifest.has_decision(FLAGGED)[scored]
    return FoundErrors(int(planted.sum()), int(flagged.sum()), int((flagged & planted).sum()))


def print_mistakes(workspace: Workspace, cleaned: str) -> None:
    """Prints the most frequent confusions among the labels in doubt, and where the pages show them.

    The photos with the worst scores show no product at all; they say little about what cleaning can do.
    """
    photos = read_photos(DataVersions(workspace).materialise(cleaned), version=cleaned)
    queue = Queue(photos, read_suggestions(photos, workspace.runs / "stages"), Selections())
    if not (groups := queue.confusions(Filter())[:SHOWN]):
        return
    print("\nLabels in doubt. The review shows the worst first, many of them planted photos of no product at all.")
    print("The most frequent confusions of products are on these pages of `cleanshelf web` (see below):\n")
    for group in groups:
        where = urlencode({"given": group.given, "suggested": group.suggested, "version": cleaned})
        photos_of = f"{group.total} photo{'' if group.total == 1 else 's'} labelled {group.given}"
        print(f"  {photos_of}, more likely {group.suggested}\n    /review?{where}")


def conclude(
    workspace: Workspace,
    server: RunningServer,
    versions: list[str],
    found: FoundErrors,
    baseline: Report,
    report: Report,
) -> None:
    """Prints the results, and commands to try next."""
    folder = shlex.quote(os.path.relpath(workspace.root))
    photos = DataVersions(workspace).log()[0].counts["test"]
    print(f"\nWhat each step was worth, on the same {photos} clean test photos:\n")
    print_steps(report.steps)
    print(f"\nCleaning: {found}.\n\nThe endpoint, asked about test photos:\n")
    print_answers(report.seen)
    print(f"\ndata      {' -> '.join(v[:12] for v in [*versions, report.cleaned])}   (sample, delivery, cleaned)")
    print(f"models    {baseline.model_version} (baseline, labels as delivered) -> {report.model_version} (answers now)")
    print(f"gate      {'; '.join(report.verdict.reasons)}")
    print(f"endpoint  gRPC {server.url}   HTTP 127.0.0.1:{server.http_port}   model `products`   (still running)")
    print_mistakes(workspace, report.cleaned)
    print("\nTry next:")
    for command, what in (
        ("web", "look at the labels in doubt, and all else, in a browser"),
        ("model rollback", "the previous model answers again"),
        (f"data rollback {versions[-1][:12]}", "the labels as they were delivered"),
        ("data log", "every data version and where it came from"),
        ("serve --stop", "stop the endpoint"),
    ):
        print(f"  .venv/bin/cleanshelf {command} -w {folder}".ljust(64) + f"  # {what}")
