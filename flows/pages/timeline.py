"""The timeline of a workspace: data versions and model versions together, newest first, with what holds for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.data.history import Entry
from flows.data.versions import DataVersions
from flows.registry.history import advice, model_history, withdrawn_data
from flows.registry.versions import ENTRY, REF, ModelVersions
from flows.workspace import Workspace

WORDS = {  # steps in words for people; other steps keep their name
    "ingest": "Photos came in",
    "feedback": "People corrected labels",
    "clean-0": "Earlier cleaning was taken back",
    "purge": "Photos were removed for good",
    "rollback": "Selected again",
    "adopt": "Taken from another workspace",
}


@dataclass(frozen=True)
class DataRow:
    """An entry of the data's history, or a version that a run made and that was never selected (`number` is None).

    is_again: an entry that selects a version which an earlier entry, or a run, made.
    models: model versions that were trained on it.
    """

    number: int | None
    version: str
    parent: str | None
    step: str
    says: str
    message: str
    time: str
    counts: dict[str, int]
    selected: bool
    withdrawn: bool
    is_again: bool
    run: str
    models: list[int]


@dataclass(frozen=True)
class ModelRow:
    """A model version. was_current: it is the current model, or was once, so that a rollback to it is possible."""

    version: int
    parent: int | None
    current: bool
    was_current: bool
    data_version: str
    data_withdrawn: bool
    metrics: dict[str, float | None]
    recipe: str | None
    run: str | None
    time: str
    overridden: str


@dataclass(frozen=True)
class Timeline:
    """The history; `advice` is a sentence if the current model learnt from data that were withdrawn, else ""."""

    selected: str | None
    current_model: int | None
    data: list[DataRow]
    models: list[ModelRow]
    advice: str

    def rows(self) -> list[tuple[str, str | None, DataRow | ModelRow]]:
        """Key, key of what it was made from, and row of every item, newest first; an item comes before its parent.

        A version that was selected again was not made again, so it has no parent: a line for each would fill the page.
        """
        items: list[tuple[str, str | None, DataRow | ModelRow]] = []
        known = {each.version for each in self.data}
        for each in self.data:
            origin = None if each.is_again else each.parent
            key = f"again-{each.number}" if each.is_again else each.version
            items.append((key, origin if origin in known else None, each))
        for model in self.models:
            items.append((f"model-{model.version}", model.data_version if model.data_version in known else None, model))
        made = {key: datetime.fromisoformat(row.time) for key, _, row in items}

        def order(item: tuple[str, str | None, DataRow | ModelRow]) -> tuple[datetime, bool]:
            key, origin, row = item
            is_model = isinstance(row, ModelRow)  # a run selects its data after it has registered its model
            return max(made[key], made[origin]) if is_model and origin else made[key], is_model

        return sorted(items, key=order, reverse=True)


def timeline(workspace: Workspace) -> Timeline:
    """The history of data and models."""
    versions = DataVersions(workspace)
    models = ModelVersions(versions.ledger)
    history, gone = model_history(workspace), withdrawn_data(workspace)
    trained: dict[str, list[int]] = {}
    for each in history:
        trained.setdefault(each["data_version"], []).append(each["version"])
    data = _data_rows(versions.listed(), gone=gone, trained=trained, selected=versions.selected())
    return Timeline(
        selected=versions.selected(),
        current_model=models.current(),
        data=data,
        models=_model_rows(history, models),
        advice=advice(history),
    )


def _data_rows(
    entries: Iterable[Entry], *, gone: set[str], trained: dict[str, list[int]], selected: str | None
) -> list[DataRow]:
    entries = list(entries)
    oldest = {entry.id: entry for entry in entries}  # entries are newest first
    newest = {entry.id: entry for entry in reversed(entries)}
    rows = []
    for entry in entries:
        row = DataRow(
            number=entry.number,
            version=entry.id,
            parent=entry.parent,
            step=entry.step,
            says=in_words(entry.step),
            message=entry.message,
            time=entry.time,
            counts=entry.counts,
            selected=entry.id == selected and newest[entry.id] is entry,
            withdrawn=entry.id in gone,
            is_again=oldest[entry.id] is not entry,
            run=entry.run,
            models=sorted(trained.get(entry.id, [])),
        )
        rows.append(row)
    return rows


def _model_rows(history: list[dict[str, Any]], models: ModelVersions) -> list[ModelRow]:
    promoted = models.promoted()
    matches = ((ENTRY.fullmatch(commit.message), commit.time) for commit in models.ledger.log(REF))
    times = {int(match[1]): time for match, time in matches if match}
    return [
        ModelRow(
            version=each["version"],
            parent=each["parent"],
            current=each["serving"],
            was_current=each["version"] in promoted,
            data_version=each["data_version"] or "",
            data_withdrawn=each["data_withdrawn"],
            metrics={
                name: value for name, value in each["metrics"].items() if value is None or isinstance(value, float)
            },
            recipe=each["recipe"],
            run=each["run"],
            time=times.get(each["version"], "1970-01-01T00:00:00+00:00"),
            overridden=each["override"]["reason"] if each["override"] else "",
        )
        for each in history
    ]


def in_words(step: str) -> str:
    """The step that made a data version, in words for people."""
    if step.startswith("clean-") and step not in WORDS:
        return "Labels were cleaned"
    return WORDS.get(step, step)
