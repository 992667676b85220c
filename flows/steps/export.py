"""Export of the networks as one ONNX graph, and of its variants."""

from __future__ import annotations

import json
from pathlib import Path

from flows.data.history import descent
from flows.data.versions import DataVersions
from flows.run.launch import num_workers, run_child
from flows.run.measure import MEASURED
from flows.run.run import Run, code_hash
from flows.run.step import step
from flows.settings import REPOSITORY
from flows.steps.learn import calibrate
from flows.steps.publish import log, read_json
from flows.workspace.ledger import run_git
from flows.workspace.results import Calibration, Crops, DataFolder, Exported, Served
from models.recipe.config import digest

EXPORTED = ("model.onnx", "golden.npy", "parity.json", *MEASURED)  # files of an Exported


@step("export")
def export(run: Run, data: DataFolder, served: Served, crops: Crops, calibration: Calibration) -> Exported:
    """The graph with its card, checked against torch and measured: model.onnx, parity.json, accuracy.json."""
    parts = (*served.networks, served.weights, crops, calibration)
    card = {
        "data_version": data.name,
        "data_parents": json.dumps(descent(data.name, DataVersions(run.workspace).known_entries())[1:]),
        "stages": json.dumps({folder.name: read_json(folder / "done.json") for folder in (*served.made_from, *parts)}),
        "commit": commit(),
        "code_hash": code_hash(),
        "config_hash": digest(run.recipe),
        "recipe": run.recipe.name,
        "produced_by": "cleanshelf",
    }

    def work(out: Path) -> None:
        (out / "card.json").write_text(json.dumps(card), encoding="utf-8")
        networks = [folder / "network.pt" for folder in served.networks]
        arguments = ["--data", data, "--recipe", run.recipe_file, "--card", out / "card.json", "--out", out]
        arguments += ["--ensemble", served.weights / "ensemble.json", "--crops", crops / "crops.json"]
        arguments += ["--calibration", calibration / "calibration.json"]
        arguments += ["--networks", *networks]
        run_child("models.export", arguments, say=lambda line: log.info("export: %s", line), on_gpu=True,
                  workers=num_workers(0))  # fmt: skip

    names = [folder.name for folder in parts]
    return Exported(
        run.cached("export", data.name, names, run.recipe.export, digest(run.recipe), files=EXPORTED, work=work)
    )


@step("use {count} crops")
def in_crops(run: Run, crops: Crops, count: int) -> Crops:
    """crops.json with `count` crops at the chosen enlargement, without measurements."""
    chosen = read_json(crops / "crops.json")

    def work(out: Path) -> None:
        content = {"crops": count, "enlarge": chosen["enlarge"], "gain": None, "tried": []}
        (out / "crops.json").write_text(json.dumps(content, indent=1), encoding="utf-8")

    return Crops(run.cached(f"crops-{count}", chosen["enlarge"], count, files=["crops.json"], work=work))


def export_other_crops(run: Run, data: DataFolder, served: Served, crops: Crops) -> list[Exported]:
    """The same networks exported with every other number of crops, if the recipe asks for variants."""
    chosen = read_json(crops / "crops.json")["crops"]
    others = [in_crops(run, crops, count) for count in run.recipe.export.levels if count != chosen]
    calibrations = [calibrate(run, data, served, each) for each in others]
    return [export(run, data, served, *pair) for pair in zip(others, calibrations, strict=True)]


@step("choose variant")
def choose_variant(run: Run, data: DataFolder, graph: Exported, others: list[Exported]) -> Exported:
    """The graph to publish: the export, or its variant in the recipe's precision if that is offered; with variants.json."""
    settings = run.recipe.export
    if not settings.precisions:
        return graph

    def work(out: Path) -> None:
        arguments = ["--data", data, "--recipe", run.recipe_file, "--graph", graph, "--out", out, "--levels", *others]
        run_child("models.export.variants", arguments, say=lambda line: log.info("variants: %s", line), on_gpu=True,
                  workers=num_workers(0))  # fmt: skip

    names = [folder.name for folder in (graph, *others)]
    return Exported(
        run.cached("variants", data.name, names, settings, run.recipe.proof.file, files=EXPORTED, work=work)
    )


def commit() -> str:
    """The git commit of CleanShelf itself, followed by + if its files were changed; "" outside a clone."""
    answer = run_git(REPOSITORY, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*")
    return answer.stdout.decode().strip() if answer.returncode == 0 else ""
