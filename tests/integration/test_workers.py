"""Trainings by one, two and three real processes, with the same result."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from flows.delivery.build import build_version
from flows.errors import ChildFailed
from flows.run.launch import end_children, run_child
from models.data.manifest import read_manifest, write_labels
from models.evaluation.scores import read_scores
from models.export import calibrate
from models.export.__main__ import describe
from models.export.calibrate import Chosen, read_calibration
from models.export.graph import DeployGraph
from models.export.measure import write_answers
from models.export.onnx_file import write_onnx
from models.export.ood import SCORES, UNCALIBRATED
from models.export.patch import read_metadata
from models.recipe.config import Export, to_dict
from models.training import checkpoint
from models.training.train import load_network, save_network
from serving.server.process import until
from tests.deliveries import deliver
from tests.recording_loss import ALL, MARVEL, RECIPE, SHARDED, train, training_job
from tests.unit.models.test_export import trained

ROOT = Path(__file__).parents[2]
EXPORT = Export(input_size=40, crops=2)

PROGRAM = """
import sys, torch
from pathlib import Path
from models.distributed import any_of, average_buffers, gather, part, rank, summed, total, workers, world

with workers():
    index = torch.tensor([7, 3, 3, 9, 0, 3, 5])
    value = torch.tensor([.5, 3., 1., .25, 4., 2., 8.])
    own = part(len(index))
    both = gather(index[own], value[own])
    rows = gather(index[own], torch.stack([index, value.long()], 1)[own])
    flags = gather(index[own], (value > 1)[own])
    none = gather(index[:0], value[:0])
    statistics = torch.nn.BatchNorm1d(1)
    statistics.running_mean += rank()
    average_buffers(statistics)
    result = (both, rows, flags, none, summed(index[part(1)].sum()), total(own.stop - own.start),
              any_of(rank() == world() - 1, False),
              float(statistics.running_mean) - (world() - 1) / 2)
    torch.save(result, Path(sys.argv[1]) / f"{world()}-{rank()}.pt")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("version") / "data"
    build_version(
        deliver(tmp_path_factory.mktemp("source"), {"apple": 13, "bean": 9, "corn": 6, "dill": 1}, side=40),
        base=None,
        out=out,
    )
    return out


