"""Runs of a workspace as their folders show them: how each ended or how far it is. Damaged files count as missing."""

from __future__ import annotations

import functools
import json
import platform
import re
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.errors import UnknownRun
from flows.gate.reasons import reason_of
from flows.gate.verdict import Finding
from flows.run.record import RECORD
from flows.run.run import INPUTS, RECIPE
from flows.workspace import Workspace
from serving.server.process import birth

NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]+")
REPORT = "run.json"
PASSED = "it passed every gate"
LINES = 12  # last log lines that are kept of a run
READ = 256  # records in memory, a few kB each
RUNNING, KILLED, FINISHED, FAILED, UNKNOWN = "running", "killed", "finished", "failed", "unknown"


@dataclass(frozen=True)
class RunStep:
    """A step of a run.

    state: running, finished, failed, or killed.
    text: the last progress, of a failed step the error, else "".
    share: of the last progress, in [0, 1].
    is_reused: True if an earlier run had computed all of it; None if it computes nothing that is kept.
    peak_bytes: largest resident memory of any process that it started; 0 if it started none.
    """

    step: str
    state: str
    started: str
    seconds: float | None = None
    text: str = ""
    share: float | None = None
    is_reused: bool | None = None
    peak_bytes: int = 0


@dataclass(frozen=True)
class RunState:
    """A run; `seconds` is the time from its beginning to its end, `started` is ISO 8601.

    state: running, killed (it ended without a word), published, staged, refused, stopped, failed, finished (a run that
        publishes nothing), or unknown (of an earlier release that left no report).
    why: that it passed every gate, the reasons why it did not, or the error.
    seconds_left, last_seconds: of a run under way, an estimate by an earlier run, and how long that took (flows.run.forecast).
    """

    run: str
    state: str
    verb: str
    recipe: str
    started: str
    seconds: float | None
    data_version: str
    model_version: int | None
    why: list[str]
    machine: str = ""
    pid: int | None = None
    steps: list[RunStep] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    seconds_left: float | None = None
    last_seconds: float | None = None


@dataclass(frozen=True)
class _Record:
    """Content of events.jsonl since its last beginning: `publish` may go on where a run ended. `outcome` is "" before the end."""

    verb: str = ""
    began: str = ""
    ended: str = ""
    process: tuple[int, str, str] | None = None  # pid, birth, machine
    outcome: str = ""
    text: str = ""
    steps: tuple[RunStep, ...] = ()
    lines: tuple[str, ...] = ()


def names(workspace: Workspace) -> list[str]:
    """Names of the runs, newest first."""
    return sorted((path.name for path in workspace.runs.glob("*-*-*") if NAME.fullmatch(path.name)), reverse=True)


def folder_of(workspace: Workspace, run: str) -> Path:
    """The folder of a run.

    Raises:
        UnknownRun: there is none of that name.
    """
    if not NAME.fullmatch(run) or not (workspace.runs / run).is_dir():
        raise UnknownRun(f"{run!r} is not a run of this workspace; the page Runs lists them")
    return workspace.runs / run


