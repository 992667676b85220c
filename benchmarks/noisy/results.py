"""Finished runs in a JSON-lines file, and the table made of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from models.errors import ManifestError
from models.recipe.config import digest
from noisy.protocol import Protocol
from noisy.published import SOURCES, Figure, published
from noisy.spec import Method, Noise
from noisy.training import Outcome


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training to be done: everything that its result depends on."""

    data: str
    protocol: Protocol
    method: Method
    noise: Noise
    seed: int

    @property
    def key(self) -> str:
        """Text that is equal for runs with the same result; readable but for two digests, of protocol and method."""
        settings, method = digest(asdict(self.protocol)), digest(asdict(self.method.resolved()))
        return f"{self.data}/{self.protocol.name}-{settings}/{self.method.loss}-{method}/{self.noise}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the file."""

    key: str
    method: str  # for people; the key decides
    accuracy: float
    memorised: float | None
    seconds: float
    device: str
    torch: str

    @staticmethod
    def of(run: Run, outcome: Outcome, *, device: str, torch: str) -> Result:
        """Line of the file for a finished run."""
        memorised = None if math.isnan(outcome.memorised) else round(outcome.memorised, 2)
        return Result(key=run.key, method=str(run.method), accuracy=round(outcome.accuracy, 2), memorised=memorised,
                      seconds=round(outcome.seconds, 1), device=device, torch=torch)  # fmt: skip


def read_results(path: Path) -> dict[str, Result]:
    """Results by key; a last line that a kill cut short is removed from the file, and its run is done again.

    Raises:
        ManifestError: a whole line is not a result.
    """
    if not path.exists():
        return {}
    whole, newline, _cut = path.read_text(encoding="utf-8").rpartition("\n")
    path.write_text(whole + newline, encoding="utf-8")
    found = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            result = Result(**json.loads(line))
        except (TypeError, json.JSONDecodeError):
            names = ", ".join(field.name for field in fields(Result))
            raise ManifestError(f"--out: {path}, line {number} is not a result ({names}); give another file") from None
        found[result.key] = result
    return found


def append_result(path: Path, result: Result) -> None:
    """Appends one line, on the disk before the next run starts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Accuracies of a method under a noise, beside the published figure."""

    method: Method
    noise: Noise
    accuracies: tuple[float, ...]
    published: Figure | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation of the sample; nan for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else math.nan


def cells(runs: Iterable[Run], results: dict[str, Result]) -> list[Cell]:
    """One cell per method and noise, in the order of the runs."""
    accuracies: dict[tuple[str, str], list[float]] = {}
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        place = (str(run.method), str(run.noise))
        first.setdefault(place, run)
        accuracies.setdefault(place, []).append(results[run.key].accuracy)
    return [Cell(method=run.method, noise=run.noise, accuracies=tuple(accuracies[place]),
                 published=published(run.data, run.method, run.noise)) for place, run in first.items()]  # fmt: skip


def table(made: Sequence[Cell], protocol: Protocol, *, seeds: int) -> str:
    """Markdown table: a row per method, two columns per noise."""
    noises = list(dict.fromkeys(str(cell.noise) for cell in made))
    by_place = {(str(cell.method), str(cell.noise)): cell for cell in made}
    head = " | ".join(f"{noise} | published" for noise in noises)
    lines = [f"| method | {head} |", f"|---{'|--:|--:' * len(noises)}|"]
    for method in dict.fromkeys(str(cell.method) for cell in made):
        row = [_both(by_place.get((method, noise))) for noise in noises]
        lines.append(f"| `{method}` | {' | '.join(row)} |")
    return "\n".join([*lines, "", *_notes(made, protocol, seeds=seeds)])


def _both(cell: Cell | None) -> str:
    if cell is None:
        return " | "
    return f"{_figure(cell.mean, cell.deviation)} | {_published(cell.published)}"


def _published(found: Figure | None) -> str:
    return f"{_figure(found.mean, found.deviation)} ({found.source})" if found else ""


def _figure(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def _notes(made: Sequence[Cell], protocol: Protocol, *, seeds: int) -> list[str]:
    notes = [
        f"Test accuracy in % of the last epoch, mean ± deviation of {seeds} seed{'s' * (seeds > 1)}; protocol `{protocol.name}`."
    ]
    used = {cell.published.source for cell in made if cell.published}
    if not used:
        return [*notes, "No published figure that could be checked belongs to these."]
    notes += [f"({source}) {SOURCES[source]}." for source in sorted(used)]
    if not protocol.is_full:
        notes.append(
            "The published figures are of the protocol `full`: compare the order of the methods, not the values."
        )
    return notes
