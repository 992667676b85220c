"""The verbs of the command line, on one real retraining of drawn products."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.registry.versions import ModelVersions
from flows.sample.draw import draw
from flows.sample.families import assortment
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from serving.repository.repository import ModelRepository
from serving.server.environment import Environment
from tests.command_line import cleanshelf, snapshot
from tests.scheduling import scheduler, scheduler_log, wait_for_outcomes
from tests.surroundings import elsewhere, rough, traced

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.triton,
]

PRODUCTS = ("Müsli [0.5 l]", 'Kid\'s "best" cup', "Red :smile: tea")


@pytest.fixture(scope="session")
def delivery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two deliveries of three products in class folders: `first` with ten photos of each, `second` with three."""
    root = tmp_path_factory.mktemp("deliveries")
    random = np.random.default_rng(1)
    for label, sku in zip(PRODUCTS, assortment()[::9], strict=False):
        for folder, count in (("first", 10), ("second", 3)):
            (root / folder / label).mkdir(parents=True)
            for number in range(count):
                draw(sku, random).save(root / folder / label / f"{number}.jpg")
    return root


@pytest.fixture(scope="session")
def trained(delivery: Path, tmp_path_factory: pytest.TempPathFactory, triton_environment: Environment) -> Path:
    """A workspace with two data versions, the second of which model version 1 was trained on in rough surroundings."""
    root = tmp_path_factory.mktemp("trained")
    shop = Workspace.init(
        root / "a?b%20c #d'\"é"
    )  # a URL, a shell and a quoted string read these characters as their own
    for name in ("first", "second"):
        versions = DataVersions(shop)
        base = versions.materialise("selected") if versions.selected() else None
        folder = versions.new_folder()
        build_version(delivery / name, base=base, out=folder, parent=base.name if base else None)
        versions.commit(folder, step="ingest", message=name)
    env = {"CLEANSHELF_TRITON_ENV": str(triton_environment.path)}
    with rough(root / "here") as (here, variables):
        before = snapshot(here)
        done = cleanshelf(
            "retrain", "smoke", "--workspace", shop.root, "--json",
            env=env | variables, cwd=here, under=traced(root / "connections.log"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert snapshot(here) == before, "nothing of the user's was run, and no other database was opened"
    assert [path.parent for path in root.rglob("prefect.db")] == [shop.state / "prefect"]
    (root / "retrain.json").write_text(done.stdout)
    (root / "retrain.log").write_text(done.stderr)
    return shop.root


@pytest.fixture
def shop(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "shop", symlinks=True))


def run_json(*arguments: object, shop: Path) -> Any:
    """Output of a command with --json, which is JSON and nothing else."""
    done = cleanshelf(*arguments, "--workspace", shop, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=pytest.fail)


def stdout(*arguments: object, shop: Path, **environment: str) -> str:
    """Output of a command that succeeds."""
    done = cleanshelf(*arguments, "--workspace", shop, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def publish_again(shop: Path) -> None:
    """Publishes model version 2: the same graph, with a lineage that names the first data version."""
    models, repository = ModelVersions(Ledger(shop)), ModelRepository(shop / "repository")
    lineage = models.lineage(1) | {"data_version": DataVersions(Workspace(shop)).log()[-1].id}
    golden = np.load(shop / "repository" / "products" / "1" / "golden.npz")["image"]
    graph = shop / "repository" / "products" / "1" / "model.onnx"
    repository.write(graph, version=2, labels=repository.labels(1), lineage=lineage, golden=golden)
    models.register(repository.lineage(2))
    models.promote(2)
    repository.configure([2])


def test_retrain_reports_what_it_did(trained: Path) -> None:
    report = json.loads((trained.parent / "retrain.json").read_text(), parse_constant=pytest.fail)
    versions = DataVersions(Workspace(trained))
    assert report["model_version"] == 1
    assert report["data_before"] == versions.log()[-2].id
    assert report["data_after"] == versions.resolve("selected")
    assert [step["step"] for step in report["steps"]][-1] == "one graph, with crops"
    assert report["verdict"]["passed"]
    assert {answer["truth"] for answer in report["seen"]} <= set(PRODUCTS)
    assert "model version 1 is the current model" in (trained.parent / "retrain.log").read_text()


def test_a_retraining_in_rough_surroundings_is_like_any_other(trained: Path) -> None:
    """Most of it is in the fixture `trained`, which runs it there, in an empty home folder."""
    with sqlite3.connect(trained / "state" / "prefect" / "prefect.db") as database:
        runs = database.execute("select state_type from flow_run").fetchall()
    assert runs == [("COMPLETED",)], "it reported to the server of the workspace"


def test_a_retraining_connects_to_no_other_machine(trained: Path) -> None:
    log = trained.parent / "connections.log"
    if not log.exists() or not log.stat().st_size:
        pytest.skip("strace is missing, or may not trace here")
    assert elsewhere(log) == []


def test_data_log_show_and_diff(trained: Path) -> None:
    listed = run_json("data", "log", shop=trained)
    assert all(entry["run"] and not entry["selected"] for entry in listed if not entry["entry"]), "versions of a run"
    log = [entry for entry in listed if entry["entry"]]
    assert [entry["entry"] for entry in log] == [*range(len(log), 0, -1)]
    assert [entry["step"] for entry in log[-2:]] == ["ingest", "ingest"]
    assert [entry["selected"] for entry in log] == [True] + [False] * (len(log) - 1)
    assert (log[-1]["parent"], log[-2]["parent"]) == (None, log[-1]["id"])
    assert (log[-1]["counts"]["photos"], log[-2]["counts"]["photos"]) == (30, 39)
    assert set(log[0]["counts"]) >= {"photos", "kept", "dropped", "relabelled", "conflicts", "quarantined", "classes"}
    table = stdout("data", "log", shop=trained)
    assert all(entry["id"][:12] in table for entry in log)
    first = run_json("data", "show", log[-1]["id"][:8], shop=trained)
    assert {name: first[name] for name in log[-1]} == log[-1]
    assert first["problems"] == []
    assert sum(row["photos"] for row in first["per_class"]) == 30
    assert run_json("data", "show", shop=trained)["id"] == log[0]["id"]
    diff = run_json("data", "diff", log[-1]["id"][:8], log[-2]["id"][:8], shop=trained)
    assert (diff["added"], diff["dropped"], diff["relabelled"]) == (9, 0, 0)
    assert diff["per_class"].keys() == set(PRODUCTS)


def test_labels_are_shown_as_they_are_in_any_locale(trained: Path) -> None:
    first = DataVersions(Workspace(trained)).log()[-1].id[:8]
    for locale in ({"LC_ALL": "C", "LANG": "C"}, {"PYTHONIOENCODING": "ascii"}):
        table = stdout("data", "diff", first, shop=trained, **locale)
        assert all(label in table for label in PRODUCTS)


def test_model_log_and_show(trained: Path) -> None:
    [entry] = run_json("model", "log", shop=trained)
    assert (entry["version"], entry["serving"], entry["parent"], entry["data_withdrawn"]) == (1, True, None, False)
    assert entry["data_version"] == DataVersions(Workspace(trained)).resolve("selected")
    assert entry["metrics"].keys() == {"top1", "top5", "mean_class", "head", "middle", "tail"}
    lineage = run_json("model", "show", shop=trained)
    assert lineage == run_json("model", "show", 1, shop=trained)
    assert {key: lineage[key] for key in entry} == entry
    assert lineage["parity"]["different_ids"] == 0
    assert "smoke" in stdout("model", "log", shop=trained)
    card = lineage["card"]
    assert card == run_json("model", "show", trained / "repository" / "products" / "1" / "model.onnx", shop=trained)
    assert {key: card[key] for key in ("data_version", "commit", "config_hash", "recipe", "metrics", "parity")} == {
        key: lineage[key] for key in ("data_version", "commit", "config_hash", "recipe", "metrics", "parity")
    }
    assert card["labels"] == sorted(PRODUCTS)
    assert all({"tau", "temperature", "weight", "licence"} <= member.keys() for member in card["members"])
    assert card["calibration"]["surprise"][1] <= card["calibration"]["surprise"][0]
    assert 0.95 <= card["calibration"]["accepted"] <= 1
    assert card["known"]["slope"] > 0
    text = stdout("model", "show", shop=trained)
    assert f"{card['known']['score']}, accepted from" in text
    assert "apache" not in text, "no network started from licensed weights"


def test_models_trained_on_withdrawn_data_are_marked(shop: Path) -> None:
    publish_again(shop)
    first = DataVersions(Workspace(shop)).log()[-1].id
    entry = run_json("data", "rollback", first[:8], shop=shop)
    assert (entry["id"], entry["step"], entry["selected"]) == (first, "rollback", True)
    assert (entry["stale_models"], entry["newest_standing_model"]) == ([1], 2)
    assert [(e["version"], e["serving"], e["data_withdrawn"]) for e in run_json("model", "log", shop=shop)] == [
        (2, True, False), (1, False, True)
    ]  # fmt: skip
    assert run_json("model", "show", 1, shop=shop)["data_withdrawn"]
    rows = [line.split() for line in stdout("model", "log", shop=shop).splitlines()]
    assert rows[2][0] == "1"
    assert "yes" in rows[2]
    assert run_json("model", "rollback", shop=shop) == {"serving": 1}
    assert [(e["version"], e["serving"]) for e in run_json("model", "log", shop=shop)] == [(2, False), (1, True)]
    assert "version 1 stays the current model" in stdout("model", "log", shop=shop)
    assert "`cleanshelf model rollback 2`" in stdout("data", "rollback", first[:8], shop=shop)
    assert DataVersions(Workspace(shop)).selected() == first, "a rollback of the model does not touch the data"


def test_dry_runs_change_nothing(shop: Path, delivery: Path, tmp_path: Path) -> None:
    publish_again(shop)
    source = shutil.copytree(delivery / "first", tmp_path / "source")
    shutil.copyfile(source / PRODUCTS[0] / "1.jpg", source / PRODUCTS[0] / "copy.jpg")
    (source / PRODUCTS[0] / "2.jpg").write_bytes(b"")
    log, before = run_json("data", "log", shop=shop), snapshot(shop)
    report = run_json("ingest", source, "--dry-run", shop=shop)
    assert (report["delivered"], report["added"], report["duplicates"]) == (31, 0, 30)
    assert report["quarantined"] == {"photo: the file is empty (0 bytes)": 1}
    plan = run_json("retrain", "smoke", "--set", "train.epochs=7", "--dry-run", shop=shop)
    uncleaned = next(entry["id"] for entry in log if not entry["step"].startswith("clean-"))
    assert (plan["data_version"], plan["recipe"]["train"]["epochs"]) == (uncleaned, 7)
    plan = run_json("data", "rollback", log[-1]["id"][:8], "--dry-run", shop=shop)
    [selected] = [entry["id"] for entry in log if entry["selected"]]
    assert plan == {"would_select": log[-1]["id"], "in_place_of": selected}
    assert run_json("model", "rollback", "--dry-run", shop=shop) == {"would_serve": 1}
    assert snapshot(shop) == before
    run_json("model", "rollback", shop=shop)
    assert snapshot(shop) != before


def test_the_graph_alone_is_enough_to_recognise(trained: Path, delivery: Path, tmp_path: Path) -> None:
    """Covers recognition without a workspace, a server or any file beside the graph."""
    shutil.copyfile(trained / "repository" / "products" / "1" / "model.onnx", tmp_path / "a copy.onnx")
    photos = [delivery / "first" / label / "2.jpg" for label in PRODUCTS]
    done = cleanshelf("recognise", *photos, "--model", tmp_path / "a copy.onnx", "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["image"] for answer in answers] == [str(path) for path in photos]
    for answer in answers:
        assert {product["label"] for product in answer["products"]} == set(PRODUCTS)
        probabilities = [product["probability"] for product in answer["products"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-3)
        assert answer["data_version"] == DataVersions(Workspace(trained)).resolve("selected")
        assert answer["model_version"] is None


@pytest.mark.slow
def test_the_schedule_fires_twice_on_its_own_and_skips_what_has_not_changed(shop: Path) -> None:
    with scheduler(shop, "smoke", "--every", "5s") as process:
        assert wait_for_outcomes(shop, "unchanged", "unchanged"), scheduler_log(shop)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, scheduler_log(shop)
    status = run_json("schedule", "--status", shop=shop)
    assert (status["running"], status["every_s"], status["next"]) == (False, 5.0, None)
    assert all(run["why"].endswith(", which published model version 1") for run in status["runs"])
    assert len(list(shop.glob("runs/*/run.json"))) == 1, "nothing was trained"
    assert "unchanged" in stdout("schedule", "--status", shop=shop)
