"""Detects drift by comparing the current model's answers to recent photos with those to the test photos, without labels."""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contract import ACCEPTED
from durable import overwrite
from flows.data.versions import DataVersions
from flows.endpoint.folder import photos_below
from flows.errors import InputError
from flows.live import counted
from flows.orchestrator.events import happened, standing_server
from flows.orchestrator.reports import emit, show_text
from flows.recognise import ask_file_of_folder
from flows.registry.history import model_lineage
from flows.registry.repository import repository
from flows.report.markdown import table
from flows.report.run_report import NO_PRODUCT
from flows.run.step import as_flow
from flows.workspace import Workspace
from models.data.manifest import Manifest, read_manifest
from models.data.records import number_of, read_rows, text_of
from models.errors import BadTable
from serving import LocalRecognizer

log = logging.getLogger("cleanshelf")

BINS = 10
WATCH, DRIFTED = 0.1, 0.25  # thresholds on the index, by convention (Siddiqi, Credit Risk Scorecards, 2006)
Z_999 = 3.0902  # quantile .999 of the normal distribution
LEAST = 100  # photos; with fewer the index says nothing
MOVED = 5  # classes in the report
LAST = "drift.json"
COLUMNS = ("label", "probability", "score", "model_version", "error")


@dataclass(frozen=True)
class Traffic:
    """Answers to N photos: labels, probability (N,) of the label, and score `known` (N,), both in [0, 1]."""

    label: list[str]
    probability: NDArray[np.float32]
    score: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class DistributionShift:
    """Shift of one measure between two samples."""

    measure: str  # probability or score
    index: float  # population stability index
    noise: float  # the index stays below it in 999 of 1000 samples of the same distribution
    distance: float  # of Kolmogorov and Smirnov
    verdict: str  # stable, watch or drifted


@dataclass(frozen=True)
class Drift:
    """Recent traffic compared with the reference; shares in [0, 1]."""

    verdict: str  # the worst of the shifts: stable, watch or drifted
    photos: int
    reference_photos: int
    unknown: float  # share of photos that are not accepted
    reference_unknown: float
    shifts: list[DistributionShift]
    moved: dict[str, tuple[float, float]]  # share before and now of the classes whose share changed most

    def shares(self) -> list[dict[str, Any]]:
        """`moved` as rows of a table."""
        return [{"product": label, "before": before, "now": now} for label, (before, now) in self.moved.items()]


@dataclass(frozen=True)
class LastDrift:
    """The last comparison, as state/drift.json keeps it: when, with which photos or answers, and of which model version."""

    at: str
    traffic: str
    model_version: int
    found: Drift


def drift(workspace: Workspace, traffic: Path, *, photos: int) -> Drift:
    """Compares recent traffic with the test photos that the current model was judged on.

    Photos are counted on both sides before the model is asked about any. The workspace keeps the last result.

    Args:
        traffic: a folder of photos, or the table that `recognise DIR --out` made of one.
        photos: the number of test photos at most, drawn with a fixed seed.

    Raises:
        UnknownVersion: there is no current model.
        InputError: there is no such file or folder, the table has no answers, answers of another model, or there are
            fewer than `LEAST` on either side.
    """
    if not traffic.exists():
        raise InputError(f"{traffic}: no such file or folder; give a folder of recent photos, or a table of answers")
    lineage = model_lineage(workspace)
    graph = repository(workspace).path(lineage["version"]) / "model.onnx"
    manifest, rows = chosen_test_photos(workspace, lineage["data_version"], photos=photos)
    if traffic.is_dir():
        require_enough(sum(1 for _ in itertools.islice(photos_below(traffic), LEAST)), name=str(traffic), what="photos")
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "answers.parquet"
            with counted("recognising") as progress:
                ask_file_of_folder(
                    graph, traffic, table, progress=lambda done: progress.add(done - progress.last.photos)
                )
            recent = read_answers(table, version=lineage["version"], name=str(traffic))
    else:
        recent = read_answers(traffic, version=lineage["version"], name=str(traffic))
    found = compare(recognise(graph, [manifest.read_photo(int(row)) for row in rows]), recent)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    last = LastDrift(at, str(traffic), lineage["version"], found)
    overwrite(workspace.state / LAST, json.dumps(asdict(last), indent=1).encode())
    return found


def last_drift(workspace: Workspace) -> LastDrift | None:
    """The last comparison; None if there is none."""
    try:
        content = json.loads((workspace.state / LAST).read_bytes())
        found = content["found"]
        shifts = [DistributionShift(**each) for each in found["shifts"]]
        moved = {label: (before, now) for label, (before, now) in found["moved"].items()}
        return LastDrift(**content | {"found": Drift(**found | {"shifts": shifts, "moved": moved})})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_answers(table: Path, *, version: int, name: str) -> Traffic:
    """The answers in a table of `recognise DIR --out`, without the rows of files that are not photos."""
    labels, probability, score = [], array("f"), array("f")
    try:
        for number, row in read_rows(table, required=COLUMNS):
            where = f"row {number}"
            if text_of(where, row, "error"):
                continue
            if row["model_version"] not in (None, "") and number_of(where, row, "model_version") != version:
                raise InputError(
                    f"{name}, column model_version: answers of version {row['model_version']}, but version {version} is "
                    "the current model; recognise the photos again"
                )
            labels.append(text_of(where, row, "label"))
            probability.append(number_of(where, row, "probability") if labels[-1] else 0.0)
            score.append(number_of(where, row, "score"))
    except BadTable as error:
        raise InputError(
            f"{name}: not a table of answers ({error}); make one with `cleanshelf recognise DIR --out FILE`"
        ) from None
    require_enough(len(labels), name=name, what="answers")
    return Traffic(labels, np.array(probability, np.float32), np.array(score, np.float32))


