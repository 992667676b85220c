"""One training by two machines, which are two network namespaces with a cable between them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from flows.delivery.build import build_version
from flows.run.launch import run_child
from models.recipe.config import to_dict
from models.training import checkpoint
from serving.server.process import until
from tests.command_line import ROOT
from tests.deliveries import deliver
from tests.recording_loss import RECIPE

PAGE = ROOT / "docs" / "tasks" / "several-machines.md"
HOST = "10.98.0.1"
CABLE = "shelf"  # name of the network interface of both machines
TRAIN = "models.training.train"
EPOCHS = 12


@dataclass
class Machines:
    """Two machines with one file system, and the training that they share."""

    names: list[str]
    folder: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, out: Path) -> None:
        """Starts the command of the documentation on both machines."""
        for number, name in enumerate(self.names):
            command = shlex.split(documented(self.folder, out, number))
            variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": CABLE}
            with (self.folder / f"log-{number}").open("wb") as log:
                self.started.append(subprocess.Popen(["ip", "netns", "exec", name, *command], stdout=log, stderr=log,
                                                     cwd=ROOT, env=os.environ | variables, start_new_session=True))  # fmt: skip

    def kill(self, number: int) -> None:
        """Kills all processes of a machine."""
        for pid in ip("netns", "pids", self.names[number]).stdout.split():
            os.kill(int(pid), signal.SIGKILL)

    def said(self, number: int) -> str:
        """Output of a machine."""
        return (self.folder / f"log-{number}").read_text(errors="replace")


def documented(folder: Path, out: Path, number: int) -> str:
    """The command of docs/tasks/several-machines.md for this machine, with the names of this test filled in."""
    found = re.search(r"^torchrun (?:.*\\\n)+.*$", PAGE.read_text(encoding="utf-8"), re.M)
    assert found is not None
    command = found[0].replace("\\\n", " ")
    filled = {"torchrun": f"{sys.executable} -m torch.distributed.run", "--nproc-per-node gpu": "--nproc-per-node 1",
              "NUMBER": str(number), "HOST": HOST, "versions/ID": str(folder / "data"),
              "runs/RUN/recipe.json": str(folder / "recipe.json"), "OUT": str(out)}  # fmt: skip
    for word, value in filled.items():
        assert word in command
        command = command.replace(word, value)
    return command


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


def connect(names: list[str]) -> str:
    """Makes two network namespaces with a cable between them; returns why it cannot, or "" if it has."""
    if not shutil.which("ip"):
        return "the command ip is not installed"
    ends = ["name", CABLE, "netns", names[0], "type", "veth", "peer", "name", CABLE, "netns", names[1]]
    steps = [*(["netns", "add", name] for name in names), ["link", "add", *ends]]
    for number, name in enumerate(names, start=1):
        steps += [["-n", name, "link", "set", "lo", "up"], ["-n", name, "link", "set", CABLE, "up"],
                  ["-n", name, "addr", "add", f"10.98.0.{number}/24", "dev", CABLE]]  # fmt: skip
    return next((done.stderr for step in steps if (done := ip(*step)).returncode), "")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    build_version(
        deliver(tmp_path / "source", {"apple": 13, "bean": 9, "corn": 6, "dill": 1}, side=40),
        base=None,
        out=tmp_path / "data",
    )
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, epochs=EPOCHS))
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    both = Machines([f"shelf-{os.getpid()}-{number}" for number in range(2)], tmp_path)
    try:
        if reason := connect(both.names):
            pytest.skip(f"no network namespaces here: {reason.strip()}")
        yield both
    finally:
        for number, process in enumerate(both.started):
            both.kill(number)
            process.wait()
        for name in both.names:
            ip("netns", "delete", name)


def train(machines: Machines, out: Path, *, workers: int = 1) -> list[str]:
    """Trains on one machine, as flows do; returns what it prints."""
    output: list[str] = []
    arguments = [
        "--data",
        machines.folder / "data",
        "--recipe",
        machines.folder / "recipe.json",
        "--member",
        0,
        "--out",
        out,
    ]
    run_child(TRAIN, arguments, say=output.append, workers=workers)
    return output


def break_off(machines: Machines, out: Path, *, cut: bool = False) -> tuple[float, float]:
    """Breaks the training off after its first checkpoint: kills the second machine, or cuts the cable.

    Returns:
        Seconds until each machine has ended.
    """
    machines.start(out)
    assert until(lambda: (out / "checkpoint.pt").exists(), timeout_s=120), machines.said(0)
    began = time.monotonic()
    if cut:
        ip("-n", machines.names[1], "link", "set", CABLE, "down")
    else:
        machines.kill(1)
    taken = []
    for process in machines.started:
        process.wait(timeout=120)
        taken.append(time.monotonic() - began)
    return taken[0], taken[1]


def resumed(machines: Machines, out: Path) -> bool:
    """True if one machine finishes the training from where the checkpoint left it."""
    done = checkpoint.load(out / "checkpoint.pt")
    output = train(machines, out)
    epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, EPOCHS + 1))
    return f"resuming after epoch {done['epoch']} and {done['step']} steps of the next" in output


@pytest.mark.slow
def test_two_machines_learn_the_same_as_two_processes_of_one(machines: Machines) -> None:
    one, two = machines.folder / "one", machines.folder / "two"
    machines.start(two)
    train(machines, one, workers=2)
    for number, process in enumerate(machines.started):
        assert process.wait(timeout=120) == 0, machines.said(number)
    expected, found = (torch.load(out / "network.pt", weights_only=False)["state"] for out in (one, two))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (one / "scores.parquet").read_bytes() == (two / "scores.parquet").read_bytes()


@pytest.mark.slow
@pytest.mark.faults
def test_a_machine_that_dies_ends_the_other_and_the_training_resumes(machines: Machines) -> None:
    out = machines.folder / "out"
    survivor, _ = break_off(machines, out)
    assert survivor < 30
    assert "WorkerLost: another worker ended, or its machine no longer answers; " in machines.said(0)
    assert resumed(machines, out)


@pytest.mark.faults
@pytest.mark.slow
def test_machines_whose_cable_is_cut_end_within_a_minute(machines: Machines) -> None:
    """Nothing arrives from a machine without network or power, not even the end of its connections."""
    out = machines.folder / "out"
    assert max(break_off(machines, out, cut=True)) < 60
    assert all("WorkerLost: another worker ended" in machines.said(number) for number in range(2))
    assert resumed(machines, out)
