"""Claim: ingestion and scoring on two and four machines cost as much processor time per photo as on one.

    python benchmarks/many_machines.py [--photos 20000] [--machines 1 2 4]

Machines are network namespaces of this one with a Dask worker each, so root is needed. They share its cores: with fewer cores
than machines the time cannot fall, and photos per second of processor time say what many machines cost. Each number of machines
ingests the same drawn delivery into a workspace of its own, and scores it in as many folds as there are machines at most.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from figure import figure, header, unmeasured
from scaling.assortment import SIDE, deliver
from scaling.machines import Machines, cluster
from scaling.stages import START

CLAIM = "several machines ingest and score photos at the processor time of one"
ROOT = Path(__file__).resolve().parents[1]
EACH, FOLDS, EFFICIENCY = 20, 4, 0.8
RECIPE = f"""name = "machines"

[[members]]
backbone = "test_resnet"
size = {SIDE}
seed = 1

[loss]
name = "ce"

[train]
batch_size = 128
epoch_length = 512

[clean]
folds = {FOLDS}
epochs = 1
rule = "log_margin"

[export]
input_size = {SIDE}
"""


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args(words)
    header(CLAIM)
    with TemporaryDirectory() as name:
        delivery = Path(name) / "delivery"
        deliver(delivery, classes=max(args.photos // EACH, 2), photos=args.photos)
        rates: dict[str, float] = {}
        for count in args.machines:
            folder = Path(name) / str(count)
            folder.mkdir()
            try:
                with cluster(count, folder, ROOT) as machines:
                    measure(machines, delivery, args.photos, rates)
            except subprocess.CalledProcessError as error:
                unmeasured(f"{count} machines", f"{' '.join(map(str, error.cmd))}: {error.stderr.strip()}")


def measure(machines: Machines, delivery: Path, photos: int, rates: dict[str, float]) -> None:
    """Prints the figures of one number of machines; `rates`: photos per processor second of the first one, by the stage."""
    workspace, recipe = machines.folder / "workspace", machines.folder / "machines.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    run(machines, "init", "--workspace", workspace)
    for name, verb in (("ingestion", ["ingest", delivery]), ("scoring", ["clean", recipe])):
        began, busy_s = time.monotonic(), machines.busy_s()
        run(machines, *verb, "--workspace", workspace)
        seconds = time.monotonic() - began if name == "ingestion" else scored_s(workspace)
        rate = photos / max(machines.busy_s() - busy_s, 1e-3)
        first = rates.setdefault(name, rate)
        on = f"{name} on {len(machines.names)} machines"
        figure(f"{on}, photos/s", round(photos / seconds, 1), target="told", met=True, baseline=None)
        figure(f"{on}, photos per processor second of the workers, over one machine's", round(rate / first, 3),
               target=f">= {EFFICIENCY}", met=rate / first >= EFFICIENCY, baseline=None)  # fmt: skip


def scored_s(workspace: Path) -> float:
    """Seconds from the start of the first fold to the end of the last."""
    (record,) = workspace.glob("runs/*-*/events.jsonl")
    events = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    times = [
        datetime.fromisoformat(each["at"]) for each in events if str(each.get("step", "")).startswith("score fold")
    ]
    return (max(times) - min(times)).total_seconds()


def run(machines: Machines, *words: object) -> None:
    """Runs a verb that uses the cluster.

    Raises:
        SystemExit: it failed; its output is in VERB.log.
    """
    log = machines.folder / f"{words[0]}.log"
    with log.open("wb") as file:
        done = subprocess.run(
            [*START, *map(str, words)], stdout=file, stderr=file, env=machines.variables, cwd=ROOT, check=False
        )
    if done.returncode:
        print(log.read_text(encoding="utf-8", errors="replace")[-2000:], file=sys.stderr)
        raise SystemExit(f"{words[0]} ended with code {done.returncode}")


if __name__ == "__main__":
    main()
