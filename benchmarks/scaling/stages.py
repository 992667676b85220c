"""Stages of the benchmark: each is one command of `cleanshelf` in a workspace of its own, run once and then remembered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from contract.environment import process_variables
from scaling.assortment import SIDE, deliver
from scaling.watched import Taken, Watch

START = (sys.executable, "-c", "from flows.cli import main; main()")
MEMORY = Path("/dev/shm")  # a quarter of a million small files take minutes on a disk and seconds here
RECIPE = """name = "scale"
{members}
[loss]
name = "ce"

[train]
epochs = {epochs}
epoch_length = {epoch_length}
batch_size = 128

[clean]
folds = 2
epochs = 1
rule = "posterior"
use = "weigh"
correct = true

[balance]
epochs = 0

[export]
input_size = {side}
crops = 2

[gate]
above_chance = -1  # after this little training nothing is proven
class_floor = 0
"""
MEMBER = """
[[members]]
backbone = "test_resnet"
size = {side}
seed = {seed}
"""
PORTS = ("--http-port", "18800", "--grpc-port", "18801", "--metrics-port", "18802")
REFUSED, MAY_BE_REFUSED = (
    4,
    ("enrol",),
)  # exit code of a gate, and stages of which a network that hardly learnt may fail it
EACH = 5  # photos of a class, on average, unless another number is asked for
FEW = 200  # photos that the endpoint is asked about


@dataclass(frozen=True)
class Size:
    """Size of a drawn assortment, and the recipe's parts that decide how long its training takes."""

    classes: int
    photos: int
    members: int = 1
    epochs: int = 1
    epoch_length: int = 20_000


class Place:
    """The workspace of one size below `root`, and what its stages took so far (scale.json)."""

    def __init__(self, root: Path, size: Size) -> None:
        self.size = size
        self.folder = root / f"{size.classes}-{size.photos}-{size.members}"
        self.workspace, self.delivery = self.folder / "workspace", self.folder / "delivery"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / "scale.json"

    @property
    def at(self) -> str:
        """The size in words."""
        return f"{self.size.classes:,} x {self.size.photos:,}"

    @property
    def taken(self) -> dict[str, Taken]:
        """Cost of each finished stage."""
        if not self._file.exists():
            return {}
        return {name: Taken(**each) for name, each in json.loads(self._file.read_bytes()).items()}

    def note(self, taken: dict[str, Taken]) -> None:
        """Adds stages to those that are finished."""
        content = {name: asdict(each) for name, each in (self.taken | taken).items()}
        self._file.write_text(json.dumps(content, indent=1), encoding="utf-8")

    def command(self, stage: str, *words: object, step: Callable[[], str] | None = None) -> None:
        """Runs a verb, whose output goes to STAGE.log, and notes what it took, also of a verb that fails.

        step: the name of the part that runs now; by default all of it is one stage.

        Raises:
            SystemExit: the verb failed, and not because a gate refused something; a later call goes on where it ended.
        """
        self.watch(stage, [*START, *map(str, words), "--workspace", str(self.workspace)], step=step)

    def watch(
        self, stage: str, command: Sequence[str], *, step: Callable[[], str] | None = None, folders: Sequence[str] = ()
    ) -> None:
        """Runs a command as `command` does; `folders`: further ones from which it imports."""
        watch, log = Watch(step or (lambda: stage)), self.folder / f"{stage}.log"
        variables = process_variables()
        variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], *folders])
        code = watch.run(command, log=log, variables=variables)
        print(f"{stage}: exit code {code}", file=sys.stderr, flush=True)
        self.note({name: each for name, each in watch.taken.items() if each.seconds > _reused_s(self.taken.get(name))})
        if code and not (code == REFUSED and stage in MAY_BE_REFUSED):
            raise SystemExit(f"{stage} ended with code {code}; its output is in {log}")


def _reused_s(before: Taken | None) -> float:
    """Seconds above which a step counts as computed rather than found again."""
    return 0.0 if before is None else before.seconds / 2


def draw(place: Place) -> None:
    """Draws the delivery, in memory where there is room, and links it as `delivery`."""
    began, size = (time.monotonic(), time.process_time()), place.size
    needed = 8192 * size.photos
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * needed
    folder = MEMORY / f"cleanshelf-scale-{os.getuid()}-{size.classes}" if in_memory else place.folder / "drawn"
    shutil.rmtree(folder, ignore_errors=True)
    deliver(folder, classes=size.classes, photos=size.photos)
    place.delivery.unlink(missing_ok=True)
    place.delivery.symlink_to(folder)
    place.note({"draw": Taken(time.monotonic() - began[0], time.process_time() - began[1])})


