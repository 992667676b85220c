"""Steps without Prefect, and modules that import it only when a flow starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows.orchestrator.events import happened
from flows.orchestrator.reports import emit, in_flow, show_text
from flows.run.step import step
from flows.scheduler.plan import WEEKLY, check_cron
from tests.command_line import ROOT

VERBS = ("ingest", "retrain", "clean", "publish", "promote", "drift", "enrol", "feedback", "rollback", "verify")


@step("add {a}")
def add(a: int, *, b: int = 1) -> int:
    """Sum."""
    return a + b


def test_a_step_outside_a_flow_is_the_function_itself() -> None:
    assert (add(1), add(2, b=3), add.fn(1)) == (2, 5, 2)
    assert (add.__name__, add.__doc__) == ("add", "Sum.")  # type: ignore[attr-defined]  # as functools.wraps sets them


def test_outside_a_flow_nothing_is_reported() -> None:
    assert not in_flow()
    emit(happened("model.promoted", to="model", name="1"))
    show_text("# report", key="retraining", description="a run")


@pytest.mark.parametrize("heavy", ["prefect", "torch", "matplotlib"])
def test_no_verb_imports_what_takes_seconds_before_it_is_needed(heavy: str) -> None:
    modules = ", ".join(f"flows.{verb}" for verb in VERBS)
    script = (
        f"import sys; sys.modules[{heavy!r}] = None; import {modules}, flows.scheduler.plan, flows.scheduler.record"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_weekly_plan_is_a_cron_expression_for_prefect_too() -> None:
    from prefect.client.schemas.schedules import CronSchedule

    assert check_cron(WEEKLY) == CronSchedule(cron=WEEKLY).cron