def run_workers(count: int, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count, *arguments]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([str(word) for word in command], check=True, timeout=200, cwd=ROOT, env=os.environ | variables)


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(training_job(data, out / "views-1"))
    train(training_job(data, out / "features-1", backbone_lr_scale=0.0))
    train(training_job(data, out / "marvel-1", MARVEL, l1=0.0))
    train(training_job(data, out / "all-1", ALL))
    train(training_job(data, out / "sharded-1", SHARDED))
    run_workers(2, "-m", "tests.recording_loss", data, out)
    assert torch.load(out / "moved" / "checkpoint.pt")["step"] in (1, 2), "halted in mid-epoch"
    run_workers(3, "-m", "tests.recording_loss", data, out)
    return out


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("photos_per_s", "waiting")} for line in lines]


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("views-2", "views-1"),
        ("views-3", "views-1"),
        ("features-2", "features-1"),
        ("marvel-2", "marvel-1"),
        ("marvel-3", "marvel-1"),
        ("all-2", "all-1"),
        ("sharded-2", "sharded-1"),
        ("moved", "views-1"),
    ],
)
def test_several_workers_give_the_result_of_one(out: Path, name: str, like: str) -> None:
    """`moved` is begun by two workers, halted in mid-epoch, and resumed by three."""
    assert len(metrics(out / name)) == 3
    for several, single in zip(metrics(out / name), metrics(out / like), strict=True):
        assert several == pytest.approx(single, abs=1.5e-6), "metrics.jsonl has six digits"
    weights, expected = (torch.load(out / each / "network.pt")["state"] for each in (name, like))
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], rtol=0, atol=1e-5)
    several, single = (read_scores(out / each / "scores.parquet") for each in (name, like))
    assert np.array_equal(several.id, single.id)
    assert np.array_equal(several.top[:, 0], single.top[:, 0])
    assert several.p_label == pytest.approx(single.p_label, abs=1e-6)
    assert not (out / name / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", ["marvel-2", "marvel-3"])
def test_several_workers_record_and_decide_the_same_as_one(out: Path, name: str) -> None:
    several, single = (pq.read_table(out / each / "samples.parquet") for each in (name, "marvel-1"))
    assert max(single["abandoned"].to_pylist()) > 0, "some photos are abandoned"
    for column in ("id", "run", "abandoned"):
        assert several[column] == single[column]
    assert several["margin"].to_numpy() == pytest.approx(single["margin"].to_numpy(), abs=1e-5, nan_ok=True)


def test_several_workers_measure_a_graph_as_one_does(data: Path, tmp_path: Path) -> None:
    """The first worker writes the graph; both ask it about their part of the test photos, and keep features."""
    network, recipe = (
        trained(32, seed=1, classes=read_manifest(data).classes),
        dataclasses.replace(RECIPE, export=EXPORT),
    )
    save_network(tmp_path / "network.pt", network.network, member=network.member, classes=network.classes, tau=0.0)
    written = {"recipe": to_dict(recipe), "card": {"recipe": "tiny"}, "ensemble": {"weights": [1.0]},
               "crops": {"crops": 2, "enlarge": 1.25}, "calibration": Chosen(UNCALIBRATED).to_dict()}  # fmt: skip
    for name, content in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    options = [word for name in written for word in (f"--{name}", tmp_path / f"{name}.json")]
    options += ["--data", data, "--networks", tmp_path / "network.pt", "--out", tmp_path / "two"]
    run_workers(2, "-m", "models.export", *options)
    (tmp_path / "one").mkdir()
    write_answers(tmp_path / "two" / "model.onnx", read_manifest(data), tmp_path / "one")
    left = {file.name for file in (tmp_path / "one").iterdir()}
    assert left == {"answers.npz", "accuracy.json", "rows.npy", "features-0.npy"}
    assert {file.name for file in (tmp_path / "two").iterdir()} == {*left, "model.onnx", "parity.json", "golden.npy"}
    one, two = (np.load(tmp_path / each / "answers.npz") for each in ("one", "two"))
    assert len(one["ranked"]) > 2
    assert np.array_equal(one["ranked"], two["ranked"])
    for name in ("rows.npy", "features-0.npy"):
        np.testing.assert_allclose(*(np.load(tmp_path / each / name) for each in ("one", "two")), atol=1e-5)
    figures = json.loads((tmp_path / "one" / "accuracy.json").read_text())
    assert json.loads(read_metadata(tmp_path / "two" / "model.onnx")["metrics"]) == figures


def saved(folder: Path, data: Path, **export: Any) -> list[object]:
    """Options of the command lines for two networks, which are written to the folder with a recipe and an ensemble."""
    classes = read_manifest(data).classes
    recipe = dataclasses.replace(RECIPE, export=dataclasses.replace(EXPORT, **export))
    written = {"recipe": to_dict(recipe), "ensemble": {"weights": [0.4, 0.6]}, "crops": {"crops": 2, "enlarge": 1.25}}
    options: list[object] = ["--data", data]
    for name, content in written.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        options += [f"--{name}", folder / f"{name}.json"]
    options += ["--networks"]
    for seed, size in ((1, 32), (2, 24)):
        network = trained(size, seed=seed, classes=classes)
        save_network(folder / f"{seed}.pt", network.network, member=network.member, classes=classes)
        options.append(folder / f"{seed}.pt")
    return options


def test_several_workers_calibrate_as_one_does(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(data)
    halved = Path(shutil.copytree(data, tmp_path / "data"))
    split = np.where((np.arange(len(manifest)) % 2 == 0) & (manifest.target != 3), "val", "train")
    write_labels(halved, dataclasses.replace(manifest, split=split))
    options = saved(tmp_path, halved)
    run_workers(2, "-m", "models.export.calibrate", *options, "--out", tmp_path / "two")
    monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, options), "--out", str(tmp_path / "one")])
    calibrate.main()
    assert [file.name for file in sorted((tmp_path / "two").iterdir())] == ["calibration.json", "discriminants.npz"]
    (one, shown), (two, shown_to_two) = (
        read_calibration(tmp_path / each / "calibration.json") for each in ("one", "two")
    )
    assert (one.score, one.temperature, shown["photos"]) == (two.score, two.temperature, shown_to_two["photos"])
    assert len(shown["told_apart"]) == len(SCORES), "discriminants were fitted as well"
    assert shown_to_two["surprise"] == pytest.approx(shown["surprise"], abs=1e-5)
    assert (two.slope, two.threshold) == pytest.approx((one.slope, one.threshold), rel=1e-3)
    for name, figures in shown["told_apart"].items():
        assert shown_to_two["told_apart"][name] == pytest.approx(figures, abs=1e-6)
    for found, expected in zip(two.discriminants, one.discriminants, strict=True):
        for name, array in vars(expected).items():
            np.testing.assert_allclose(getattr(found, name), array, rtol=1e-4, atol=1e-4)


