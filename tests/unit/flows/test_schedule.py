"""Valid and invalid plans, the record of scheduled runs, and retrainings that are skipped."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.errors import InputError
from flows.run.inputs import ended_before
from flows.scheduler.plan import WEEKLY, make_plan
from flows.scheduler.record import ScheduledRun, history, note
from flows.workspace import Workspace
from models.errors import ConfigError
from tests.breaking import ways

NOW = {"data_version": "d" * 32, "config": "c", "code": "e", "serving": 1}


@pytest.fixture
def shop(tmp_path: Path) -> Workspace:
    return Workspace.init(tmp_path / "shop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cron": "0 25 * * 1"}, "--cron '0 25 \\* \\* 1' is not a cron expression; write minute, hour"),
        ({"cron": "Monday"}, "--cron 'Monday' is not a cron expression"),
        ({"cron": "0 3 * * R"}, "is not a cron expression"),
        ({"every": "soon"}, "--every 'soon' is not a period; write a number and s, m, h or d"),
        ({"every": "0h"}, "--every '0h' is not a period"),
        ({"every": "1h", "cron": WEEKLY}, "--cron and --every exclude each other"),
    ],
)
def test_a_time_that_cannot_be_read_is_refused(shop: Workspace, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_plan(shop, "smoke", overrides=[], **options)


def test_an_unknown_key_of_the_recipe_is_refused_now_and_not_at_night(shop: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"clean\.fold"):
        make_plan(shop, "smoke", overrides=["clean.fold=2"])


def test_without_a_time_it_is_weekly_unless_data_wake_it(shop: Workspace) -> None:
    assert make_plan(shop, "smoke", overrides=[]).cron == WEEKLY
    assert make_plan(shop, "smoke", overrides=[], on_new_data=True).cron is None
    assert make_plan(shop, "smoke", overrides=[], every="6h").every_s == 21600


def ended(shop: Workspace, *, version: int | None, passed: bool = True, **inputs: Any) -> None:
    """Writes the folder of a finished run with these inputs."""
    folder = shop.runs / "20260101-030000-abcdef"
    folder.mkdir()
    run = {"model_version": version, "verdict": {"passed": passed, "reasons": ["tail accuracy 0.2"]}}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "inputs.json").write_text(json.dumps(NOW | inputs))


@pytest.mark.parametrize("serving", [1, 2, None], ids=["serves", "was replaced", "was rolled back"])
def test_what_was_published_is_not_made_again(shop: Workspace, serving: int | None) -> None:
    ended(shop, version=1, serving=serving)
    assert "published model version 1" in ended_before(shop, NOW)


@pytest.mark.parametrize("changed", ["data_version", "config", "code"])
def test_another_input_is_another_retraining(shop: Workspace, changed: str) -> None:
    ended(shop, version=1)
    assert ended_before(shop, NOW | {changed: "another"}) == ""


def test_what_was_refused_may_pass_against_another_model(shop: Workspace) -> None:
    ended(shop, version=None, passed=False)
    assert ended_before(shop, NOW).endswith("which the gate refused: tail accuracy 0.2")
    assert ended_before(shop, NOW | {"serving": 2}) == ""


def test_a_run_that_was_killed_before_it_published_does_not_count(shop: Workspace) -> None:
    ended(shop, version=None)
    assert ended_before(shop, NOW) == ""
    (shop.runs / "20260101-030000-abcdef" / "run.json").write_text('{"model_ver')
    assert ended_before(shop, NOW) == ""


def test_a_run_on_another_machine_is_not_taken_for_crashed(shop: Workspace) -> None:
    note(shop, ScheduledRun("2026-01-01T03:00:00Z", "running", "", "a", "1@another boot:7@elsewhere"))
    assert [run.outcome for run in history(shop)] == ["running"]


def test_the_last_word_of_a_run_counts_and_none_is_a_crash(shop: Workspace) -> None:
    assert history(shop) == []
    first = ScheduledRun("2026-01-01T03:00:00Z", "running", "", "a", f"1@another boot:7@{platform.node()}")
    note(shop, first)
    note(shop, ScheduledRun("2026-01-08T03:00:00Z", "unchanged", "same", "b", "2@x@y"))
    with (shop.state / "scheduled.jsonl").open("a") as file:
        file.write('{"at": "2026-01-15T03')  # killed in the middle of a line
    assert [(run.flow_run, run.outcome) for run in history(shop)] == [("b", "unchanged"), ("a", "crashed")]
    note(shop, ScheduledRun("2026-01-22T03:00:00Z", "published", "version 1", "c", "3@x"))
    assert [run.flow_run for run in history(shop)] == ["c", "b", "a"], "and the next one goes on"


@pytest.mark.faults
@pytest.mark.parametrize("name", ["run.json", "inputs.json"])
def test_a_broken_record_of_a_run_proves_nothing_else(shop: Workspace, name: str) -> None:
    """Cached results are then reused or made again, and a new record is written (I21)."""
    ended(shop, version=1)
    said = ended_before(shop, NOW)
    assert said
    for way in ways(shop.runs / "20260101-030000-abcdef" / name, flips=200):
        found = ended_before(shop, NOW)
        assert found in ("", said) or found.startswith(said[:-1]), way  # a digit of the version that it names, at most


@pytest.mark.faults
def test_broken_lines_of_the_schedule_are_passed_over(shop: Workspace) -> None:
    for run in "abc":
        note(shop, ScheduledRun("2026-01-01T03:00:00Z", "unchanged", "same", run, "2@x"))
    for way in ways(shop.state / "scheduled.jsonl", flips=200):
        assert len(history(shop)) >= (2 if "bit" in way else 0), way


def test_a_period_counts_on_from_the_last_scheduler(shop: Workspace) -> None:
    from flows.scheduler.runner import anchor, timetable, write_plan

    plan, due = make_plan(shop, "demo", overrides=[], every="7d"), datetime(2026, 12, 3, 4, 5, tzinfo=UTC)
    assert anchor(plan) is None, "there was none"
    write_plan(shop, plan, due=due.isoformat())
    assert anchor(plan) == due
    times = timetable(plan, anchor=due)
    assert times is not None
    assert times.anchor_date == due
    assert anchor(make_plan(shop, "demo", overrides=[], every="6d")) is None, "another period counts from now"
    for text in ("[]", '{"next": null, "every_s": 604800.0}', "{", json.dumps({"next": "", "every_s": 604800.0})):
        (shop.state / "schedule.json").write_text(text)
        assert anchor(plan) is None, text
