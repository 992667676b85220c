"""Training and export, killed at any point: files are whole, and a resumed run ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch

from durable import sha256
from flows.delivery.build import build_version
from flows.run.run import is_finished
from models.errors import CheckpointMismatch
from models.evaluation.scores import read_scores
from models.export.calibrate import Chosen
from models.export.ood import UNCALIBRATED
from models.export.patch import external_files, read_metadata
from models.export.session import open_session
from models.recipe.config import Recipe, from_dict, to_dict
from models.training import checkpoint
from models.training.job import Job
from models.training.train import train
from tests import exporting
from tests.deliveries import deliver
from tests.graphs import golden_images, write_graph
from tests.kills import Kills

pytestmark = pytest.mark.faults

PHOTOS = {"apple": 9, "bean": 9, "corn": 6}


def recipe(**train: Any) -> Recipe:
    """Recipe with a stateful loss and a checkpoint after each step."""
    tables = {
        "name": "tiny",
        "members": [{"backbone": "test_resnet", "size": 32, "seed": 3}],
        "loss": {"name": "marvel", "params": {"start_epoch": 1, "run": 1}},
        "train": {"epochs": 2, "batch_size": 8, "threads": 1, "checkpoint_minutes": 0} | train,
        "export": {"input_size": 40},
    }
    return from_dict(tables)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data version."""
    folder = tmp_path_factory.mktemp("version")
    build_version(deliver(folder / "source", PHOTOS, side=40), base=None, out=folder / "data")
    return folder / "data"


def result(out: Path) -> tuple[Any, ...]:
    """Everything that a training leaves: weights, probabilities, epochs and the loss's memory of samples."""
    state = torch.load(out / "network.pt", weights_only=True)["state"]
    scores = read_scores(out / "scores.parquet")
    epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    memory = pq.read_table(out / "samples.parquet").to_pydict()
    return {name: value.tolist() for name, value in state.items()}, scores.probs.tolist(), epochs, memory


@pytest.mark.slow
def test_training(kills: Kills, data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe())))
    train(Job(data=data, recipe=recipe(), member=0, out=tmp_path / "whole"))
    whole = result(tmp_path / "whole")

    def prepare(folder: Path) -> Sequence[object]:
        return ["models.training.train", "--data", data, "--recipe", tmp_path / "recipe.json", "--out", folder]

    def check(folder: Path) -> None:
        job, other = (Job(data=data, recipe=each, member=0, out=folder) for each in (recipe(), recipe(lr=0.5)))
        if (folder / "checkpoint.pt").exists():
            checkpoint.load(folder / "checkpoint.pt", key=job.key)
            with pytest.raises(CheckpointMismatch, match="was written for"):
                train(other)
        train(job)
        assert result(folder) == whole
        assert not (folder / "checkpoint.pt").exists()

    kills.strike("training", promises="I8 to I10", prepare=prepare, check=check)


@pytest.mark.slow  # make soak kills it twenty times
def test_export(kills: Kills, data: Path, tmp_path: Path) -> None:
    written = {"recipe": to_dict(recipe()), "card": {"recipe": "tiny"}, "ensemble": {"weights": [1.0]},
               "crops": {"crops": 1, "enlarge": 1.0}, "calibration": Chosen(UNCALIBRATED).to_dict()}  # fmt: skip
    train(Job(data=data, recipe=recipe(), member=0, out=tmp_path))
    options: list[object] = ["--data", data, "--networks", tmp_path / "network.pt"]
    for name, content in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        options += [f"--{name}", tmp_path / f"{name}.json"]
    arguments = [str(word) for word in options]
    whole = exporting.export(str(tmp_path), *arguments)
    answers = open_session(whole / "model.onnx").run(None, {"image": np.load(whole / "golden.npy")})

    def prepare(folder: Path) -> Sequence[object]:
        return ["tests.exporting", "export", folder, *arguments]

    def check(folder: Path) -> None:
        step = folder / "runs" / "stages" / whole.name
        graph = step / "model.onnx"
        if graph.exists():
            onnx.checker.check_model(graph, full_check=True)
            found = open_session(graph).run(None, {"image": np.load(whole / "golden.npy")})
            assert all(np.array_equal(each, answer) for each, answer in zip(found, answers, strict=True))
        if (step / "done.json").exists():
            assert is_finished(step)
        exporting.export(str(folder), *arguments)
        assert {path.name: sha256(path) for path in step.iterdir()} == expected

    expected = {path.name: sha256(path) for path in whole.iterdir()}
    kills.strike("export", promises="I12", prepare=prepare, check=check)


@pytest.mark.slow
def test_writing_a_graph_with_external_weights(kills: Kills, tmp_path: Path) -> None:
    """Overwrites another graph with external weights, which must never be taken for those of the new graph."""
    graphs = [write_graph(tmp_path / f"{seed}.onnx", seed=seed) for seed in (1, 2)]
    answers = [open_session(graph).run(["probs"], {"image": golden_images()})[0] for graph in graphs]

    def prepare(folder: Path) -> Sequence[object]:
        exporting.write(str(graphs[0]), str(folder / "model.onnx"))
        return ["tests.exporting", "write", graphs[1], folder / "model.onnx"]

    def check(folder: Path) -> None:
        path = folder / "model.onnx"
        if path.exists():
            onnx.checker.check_model(path, full_check=True)
            [weights] = external_files(path)
            assert read_metadata(path)["weights_sha256"] == sha256(folder / weights)
            found = open_session(path).run(["probs"], {"image": golden_images()})[0]
            assert any(np.array_equal(found, answer) for answer in answers)
        exporting.write(str(graphs[1]), str(path))
        assert np.array_equal(open_session(path).run(["probs"], {"image": golden_images()})[0], answers[1])

    kills.strike("writing a graph with its weights beside it", promises="I12, I13", prepare=prepare, check=check)