MAKING = """
import sys, time
from models import distributed
from models.export import variants
from models.training.command import run

out = sys.argv[sys.argv.index("--out") + 1]

def noted(what, work):
    def wrapped(*arguments, **options):
        began = time.monotonic()
        found = work(*arguments, **options)
        with open(f"{out}/times", "a") as file:
            file.write(f"{what} {distributed.rank()} {began} {time.monotonic()}" + chr(10))
        return found
    return wrapped

def time_each(graphs, **_):
    time.sleep(0.3)
    return [1.0, 2.0]

variants.time_each = noted("time", time_each)
variants.measure = noted("measure", variants.measure)
run(variants.main)
"""


@pytest.mark.slow
def test_several_workers_make_variants_as_one_does_and_the_first_times_them_alone(data: Path, tmp_path: Path) -> None:
    """An int8 variant is published, as it is said to be faster, and each worker asks it about its test photos."""
    (tmp_path / "program.py").write_text(MAKING)
    saved(tmp_path, data, precision="int8", fall=1.0)
    members = [load_network(tmp_path / f"{seed}.pt") for seed in (1, 2)]
    (tmp_path / "graph").mkdir()
    graph = DeployGraph(members, settings=EXPORT)
    write_onnx(graph, tmp_path / "graph" / "model.onnx", input_size=40, metadata=describe(
        members, graph, settings=EXPORT, calibration=UNCALIBRATED))  # fmt: skip
    for name in ("golden.npy", "parity.json"):
        (tmp_path / "graph" / name).touch()
    options = ["--data", data, "--recipe", tmp_path / "recipe.json", "--graph", tmp_path / "graph"]
    options += ["--levels", tmp_path / "graph"]
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        run_workers(count, tmp_path / "program.py", *options, "--out", tmp_path / str(count))
    one, two = (json.loads((tmp_path / each / "variants.json").read_text()) for each in ("1", "2"))
    assert [each["name"] for each in one] == ["int8", "crops2", "crops2"]
    assert one[0]["offered"]
    assert one == two
    left = [{file.name for file in (tmp_path / each).iterdir()} for each in ("1", "2")]
    assert left[0] == left[1] >= {"model.onnx", "int8.onnx", "answers.npz", "accuracy.json", "rows.npy"}
    metadata = [read_metadata(tmp_path / each / "model.onnx") for each in ("1", "2")]
    assert metadata[0] == metadata[1]
    assert json.loads(metadata[1]["variant"]) == two[0]
    spans = [line.split() for line in (tmp_path / "2" / "times").read_text().splitlines()]
    timed = [(float(began), float(ended)) for what, rank, began, ended in spans if what == "time" and rank == "0"]
    asked = [(rank, float(began), float(ended)) for what, rank, began, ended in spans if what == "measure"]
    assert len(timed) == 3 == len(spans) - len(asked)
    assert [rank for rank, *_ in asked].count("0") == [rank for rank, *_ in asked].count("1") == 4
    assert all(end <= began or start >= ended for _, start, end in asked for began, ended in timed)


def test_gathered_and_summed_values_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    count = 3
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run_workers(count, program, tmp_path)
    for number in range(count):
        both, rows, flags, none, sums, length, answers, off = torch.load(tmp_path / f"{count}-{number}.pt")
        assert both[0].tolist() == [0, 3, 3, 3, 5, 7, 9]
        assert both[1].tolist() == [4, 1, 2, 3, 8, 0.5, 0.25]
        assert rows[1].tolist() == [[0, 4], [3, 1], [3, 2], [3, 3], [5, 8], [7, 0], [9, 0]]
        assert flags[1].tolist() == [True, False, True, True, True, False, False]
        assert len(none[0]) == len(none[1]) == 0
        assert sums == 7, "the first worker has the only part"
        assert length == 7
        assert answers == (True, False)
        assert off == 0