def require_enough(count: int, *, name: str, what: str) -> None:
    """Raises InputError if there are fewer than `LEAST`."""
    if count < LEAST:
        raise InputError(f"{name}: {count} {what}, at least {LEAST} are needed to detect drift; give more photos")


def chosen_test_photos(workspace: Workspace, version: str, *, photos: int) -> tuple[Manifest, NDArray[np.int64]]:
    """The manifest of a data version, and the rows of the test photos to compare with, at least `LEAST`."""
    manifest = read_manifest(DataVersions(workspace).materialise(version))
    rows = np.flatnonzero((manifest.split == "test") & manifest.kept)
    chosen = np.sort(np.random.default_rng(0).permutation(rows)[:photos])
    if len(chosen) < LEAST:
        raise InputError(
            f"data version {version[:12]} has {len(rows)} test photos, --photos allows {photos}, at least {LEAST} are "
            "needed to detect drift; ingest more with split `test`"
        )
    return manifest, chosen


def recognise(graph: Path, photos: Sequence[bytes]) -> Traffic:
    """The graph's answers to encoded photos."""
    answers = LocalRecognizer(graph).recognise(photos)
    best = [answer.best or NO_PRODUCT for answer in answers]
    return Traffic(
        [label for label, _ in best],
        np.array([p for _, p in best], np.float32),
        np.array([answer.score for answer in answers], np.float32),
    )


def compare(before: Traffic, now: Traffic) -> Drift:
    """The comparison of two samples of answers; the worst measure decides the verdict."""
    shifts = [shift(name, getattr(before, name), getattr(now, name)) for name in ("probability", "score")]
    shares = [{label: n / len(each) for label, n in Counter(each.label).items()} for each in (before, now)]
    labels = sorted(set().union(*shares), key=lambda label: -abs(shares[0].get(label, 0.0) - shares[1].get(label, 0.0)))
    order = ("stable", "watch", "drifted")
    return Drift(
        verdict=max((each.verdict for each in shifts), key=order.index),
        photos=len(now),
        reference_photos=len(before),
        unknown=float(np.mean(now.score < ACCEPTED)),
        reference_unknown=float(np.mean(before.score < ACCEPTED)),
        shifts=shifts,
        moved={label: (shares[0].get(label, 0.0), shares[1].get(label, 0.0)) for label in labels[:MOVED]},
    )


def shift(measure: str, before: NDArray[np.float32], now: NDArray[np.float32]) -> DistributionShift:
    """Population stability index over deciles of the reference, and the Kolmogorov-Smirnov distance.

    For two samples of one distribution, of sizes n and m, the index times nm / (n + m) is chi-squared distributed with
    one degree of freedom less than there are bins. An index below the .999 quantile is not drift, however large it looks.
    """
    edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1) for each in (before, now)
    ]
    p, q = ((count + 0.5) / (count.sum() + 0.5 * len(count)) for count in counts)
    index = float(((q - p) * np.log(q / p)).sum())
    noise = chi_squared(len(edges)) * (1 / len(before) + 1 / len(now))
    points = np.sort(np.concatenate([before, now]))
    cumulative = [np.searchsorted(np.sort(each), points, side="right") / len(each) for each in (before, now)]
    significant = index if index > noise else 0.0
    verdict = "drifted" if significant > DRIFTED else "watch" if significant > WATCH else "stable"
    return DistributionShift(measure, index, noise, float(np.abs(cumulative[0] - cumulative[1]).max()), verdict)


def chi_squared(freedom: int) -> float:
    """Quantile .999 of the chi-squared distribution, by Wilson and Hilferty's approximation (PNAS 17, 1931)."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + Z_999 * spread**0.5) ** 3)


def run_drift(workspace: Workspace, traffic: Path, *, photos: int) -> Drift:
    """Runs `drift` as a Prefect flow if a permanent server is running, otherwise directly.

    Raises:
        UnknownVersion, InputError: as `drift`.
    """
    url = standing_server(workspace)
    if url:
        from flows.orchestrator.server import reporting_to, why_unusable

        if why := why_unusable(url):
            log.warning("drift: %s, so Prefect gets no report", why)
            return drift(workspace, traffic, photos=photos)
        with reporting_to(url):
            return as_flow(reported_drift, "drift")(workspace, traffic, photos)
    return drift(workspace, traffic, photos=photos)


def reported_drift(workspace: Workspace, traffic: Path, photos: int) -> Drift:
    """Result of `drift`, with an artifact about it, and an event if the traffic drifted."""
    found = drift(workspace, traffic, photos=photos)
    show_text(markdown(found), key="drift", description=f"{traffic}: {found.verdict}")
    if found.verdict == "drifted":
        emit(happened("drift.found", to="traffic", name=str(traffic), **asdict(found)))
    return found


def markdown(found: Drift) -> str:
    """The report: verdict, measures, and the products whose share changed most."""
    counts = (
        f"{found.photos} recent photos, {found.unknown:.1%} of them unknown, compared with {found.reference_photos} "
        f"test photos, {found.reference_unknown:.1%} of them unknown."
    )
    measures = table([asdict(shift) for shift in found.shifts])
    return "\n\n".join([f"# {found.verdict}", counts, measures, table(found.shares())]) + "\n"
