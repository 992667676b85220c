"""The whole path with real services, from a delivery with wrong labels to an endpoint that answers, and rollbacks."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from prefect import get_client
from prefect.settings import PREFECT_API_URL

from durable import sha256
from flows.data.objects import HashCache, Listing
from flows.data.versions import DataVersions
from flows.endpoint.server import stop_endpoint
from flows.errors import GateRefused
from flows.ingest import ingest
from flows.registry.history import model_history
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.report.refusal import ways_out
from flows.report.run_report import Report
from flows.retrain import retrain
from flows.rollback import rollback_data, rollback_model
from flows.sample.draw import draw
from flows.sample.families import assortment
from flows.verify import verify
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.data.manifest import read_manifest
from models.export.patch import read_metadata
from models.recipe.config import digest, load_recipe
from serving import LocalRecognizer, Recognizer
from serving.server.environment import Environment
from serving.server.process import until
from serving.server.server import running
from tests.command_line import processes, snapshot
from tests.endpoint_client import RepeatingClient, running_endpoint
from tests.prefect_api import events
from tests.report_page import check_page

pytestmark = [pytest.mark.dvc, pytest.mark.prefect, pytest.mark.triton]

REPOSITORY = Path(__file__).parents[2]
SKUS = [assortment()[number] for number in (0, 1, 2, 4, 5, 6)]  # three packs of milk, three bottles of juice
PHOTOS = {"train": 12, "val": 3, "test": 4}  # per product
FLIPPED = 3  # train photos per product under a sibling's label
# So that cleaning drops labels even after three epochs, and that every step is kept without a proof of its gain.
QUICK = ("clean.rule=log_margin", "clean.params.threshold=0", "proof.confidence=0")
ANY = ("gate.mean_class=1", "gate.head=1", "gate.middle=1", "gate.tail=1")  # accuracies near chance pass
OTHER = (*QUICK, *ANY, "members.1.seed=9")


def write_delivery(folder: Path) -> Path:
    """Writes drawn photos with a manifest that has wrong labels among the train photos."""
    rng = np.random.default_rng(3)
    rows = []
    folder.mkdir()
    for split, count in PHOTOS.items():
        for number, sku in enumerate(SKUS):
            sibling = SKUS[number // 3 * 3 + (number + 1) % 3]
            for photo in range(count):
                name = f"{split} {number} {photo}.jpg"
                draw(sku, rng).save(folder / name)
                is_flipped = split == "train" and photo < FLIPPED
                rows.append((name, sibling.label if is_flipped else sku.label, split))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return folder


def copy(workspace: Workspace, folder: Path) -> Workspace:
    """Copy of the workspace in another folder; names in it depend on contents, never on paths."""
    return Workspace(Path(shutil.copytree(workspace.root, folder, symlinks=True)))


@pytest.fixture(scope="module")
def delivered(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: None, triton_environment: Environment
) -> Workspace:
    """Workspace with one delivery."""
    folder = tmp_path_factory.mktemp("delivered")
    workspace = Workspace.init(folder / "my shop")
    ingest(workspace, write_delivery(folder / "delivery"))
    return workspace


@pytest.fixture(scope="module")
def first(delivered: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Report]:
    """Workspace after its first retraining, and the report of that run."""
    workspace = copy(delivered, tmp_path_factory.mktemp("first") / "shop")
    return workspace, retrain(workspace, load_recipe("smoke", overrides=QUICK))


@pytest.fixture(scope="module")
def second(first: tuple[Workspace, Report], tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Report]:
    """Workspace after a further retraining with another seed of the second member, and the report of that run."""
    workspace = copy(first[0], tmp_path_factory.mktemp("second") / "shop")
    return workspace, retrain(workspace, load_recipe("smoke", overrides=OTHER))


def stages(workspace: Workspace) -> dict[str, int]:
    """Finished steps, and the time at which each ended (ns)."""
    return {path.parent.name: path.stat().st_mtime_ns for path in workspace.runs.glob("stages/*/done.json")}


def history(workspace: Workspace) -> list[tuple[str, str | None, str]]:
    return [(entry.id, entry.parent, entry.step) for entry in DataVersions(workspace).log()]


def test_a_delivery_becomes_a_served_model(first: tuple[Workspace, Report]) -> None:
    workspace, report = first
    (cleaned, parent, step), (ingested, *_) = history(workspace)
    assert (parent, step) == (ingested, "clean-1")
    assert (report.data_before, report.data_after) == (ingested, cleaned)
    assert DataVersions(workspace).selected() == cleaned
    before, after = (read_manifest(workspace.versions / version) for version in (ingested, cleaned))
    assert after.id.tolist() == before.id.tolist()
    assert after.given_label.tolist() == before.label.tolist()
    assert set(after.decision[~after.kept]) == {"dropped"}
    assert 0 < (~after.kept).sum() <= (before.split == "train").sum() - 5 * len(SKUS)
    assert after.kept[before.split != "train"].all(), "validation and test photos are left alone"
    scored = before.split != "test"
    assert ((after.score[scored] >= 0) & (after.score[scored] <= 1)).all()
    assert np.isnan(after.score[~scored]).all()

    assert [row.step for row in report.steps] == [
        "one network, labels as delivered",
        "one network, after cleaning",
        "one network, re-balanced",
        "ensemble of 2",
        "one graph, with crops",
    ]
    assert report.model_version == 1
    assert len(report.seen) == 6
    assert {answer.model_version for answer in report.seen} == {1}
    assert {answer.truth for answer in report.seen} == {sku.label for sku in SKUS}
    assert {answer.label for answer in report.seen} <= {sku.label for sku in SKUS}
    assert running(workspace.state) is None, "a server that was started for the run ends with the run"


def test_the_run_is_recorded(first: tuple[Workspace, Report]) -> None:
    workspace, report = first
    folder = workspace.runs / report.run
    written = json.loads((folder / "run.json").read_text())
    assert written["model_version"] == 1
    assert written["data_after"] == report.data_after
    assert written["seen"][0]["label"] == report.seen[0].label
    assert written["steps"][-1]["mean_class"] == report.steps[-1].mean_class
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict == {**written["verdict"], "passed": True}
    assert json.loads((folder / "recipe.json").read_text())["clean"]["params"] == {"threshold": 0}
    check_page(folder, report, num_test=PHOTOS["test"] * len(SKUS), again=False)


def test_prefect_shows_the_report(first: tuple[Workspace, Report]) -> None:
    workspace, report = first
    with get_client(sync_client=True) as client:
        reports = [artifact for artifact in client.read_artifacts() if artifact.key == "retraining"]
    report_text = next(str(each.data) for each in reports if each.description == f"{report.run}: published")
    assert report_text.startswith(f"# {report.run}: model version 1 is the current model\n")
    assert all(row.step in report_text for row in report.steps)
    assert all(reason in report_text for reason in report.verdict.reasons)
    assert report_text == (workspace.runs / report.run / "report.md").read_text()
    titles = [figure.title for figure in report.figures if figure.rows]
    written = [line.removeprefix("## ") for line in report_text.splitlines() if line.startswith("## ")]
    assert written[-len(titles) :] == titles


def test_prefect_gets_events_about_data_and_model(first: tuple[Workspace, Report]) -> None:
    url, report = str(PREFECT_API_URL.value()), first[1]
    data, run = f"data.{report.data_after[:12]}", f"run.{report.run}"
    assert until(lambda: "cleanshelf.data.cleaned" in events(url, about=data), timeout_s=30)
    assert until(lambda: "cleanshelf.model.published" in events(url, about=run), timeout_s=30)


def test_the_published_files_name_their_lineage(first: tuple[Workspace, Report]) -> None:
    workspace, report = first
    repository(workspace).verify(1)
    lineage = repository(workspace).lineage(1)
    assert set(lineage["files"]) == {"model.onnx", "labels.txt", "golden.npz"}
    model = repository(workspace).path(1) / "model.onnx"
    assert lineage["graph_sha256"] == report.verdict.graph_sha256 == sha256(model) == lineage["files"]["model.onnx"]
    assert (lineage["run"], lineage["data_version"], lineage["version"]) == (report.run, report.data_after, 1)

    metadata = read_metadata(model)
    labels = sorted(sku.label for sku in SKUS)
    assert metadata["data_version"] == report.data_after
    assert metadata["commit"] == lineage["commit"]
    assert metadata["config_hash"] == lineage["config_hash"] == digest(load_recipe("smoke", overrides=QUICK))
    assert json.loads(metadata["labels"]) == labels == list(repository(workspace).labels(1))
    assert [member["backbone"] for member in json.loads(metadata["members"])] == ["test_resnet", "test_byobnet"]
    assert all(0 <= member["tau"] <= 1.2 for member in json.loads(metadata["members"]))
    assert json.loads(metadata["metrics"]) == lineage["metrics"]
    assert lineage["metrics"]["mean_class"] == pytest.approx(report.steps[-1].mean_class, abs=1e-6)

    models = ModelVersions(Ledger(workspace.root))
    assert (models.current(), [entry.version for entry in models.log()]) == (1, [1])
    assert models.lineage(1) == lineage
    networks = {name for name, files in lineage["stages"].items() if "network.pt" in files}
    assert {name.rpartition("-")[0] for name in networks} == {"balance-1-test_resnet", "balance-2-test_byobnet"}
    assert lineage["data_parents"] == [report.data_before]
    assert (verify(workspace).broken, verify(workspace).gone) == ([], [])


def test_the_graph_alone_answers_as_the_endpoint_did(first: tuple[Workspace, Report]) -> None:
    workspace, report = first
    manifest = read_manifest(workspace.versions / report.data_after)
    photos = [manifest.read_photo(manifest.id.tolist().index(sample.photo)) for sample in report.seen]
    answers = LocalRecognizer(repository(workspace).path(1) / "model.onnx").recognise(photos)
    assert [answer.ranked[0][0] for answer in answers] == [sample.label for sample in report.seen]
    assert [a.ranked[0][1] for a in answers] == pytest.approx([sample.probability for sample in report.seen], abs=1e-5)
    assert {answer.data_version for answer in answers} == {report.data_after}


def test_the_same_again_runs_nothing_and_publishes_nothing(first: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace, before = copy(first[0], tmp_path / "shop"), first[1]
    done, versions = stages(workspace), history(workspace)
    again = retrain(workspace, load_recipe("smoke", overrides=QUICK))
    after = stages(workspace)
    assert {name: time for name, time in after.items() if name in done} == done
    assert [name.split("-")[0] for name in after if name not in done] == ["measure"], "the current model"
    assert history(workspace) == versions
    assert (again.data_before, again.data_after, again.model_version) == (before.data_before, before.data_after, 1)
    assert again.seen == before.seen
    assert [entry.version for entry in ModelVersions(Ledger(workspace.root)).log()] == [1]
    assert repository(workspace).versions() == (1,)


def test_another_seed_trains_what_depends_on_it_and_is_published(
    first: tuple[Workspace, Report], second: tuple[Workspace, Report]
) -> None:
    workspace, report = second
    done, after = stages(first[0]), stages(workspace)
    assert {name: time for name, time in after.items() if name in done} == done
    fresh = sorted(name.rsplit("-", 1)[0] for name in after if name not in done)
    trained = ["train-2-test_byobnet"] * 2  # on labels as delivered, and on cleaned ones
    assert fresh == ["balance-2-test_byobnet", "calibrate", "crops", "ensemble", "export", "measure", *trained]
    assert history(workspace) == history(first[0]), "the same networks score labels, with the same decisions"
    check_page(workspace.runs / report.run, report, num_test=PHOTOS["test"] * len(SKUS), again=True)
    assert report.model_version == 2
    assert {answer.model_version for answer in report.seen} == {2}
    assert ModelVersions(Ledger(workspace.root)).current() == 2
    assert ModelVersions(Ledger(workspace.root)).lineage(2)["parent"] == 1
    assert repository(workspace).configured() == (2,)


def test_the_model_is_rolled_back_while_requests_are_answered(second: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace = copy(second[0], tmp_path / "shop")
    versions, models = history(workspace), ModelVersions(Ledger(workspace.root))
    with running_endpoint(workspace) as access, RepeatingClient(workspace, access) as client:
        client.wait_for_answers(20)
        assert rollback_model(workspace) == 1
        client.wait_for_answers(20)
        assert models.current() == 1
        assert rollback_model(workspace, 2) == 2
        client.wait_for_answers(20)
    assert client.errors == []
    answered_by = np.array(client.versions)
    assert set(answered_by) == {1, 2}
    assert (answered_by[0], answered_by[-1]) == (2, 2)
    assert np.abs(np.diff(answered_by)).sum() == 2, "from 2 to 1 and back once, without alternation"
    assert models.current() == 2
    assert history(workspace) == versions


def test_without_a_server_the_rollback_holds_for_the_next_one(second: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace = copy(second[0], tmp_path / "shop")
    assert rollback_model(workspace) == 1
    with running_endpoint(workspace) as access, Recognizer(access, labels=repository(workspace).labels) as recognizer:
        photo = read_manifest(workspace.data).read_photo(0)
        assert recognizer.recognise([photo])[0].model_version == 1


def test_data_are_rolled_back_exactly_and_models_stay(second: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace = copy(second[0], tmp_path / "shop")
    cleaned, ingested = (version for version, *_ in history(workspace))
    assert [model["data_withdrawn"] for model in model_history(workspace)] == [False, False]
    files = {path: sha256(path) for path in workspace.repository.rglob("*") if path.is_file()}

    entry = rollback_data(workspace, ingested[:12])
    assert (entry.id, entry.step, entry.number) == (ingested, "rollback", 3)
    assert Listing.of(workspace.data, hashes=HashCache(tmp_path / "seen.json")).id == ingested
    assert read_manifest(workspace.data).kept.all()
    assert DataVersions(workspace).verify(ingested) == []
    assert {path: sha256(path) for path in workspace.repository.rglob("*") if path.is_file()} == files
    facts = ("version", "serving", "data_version", "data_withdrawn")
    models = [tuple(model[fact] for fact in facts) for model in model_history(workspace)]
    assert models == [(2, True, cleaned, True), (1, False, cleaned, True)]

    rollback_data(workspace, cleaned)
    assert [model["data_withdrawn"] for model in model_history(workspace)] == [False, False]


def test_a_refused_model_is_not_served(first: tuple[Workspace, Report], tmp_path: Path) -> None:
    workspace = copy(first[0], tmp_path / "shop")
    # Better by 1.0, and another cleaning, so that the run makes a data version of its own.
    must_be_perfect = load_recipe("smoke", overrides=[*QUICK, "gate.mean_class=-1", "clean.budget=0.1"])
    log, data, pointer = history(workspace), snapshot(workspace.data), workspace.pointer.read_bytes()
    with running_endpoint(workspace) as access, Recognizer(access, labels=repository(workspace).labels) as recognizer:
        with pytest.raises(GateRefused, match="mean-class accuracy") as refused:
            retrain(workspace, must_be_perfect)
        photo = read_manifest(workspace.data).read_photo(0)
        assert recognizer.recognise([photo])[0].model_version == 1
    runs = [json.loads(path.read_text()) for path in sorted(workspace.runs.glob("*/run.json"))]
    assert [run["model_version"] for run in runs] == [1, None]
    assert (history(workspace), snapshot(workspace.data), workspace.pointer.read_bytes()) == (log, data, pointer)
    [made] = [entry for entry in DataVersions(workspace).listed() if entry.run]
    assert (made.id, made.parent, made.run) == (runs[1]["data_after"], runs[1]["data_before"], runs[1]["run"])
    report = refused.value.report
    assert (report.model_version, len(report.steps)) == (None, 5)
    assert "mean_class" in {each["gate"] for each in report.look_at}
    written = (workspace.runs / report.run / "report.md").read_text()
    assert all(each in written for each in (*ways_out(report), report.look_at[0]["path"], "known and not selected"))
    page = (workspace.runs / report.run / "report.html").read_text()
    assert "The new model was refused. Model version 1 stays in use." in page
    verdict = json.loads((workspace.runs / runs[1]["run"] / "verdict.json").read_text())
    assert verdict["passed"] is False
    assert verdict["reasons"] == refused.value.reasons == runs[1]["verdict"]["reasons"]
    assert (repository(workspace).versions(), repository(workspace).configured()) == ((1,), (1,))
    assert [entry.version for entry in ModelVersions(Ledger(workspace.root)).log()] == [1]


@pytest.fixture
def half_done(delivered: Workspace, first: tuple[Workspace, Report], tmp_path: Path) -> Iterator[Workspace]:
    """Workspace in which a retraining has done the steps before its cleaning."""
    workspace, (other, report) = copy(delivered, tmp_path / "shop"), first
    cleaned = (other.versions / report.data_after / "READY").stat().st_mtime_ns
    for name, finished in stages(other).items():
        if finished < cleaned:
            shutil.copytree(other.runs / "stages" / name, workspace.runs / "stages" / name)
    yield workspace
    stop_endpoint(workspace)


def start_retraining(workspace: Workspace, log: Path, *, keys: Sequence[str] = QUICK) -> subprocess.Popen[bytes]:
    """Starts `cleanshelf retrain smoke` in its own process group."""
    overrides = [part for override in keys for part in ("--set", override)]
    command = [sys.executable, "-m", "flows.cli", "retrain", "smoke", "--workspace", workspace.root, *overrides]
    with log.open("wb") as file:  # not a pipe: orphans of a killed flow would hold it open
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file, start_new_session=True)


def kill_retraining(
    workspace: Workspace, log: Path, *, once: Callable[[], object], keys: Sequence[str] = QUICK
) -> None:
    """Starts a retraining, and kills its process group as soon as `once()` is true."""
    process = start_retraining(workspace, log, keys=keys)
    while not once():
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.faults
@pytest.mark.slow
def test_killed_in_training_and_in_publication_it_ends_as_if_nothing_had_happened(
    half_done: Workspace, first: tuple[Workspace, Report], tmp_path: Path
) -> None:
    workspace, undisturbed = half_done, first[0]
    early = stages(workspace)
    assert len(early) == 4
    model = repository(workspace).model

    kill_retraining(
        workspace, tmp_path / "1.log", once=lambda: any(workspace.runs.glob("stages/train-*/checkpoint.pt"))
    )
    assert until(lambda: not processes(workspace.state), timeout_s=20), "processes of the flow still run"
    made = [entry.id for entry in DataVersions(workspace).listed() if entry.run]
    assert (made, history(workspace)) == ([first[1].data_after], history(undisturbed)[1:]), "cleaned, and not selected"

    kill_retraining(workspace, tmp_path / "2.log", once=lambda: any(model.glob(".stage-*")) or (model / "1").exists())
    assert "resuming after epoch" in (tmp_path / "2.log").read_text()
    late = stages(workspace)
    assert {name: time for name, time in late.items() if name in early} == early
    assert set(late) == set(stages(undisturbed))
    assert history(workspace) == history(undisturbed)[1:]
    assert (ModelVersions(Ledger(workspace.root)).current(), repository(workspace).configured()) == (None, ())

    assert start_retraining(workspace, tmp_path / "3.log").wait() == 0, (tmp_path / "3.log").read_text()
    assert stages(workspace) == late
    assert history(workspace) == history(undisturbed)
    assert DataVersions(workspace).verify("selected") == []
    models, published = ModelVersions(Ledger(workspace.root)), repository(workspace)
    assert ([entry.version for entry in models.log()], models.current()) == ([1], 1)
    assert (published.versions(), published.configured()) == ((1,), (1,))
    published.verify(1)
    graphs = [repository(each).path(1) / "model.onnx" for each in (workspace, undisturbed)]
    assert sha256(graphs[0]) == sha256(graphs[1])
    assert not [*model.glob(".*"), *workspace.runs.glob("stages/*/.*"), *(workspace.state / "staging").iterdir()]