def state_of(workspace: Workspace, run: str) -> RunState:
    """The state of a run.

    Raises:
        UnknownRun: there is none of that name.
    """
    folder = folder_of(workspace, run)
    record, report = _record(folder), _cached(_summary, folder / REPORT) or {}
    state = _state(record, report)
    recipe, inputs = _cached(_name, folder / RECIPE) or "", _cached(_data_version, folder / INPUTS) or ""
    started = record.began or datetime.strptime(run[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).isoformat()
    return RunState(
        run=run,
        state=state,
        verb=record.verb or ("retrain" if report else ""),
        recipe=recipe,
        started=started,
        seconds=_seconds(started, record.ended) if record.ended and state != RUNNING else None,
        data_version=inputs,
        model_version=report.get("model_version"),
        why=_why(state, record, report),
        machine=record.process[2] if record.process else "",
        pid=record.process[0] if record.process else None,
        steps=[_ended(each) for each in record.steps] if state != RUNNING else list(record.steps),
        lines=list(record.lines),
    )


def _state(record: _Record, report: dict[str, Any]) -> str:
    if record.process and not record.outcome:
        return RUNNING if _is_alive(*record.process) else KILLED
    if record.outcome not in ("", FINISHED):
        return record.outcome
    return report.get("outcome") or record.outcome or UNKNOWN


def _is_alive(pid: int, born: str, machine: str) -> bool:
    """True if the process runs, or ran on another machine, whose processes are not seen here."""
    return machine != platform.node() or birth(pid) == born


def _why(state: str, record: _Record, report: dict[str, Any]) -> list[str]:
    if state in ("refused", "published", "staged"):
        return list(report.get("reasons", [])) or [record.text]
    return [record.text] if record.text else []


def _ended(step: RunStep) -> RunStep:
    return replace(step, state=KILLED) if step.state == RUNNING else step


def _record(folder: Path) -> _Record:
    return _cached(_read_record, folder / RECORD) or _Record()


def _cached(read: Any, path: Path) -> Any:
    """Result of `read` for a file, read again only if the file changed; None if it is missing or damaged."""
    try:
        found = path.stat()
    except OSError:
        return None
    return _read(read, path, found.st_mtime_ns, found.st_size)


@functools.lru_cache(READ)
def _read(read: Any, path: Path, time_ns: int, size: int) -> Any:
    try:
        return read(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _name(content: bytes) -> str:
    return str(json.loads(content)["name"])


def _data_version(content: bytes) -> str:
    return str(json.loads(content)["data_version"])


def _summary(content: bytes) -> dict[str, Any]:
    """The outcome, reasons and model version of a report."""
    report = json.loads(content)
    verdict, version = report["verdict"], report["model_version"]
    judged = "judged" if verdict["passed"] or verdict.get("override") else "refused"
    outcome = judged if version is None else "published" if report.get("promoted", True) else "staged"
    findings = [Finding.of(each) for each in verdict.get("findings", ())]
    plain = [reason_of(finding).says for finding in findings if not finding.passed]
    reasons = [PASSED] if verdict["passed"] else plain or list(verdict["reasons"])
    return {"outcome": outcome, "reasons": reasons, "model_version": version}


def _read_record(content: bytes) -> _Record:
    return _folded(_events(content))


def _events(content: bytes) -> Iterable[dict[str, Any]]:
    """The events whose lines are whole."""
    for line in content.decode("utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("at"), str):
            yield event


def _folded(events: Iterable[dict[str, Any]]) -> _Record:
    """The record that these events add up to. Events that lack something are left out."""
    record, steps, lines = _Record(), list[RunStep](), deque[str](maxlen=LINES)
    place: dict[str, int] = {}  # of the last step of each name: members are trained again on cleaned labels
    for event in events:
        with suppress(KeyError, TypeError, ValueError):
            kind, step, at = event["event"], str(event.get("step", "")), event["at"]
            if kind == "begun":
                process = (int(event["pid"]), str(event["born"]), str(event["machine"]))
                record = _Record(verb=str(event["verb"]), began=at, process=process)
            elif kind == "ended":
                record = replace(record, outcome=str(event["outcome"]), text=str(event["text"]), ended=at)
            elif kind == "started":
                place[step] = len(steps)
                steps.append(RunStep(step, RUNNING, at))
            elif kind == "line":
                lines.append(str(event["text"]))
            elif step in place:
                steps[place[step]] = _with(steps[place[step]], event)
    return replace(record, steps=tuple(steps), lines=tuple(lines))


def _with(step: RunStep, event: dict[str, Any]) -> RunStep:
    """The step after one of its events; it is reused if all that it needed was found and nothing was computed."""
    kind = event["event"]
    if kind == "progress":
        return replace(step, text=str(event["text"]), share=float(event["share"]))
    if kind == "reused":
        return replace(step, is_reused=step.is_reused is not False)
    if kind == "computing":
        return replace(step, is_reused=False)
    if kind == "used":
        return replace(step, peak_bytes=max(step.peak_bytes, int(event["peak_bytes"])))
    if kind not in (FINISHED, FAILED):
        return step
    text = str(event["text"]) if kind == FAILED else ""
    return replace(step, state=kind, text=text, share=None, seconds=_seconds(step.started, event["at"]))


def _seconds(start: str, end: str) -> float:
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 3)
