"""The plan of a scheduler, checked before Prefect is imported: only a cron expression needs Prefect to read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flows.errors import InputError
from flows.workspace import Workspace
from models.recipe.config import load_recipe

WEEKLY = "0 3 * * 1"
PERIOD = re.compile(r"([1-9]\d{0,5})([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Plan:
    """A recipe and when to retrain by it: at the times of a cron expression (UTC) or periodically, and on new data."""

    workspace: str
    recipe: str
    overrides: list[str]
    cron: str | None = None
    every_s: float | None = None
    on_new_data: bool = False
    folder: str = ""  # the current folder of the user, from which paths in the recipe count


def make_plan(
    workspace: Workspace,
    recipe: str,
    *,
    overrides: list[str],
    cron: str = "",
    every: str = "",
    on_new_data: bool = False,
) -> Plan:
    """A checked plan; `WEEKLY` if neither cron, every nor on_new_data is given.

    Raises:
        InputError: a time cannot be parsed, or both cron and every are given.
        ConfigError: the recipe does not exist, or does not accept an override.
    """
    load_recipe(recipe, overrides=overrides)
    if cron and every:
        raise InputError("--cron and --every exclude each other; give one of them")
    source = str(Path(recipe).absolute()) if recipe.endswith(".toml") else recipe
    if not (cron or every or on_new_data):
        cron = WEEKLY
    return Plan(str(workspace.root), source, overrides, check_cron(cron) if cron else None,
                read_period(every) if every else None, on_new_data, folder=str(Path.cwd()))  # fmt: skip


def check_cron(text: str) -> str:
    """The cron expression, if it can be parsed.

    Raises:
        InputError: it cannot be parsed.
    """
    if text == WEEKLY:
        return text
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        return CronSchedule(cron=text).cron
    except ValidationError:
        raise InputError(
            f"--cron {text!r} is not a cron expression; write minute, hour, day, month, weekday, such as {WEEKLY!r}"
        ) from None


def read_period(text: str) -> float:
    """Seconds of a period such as 90s, 30m, 6h or 7d.

    Raises:
        InputError: the text is not a period.
    """
    found = PERIOD.fullmatch(text.strip())
    if not found:
        raise InputError(f"--every {text!r} is not a period; write a number and s, m, h or d, such as 30m, 6h or 7d")
    return float(found[1]) * SECONDS[found[2]]
