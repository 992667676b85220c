"""The ingestion flow, which makes a data version from a supplier's delivery.

It is a Prefect flow where a server is there to report to, that of the scheduler or of PREFECT_API_URL. Without one the same
steps run as plain functions: a server would take longer to start than most deliveries take.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from flows.data.purge_record import Purged
from flows.data.versions import DataVersions
from flows.delivery.build import IntakeReport, build_version
from flows.delivery.changes import describe_changes
from flows.delivery.decode import Opened, Openers, open_photos
from flows.delivery.near import LIMIT
from flows.delivery.rows import check_source
from flows.orchestrator.events import selected, standing_server
from flows.orchestrator.reports import emit
from flows.run.run import code_hash
from flows.run.step import as_flow, parallel_tasks, step
from flows.settings import Settings
from flows.workspace import DATA_LOCK, Workspace

log = logging.getLogger("cleanshelf")
BATCH = 256  # photos per Dask task; the overhead of a task equals the opening of a few photos
AT_ONCE = 16  # batches pending on Dask; at 35 kB per photo they take 150 MB


@dataclass(frozen=True)
class Ingested:
    """Result of an ingestion: the selected data version, and a report on the delivery's rows."""

    data_version: str
    report: IntakeReport


def ingest(
    workspace: Workspace,
    source: Path,
    *,
    val_share: float = 0.1,
    test_share: float = 0.2,
    near_duplicates: float | None = LIMIT,
    unlabelled: bool = False,
) -> Ingested:
    """Ingests a folder per class or a manifest, also during a run; the other arguments are `build_version`'s.

    Raises:
        BadDelivery: the delivery cannot be used as it is; nothing was changed.
        LocalEdits: data/ was edited by hand.
    """
    check_source(source, unlabelled=unlabelled)
    with workspace.lock("ingest", name=DATA_LOCK):
        DataVersions(workspace).repair()
        if not standing_server(workspace) and not Settings().dask:
            return ingestion(workspace, source, val_share, test_share, near_duplicates, unlabelled=unlabelled)
        from flows.orchestrator.server import orchestrated

        cores = os.cpu_count() or 1
        with orchestrated(workspace), parallel_tasks(workspace, num_parallel=cores, reads=source) as runner:
            flow = as_flow(ingestion, "ingest", runner=runner)
            return flow(workspace, source, val_share, test_share, near_duplicates, unlabelled=unlabelled)


def ingestion(
    workspace: Workspace,
    source: Path,
    val_share: float,
    test_share: float,
    near_duplicates: float | None,
    *,
    unlabelled: bool,
) -> Ingested:
    """Builds the files of the next version, then commits it."""
    openers = Openers(open_batch.submit, BATCH, AT_ONCE) if Settings().dask else None
    folder, report = prepare_version(
        workspace, source, val_share, test_share, openers, near_duplicates, unlabelled=unlabelled
    )
    version = commit_version(workspace, folder, report)
    return Ingested(version, report)


@step("open photos")
def open_batch(files: list[str]) -> Opened:
    """Opens a batch of photos, as a task for a worker of a Dask cluster."""
    return open_photos(files)


@step("read delivery")
def prepare_version(
    workspace: Workspace,
    source: Path,
    val_share: float,
    test_share: float,
    openers: Openers | None = None,
    near_duplicates: float | None = LIMIT,
    *,
    unlabelled: bool = False,
) -> tuple[Path, IntakeReport]:
    """Decodes and hashes every photo, and writes the next version's files to a staging folder."""
    versions = DataVersions(workspace)
    versions.check_clean()
    parent = versions.selected()
    base = versions.materialise(parent) if parent else None
    folder = versions.new_folder()
    purged = frozenset(Purged.read(versions.ledger).photos)
    report = build_version(source, base=base, out=folder, parent=parent, val_share=val_share, test_share=test_share,
                           near_duplicates=near_duplicates, code=code_hash(), purged=purged, openers=openers,
                           unlabelled=unlabelled)  # fmt: skip
    changes = describe_changes(base, folder, workspace.state / "ingest")
    log.info("ingest: %s", report.in_words())
    return folder, replace(report, warnings=[*report.warnings, *changes])


@step("commit data version")
def commit_version(workspace: Workspace, folder: Path, report: IntakeReport) -> str:
    """Makes the folder the selected data version; returns its id."""
    versions = DataVersions(workspace)
    before = versions.selected()
    version = versions.commit(folder, step="ingest", message=report.message, shards=report.shards)
    log.info("ingest: data version %s", version[:12])
    if version != before:
        emit(selected("ingested", versions.log()[0]))
    return version


def preview(
    workspace: Workspace,
    source: Path,
    *,
    val_share: float,
    test_share: float,
    near_duplicates: float | None = LIMIT,
    unlabelled: bool = False,
) -> IntakeReport:
    """Report of an ingestion whose files are thrown away; no version is made."""
    check_source(source, unlabelled=unlabelled)
    with workspace.lock("ingest --dry-run", name=DATA_LOCK):
        folder, report = prepare_version(workspace, source, val_share, test_share, near_duplicates=near_duplicates,
                                         unlabelled=unlabelled)  # fmt: skip
        shutil.rmtree(folder)
    return report
