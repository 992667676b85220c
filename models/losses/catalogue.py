"""Catalogue of all losses, generated from the code for `cleanshelf losses` and docs/reference/losses.md.

It lists the formula, the hyperparameters, the inputs beyond p_y and the source of every loss.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.losses.base import LOSSES, Loss, Options, build_loss, common_parameters
from models.recipe.registry import Parameter, written

FEW = 10  # classes of the instance whose needs are read


@dataclass(frozen=True)
class Setting:
    """A hyperparameter: default and range as a recipe writes them, meaning from the docstring."""

    name: str
    default: str
    range: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """A loss. needs: inputs beyond p_y."""

    name: str
    formula: str
    parameters: tuple[Setting, ...]
    needs: str
    source: str


def catalogue() -> list[Entry]:
    """Entries of all registered losses, sorted by name."""
    return [_entry(name) for name in sorted(LOSSES.components)]


def options() -> tuple[Setting, ...]:
    """Options that every loss accepts."""
    return _settings(common_parameters(), _meanings(Options))


def outline() -> list[dict[str, Any]]:
    """Rows for a terminal: the losses, then the options of every loss."""
    rows = [
        {"loss": e.name, "formula": e.formula, "parameters": _named(e.parameters), "needs": e.needs, "source": e.source}
        for e in catalogue()
    ]
    return [*rows, {"loss": "every loss", "formula": "options", "parameters": _named(options())}]


def markdown() -> str:
    """Two Markdown tables: the losses with their hyperparameters, and the options of every loss."""
    losses = [
        (f"`{e.name}`", e.formula, "<br>".join(_grouped(e.parameters)) or "none", e.needs, e.source)
        for e in catalogue()
    ]
    common = [(f"`{s.name}`", f"`{s.default}`", s.range, s.meaning) for s in options()]
    return "\n".join(
        [
            *_table(("loss", "formula", "parameters", "needs", "source"), losses),
            "",
            *_table(("option of every loss", "default", "range", "what it does"), common),
        ]
    )


def _entry(name: str) -> Entry:
    component = LOSSES.components[name]
    loss = build_loss(name, num_classes=FEW)
    meanings: dict[str, str] = {}
    for part in reversed(list(loss.modules())):  # the docstring of the loss wins over those of its parts
        meanings |= _meanings(type(part))
    return Entry(
        name=name,
        formula=component.formula or _sentence(_paragraphs(type(loss))[0]),
        parameters=_settings(component.parameters, meanings),
        needs=_needs(loss),
        source=component.paper,
    )


def _needs(loss: Loss) -> str:
    found = {
        "a sum over the classes": bool(loss.terms),
        "several passes over the classes": not loss.weighs_log_p,
        "the sample's index": loss.needs_index,
        "the embedding": loss.needs_embedding,
    }
    return ", ".join(need for need, wanted in found.items() if wanted) or "p_y alone"


def _settings(parameters: Mapping[str, Parameter], meanings: Mapping[str, str]) -> tuple[Setting, ...]:
    return tuple(
        Setting(key, _default(p.default), written(p.annotation), meanings.get(key, "")) for key, p in parameters.items()
    )


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _named(settings: Iterable[Setting]) -> str:
    return "\n".join(f"{s.name} {s.default}; {s.range}" for s in settings)


def _grouped(settings: Iterable[Setting]) -> Iterator[str]:
    """Lines of a table cell; consecutive settings that share range and meaning share a line."""
    for (bounds, meaning), group in itertools.groupby(settings, key=lambda s: (s.range, s.meaning)):
        head = f"{', '.join(f'`{s.name}` {s.default}' for s in group)}; {bounds}"
        yield ": ".join(part for part in (head, _beyond(bounds, meaning)) if part)


def _beyond(bounds: str, meaning: str) -> str:
    """The meaning without the range, which the table shows already."""
    low, open_end = bounds[1:].removesuffix(", inf]"), bounds.endswith(", inf]")
    repeated = f"{'>' if bounds.startswith('(') else '>='} {low}" if open_end else f"in {bounds}"
    if meaning.startswith(repeated):
        return meaning.removeprefix(repeated).lstrip(";,. ")
    return meaning.replace(f", {repeated}", "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _paragraphs(cls: type) -> list[str]:
    return re.split(r"\n\s*\n", inspect.getdoc(cls) or "")


def _meanings(cls: type) -> dict[str, str]:
    """Meaning of each parameter, from the Args section of the docstring."""
    found: dict[str, str] = {}
    for paragraph in _paragraphs(cls):
        if paragraph.startswith("Args:\n"):
            for entry in re.split(r"\n {4}(?! )", paragraph.removeprefix("Args:")):
                names, _, meaning = entry.partition(": ")
                found |= dict.fromkeys(names.split(", "), _sentence(meaning))
    return found


def _sentence(text: str) -> str:
    """The text on one line, without the final full stop."""
    return " ".join(text.split()).removesuffix(".")