LEARNING = """
import dataclasses, sys, pytest, torch
from pathlib import Path
import models.training.train
from models.recipe.config import Loss, Meta
from models.distributed import part, rank, workers, world
from models.training.hypergradient import hyper_gradient
from models.losses import build_loss
from tests.recording_loss import RECIPE, plain_network, training_job

data, trusted, out = map(Path, sys.argv[1:])
meta = Meta(photos=str(trusted), every=1, batch_size=5, head_only=False)
with workers(), pytest.MonkeyPatch.context() as patch:
    torch.manual_seed(0)
    answer = torch.nn.Linear(6, 5).double()
    x, y = torch.randn(2, 9, 6, dtype=torch.float64), torch.randint(5, (2, 9))
    batch, clean = ((x[i, part(9)], y[i, part(9)]) for i in range(2))
    found = hyper_gradient(build_loss("sce", 5), ["alpha", "beta"], parameters=list(answer.parameters()), rates=[.1, .2],
                           logits_of=answer, batch=batch, trusted=clean, ignore_length=True)
    patch.setattr(models.training.train, "build_network", plain_network)
    recipe = dataclasses.replace(RECIPE, loss=Loss(name="sce"), meta=meta)
    models.training.train.train(training_job(data, out / str(world()), recipe))
    torch.save(found, out / f"{world()}-{rank()}.pt")
"""


def test_several_workers_learn_the_parameters_of_a_loss_as_one_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, trusted = tmp_path / "program.py", tmp_path / "trusted.txt"
    program.write_text(LEARNING)
    manifest = read_manifest(data)
    trusted.write_text("\n".join(manifest.id[manifest.split == "train"][:6]))
    run_workers(2, program, data, trusted, tmp_path)
    monkeypatch.setattr(sys, "argv", ["", str(data), str(trusted), str(tmp_path)])
    exec(LEARNING, {})
    alone, *both = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert torch.equal(*both), "all workers take the same step"
    torch.testing.assert_close(both[0], alone, rtol=1e-9, atol=0)
    for several, single in zip(metrics(tmp_path / "2"), metrics(tmp_path / "1"), strict=True):
        assert several == pytest.approx(single, rel=5e-3), "a difference in float32, relative to its own size"
    assert len({line["loss.params.beta"] for line in metrics(tmp_path / "1")}) == 3


@pytest.mark.slow
@pytest.mark.faults
def test_a_flow_stops_its_workers_and_resumes_their_training(data: Path, tmp_path: Path) -> None:
    """Covers a network with batch norm, as flows train it."""
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, epochs=8))
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    arguments = ["--data", data, "--recipe", tmp_path / "recipe.json", "--out", tmp_path / "out"]
    output: list[str] = []
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run_child, "models.training.train", arguments, say=output.append, workers=2)
        assert until(lambda: (tmp_path / "out" / "checkpoint.pt").exists() or running.done(), timeout_s=60)
        end_children()
        assert isinstance(running.exception(timeout=20), ChildFailed)
    done = checkpoint.load(tmp_path / "out" / "checkpoint.pt")
    before = (done["epoch"], done["step"])
    run_child("models.training.train", arguments, say=output.append, workers=2)
    assert f"resuming after epoch {before[0]} and {before[1]} steps of the next" in output
    assert [line["epoch"] for line in metrics(tmp_path / "out")] == list(range(1, 9))
    assert len([line for line in output if line.startswith("loss ce:")]) == 2, (
        "only the first worker prints, in both runs"
    )
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_workers_meet_where_the_machines_own_name_does_not_resolve(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    renamed = ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid || exit 99; exec "$@"', "sh"]
    command = [*renamed, sys.executable, "-P", "-m", "flows.run.workers", "2", "program", str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONWARNINGS": "ignore"},
    ) as workers:  # fmt: skip
        try:
            said = workers.stdout.read() if until(lambda: workers.poll() is not None, timeout_s=60) else "still waiting"
        finally:
            workers.kill()
    if workers.returncode == 99 or "unshare" in said:
        pytest.skip("this machine permits no change of its name")
    assert (workers.returncode, (tmp_path / "2-1.pt").exists()) == (0, True), said
