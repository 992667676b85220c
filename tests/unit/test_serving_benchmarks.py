"""Parts of the serving benchmarks: where the time of a request went, and the phase of a switch that it fell into."""

from __future__ import annotations

import json
import os
import time
from functools import partial

import numpy as np
import pytest
from load import anatomy, sessions
from load.generator import Outcome
from load.phases import Phase, phase_of


def phase(name: str, began: float, ended: float) -> Phase:
    return Phase(name, began, ended, 0.0, 0.0)


@pytest.mark.parametrize(
    ("sent", "answered", "name"),
    [(0.0, 0.9, None), (0.9, 1.2, "load"), (1.5, 2.9, "unload"), (1.2, 2.1, "load"), (3.0, 4.0, None)],
)
def test_a_request_counts_for_the_phase_that_it_overlaps_most(sent: float, answered: float, name: str | None) -> None:
    assert phase_of([phase("load", 1, 2), phase("unload", 2, 3)], sent, answered) == name


def test_without_phases_no_request_falls_into_one() -> None:
    assert phase_of([], 0, 1) is None


def test_answers_are_noted_with_their_ends() -> None:
    outcome = Outcome()
    outcome.answered(since=time.perf_counter() - 1)
    outcome.add(outcome)
    assert outcome.ends[0] - outcome.latencies[0] == pytest.approx(time.perf_counter() - 1, abs=0.1)
    assert len(outcome.ends) == len(outcome.latencies) == 2


def test_processor_time_is_counted_while_the_context_lasts() -> None:
    with anatomy.spent(cpu=time.process_time, busy=partial(anatomy.machine, "busy")) as used:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert used["cpu"] == pytest.approx(0.2, abs=0.05)
    assert used["busy"] > 0.15


@pytest.mark.parametrize("server", ["triton", "fastapi"])
def test_the_parts_add_up_to_the_whole(
    server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 photos in batches of 1 and 4, for which ONNX Runtime takes 2 ms each."""
    monkeypatch.setattr(sessions, "cpu_ms_per_image", lambda *_, **__: 2.0)
    clock = 1.0
    used = {"client": 0.1, "server": 0.4, "stub": 0.3, "stolen": 0.1, "idle": clock * (os.cpu_count() or 1) - 1.2}
    if server == "fastapi":
        del used["stub"]
    clocks = {"triton queue": 1.0, "triton compute_input": 0.1, "triton compute_infer": 2.0, "triton success": 3.5}
    found = {**used, "busy": 1.1, "clock": clock, "photos": 100, "waited": 4.0, "batch 1": 20, "batch 4": 20,
                     "triton compute_output": 0.2, **clocks}  # fmt: skip
    anatomy.tell("x", found, [], np.zeros((4, 8, 8, 3), np.uint8), server=server)
    figures = {line["figure"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert figures["x_cpu_ms_sum"]["value"] == pytest.approx(figures["x_cpu_ms_sum"]["baseline"], abs=0.01)
    assert figures["x_cpu_ms_onnxruntime"]["value"] == 2.0
    assert figures["x_mean_batch"]["value"] == 2.5
    if server == "triton":
        assert figures["x_cpu_ms_stub"]["value"] == 1.0
        assert figures["x_clock_ms_sum"]["value"] == figures["x_clock_ms_sum"]["baseline"] == 40.0
        assert figures["x_clock_ms_triton"]["value"] == 2.0
    else:
        assert figures["x_cpu_ms_fastapi"]["value"] == 2.0