def ingest(place: Place) -> None:
    """Ingests the delivery, and removes it."""
    place.command("init", "init")
    place.command("ingest", "ingest", place.delivery.resolve())
    keep = sorted(place.delivery.rglob("*.jpg"))[:: max(place.size.photos // FEW, 1)]
    kept = place.folder / "few"
    kept.mkdir(exist_ok=True)
    for photo in keep:
        shutil.copy(photo, kept)
    shutil.rmtree(place.delivery.resolve())


def retrain(place: Place) -> None:
    """Plans the retraining, and runs it; each of its steps is a stage of its own."""
    size, file = place.size, place.folder / "scale.toml"
    members = "".join(MEMBER.format(side=SIDE, seed=seed) for seed in range(1, size.members + 1))
    text = RECIPE.format(members=members, epochs=size.epochs, epoch_length=size.epoch_length, side=SIDE)
    file.write_text(text, encoding="utf-8")
    place.command("plan", "plan", file)
    place.command("retrain", "retrain", file, step=lambda: step_of(place.workspace))


def step_of(workspace: Path) -> str:
    """The step of the newest run that is under way; "between steps" outside one."""
    records = sorted((workspace / "runs").glob("*-*/events.jsonl"))
    running: list[str] = []
    for line in records[-1].read_text(encoding="utf-8").splitlines() if records else ():
        with_step = _event(line)
        if with_step.get("event") == "started":
            running.append(str(with_step["step"]))
        elif with_step.get("event") in ("finished", "failed") and with_step["step"] in running:
            running.remove(str(with_step["step"]))
    return running[-1] if running else "between steps"


def _event(line: str) -> dict[str, object]:
    try:
        return dict(json.loads(line))
    except ValueError:  # it is being written
        return {}


def serve(place: Place) -> None:
    """Loads the published version into a server, asks it, enrols a product, and ends the server."""
    few, answers = sorted((place.folder / "few").glob("*.jpg")), place.folder / "answers.parquet"
    shutil.rmtree(answers, ignore_errors=True) if answers.is_dir() else answers.unlink(missing_ok=True)
    place.command("serve", "serve", "--detach", *PORTS)
    try:
        place.command("recognise", "recognise", place.folder / "few", "--out", answers)
        place.command("enrol", "enrol", "A new product", *few[:5], "--set", "gate.enrol=1")
        place.command("drift", "drift", place.folder / "few")
    finally:
        place.command("stop", "serve", "--stop")


def clean(place: Place) -> None:
    """Draws the scores of a million photos, or of as many as the size names, and cleans their labels."""
    folder = place.folder / "scores"
    for part in ("draw", "clean"):
        words = [sys.executable, "-m", "scaling.cleaning", folder, place.size.photos, place.size.classes, part]
        name = {"draw": "draw of scores", "clean": "cleaning"}[part]
        place.watch(name, list(map(str, words)), folders=[str(Path(__file__).parents[1])])
    shutil.rmtree(folder)


def profile(place: Place) -> None:
    """Balances the first member and calibrates once more, each in a process that notes the seconds of torch's operators."""
    stages, report = place.workspace / "runs" / "stages", newest(place.workspace, "runs/*-*/run.json")
    data = place.workspace / "versions" / json.loads(report.read_bytes())["data_after"]
    balanced = [newest(stages, f"balance-{number}-*/network.pt") for number in range(1, place.size.members + 1)]
    ensemble, crops = newest(stages, "ensemble-*/ensemble.json"), newest(stages, "crops-*/crops.json")
    modules = {
        "balance": ("models.training.decoupling", "--network", newest(stages, "train-1-*/network.pt")),
        "calibrate": ("models.export.calibrate", "--ensemble", ensemble, "--crops", crops, "--networks", *balanced),
    }
    variables = process_variables()
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], str(Path(__file__).parents[1])])
    for name, words in modules.items():
        out, again = place.folder / f"{name}.profile.json", place.folder / f"{name}-again"
        again.mkdir(exist_ok=True)
        words = (*words, "--data", data, "--recipe", report.with_name("recipe.json"), "--out", again)
        command = [sys.executable, "-m", "scaling.profiled", out, *words]
        with (place.folder / f"profile of {name}.log").open("wb") as log:
            subprocess.run(list(map(str, command)), env=variables, stdout=log, stderr=log, check=True)


def newest(folder: Path, pattern: str) -> Path:
    """The file that was written last of those whose path below the folder fits the pattern."""
    return max(folder.glob(pattern), key=lambda file: file.stat().st_mtime)


STAGES: dict[str, Callable[[Place], None]] = {
    "draw": draw,
    "ingest": ingest,
    "retrain": retrain,
    "serve": serve,
    "cleaning": clean,
    "profile": profile,
}
WHOLE = ("draw", "ingest", "retrain", "serve")  # stages of a size, one after the other


def run(place: Place, names: Sequence[str]) -> None:
    """Runs those of these stages that have not ended well yet."""
    for name in names:
        marker = place.folder / f"{name}.done"
        if not marker.exists():
            STAGES[name](place)
            marker.touch()
