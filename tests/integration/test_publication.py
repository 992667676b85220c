"""Parts of a retraining as separate commands: clean, publish a refused run, promote a registered version."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prefect.settings import PREFECT_API_URL

from flows.clean import clean_data
from flows.data.versions import DataVersions
from flows.errors import CorruptObject, GateRefused, InputError, UnknownVersion
from flows.ingest import ingest
from flows.promote import promote_version
from flows.publish import publish_run
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.retrain import retrain
from flows.rollback import rollback_model
from flows.run.inputs import ended_before, inputs
from flows.sample.draw import draw
from flows.sample.families import assortment
from flows.verify import verify
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.data.manifest import read_manifest
from models.recipe.config import Clean, Recipe, from_dict
from serving.errors import CorruptVersion
from serving.repository.curve import Curve
from serving.repository.model_config import TritonConfig
from serving.server.environment import Environment
from serving.server.process import until
from tests.command_line import cleanshelf, snapshot
from tests.prefect_api import events

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.prefect,
    pytest.mark.triton,
]

TINY = """
members = [{ backbone = "test_resnet", size = 32 }]
train = { epochs = 1 }
clean = { folds = 2, epochs = 1, params = { threshold = 0 } }
balance = { method = "none" }
proof = { confidence = 0 }
export = { input_size = 32, crops = 1, enlarge = [1.0] }
"""
REASON = "the supplier swapped them, we looked"


def recipe(**gate: float) -> Recipe:
    return from_dict({"name": "tiny"} | tomllib.loads(TINY) | {"gate": {"above_chance": -1} | gate})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, prefect_server: None, triton_environment: Environment) -> Workspace:
    """Workspace with a delivery of three products, not yet cleaned."""
    root, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(1)
    for sku in assortment()[::9][:3]:
        (root / "delivery" / sku.label).mkdir(parents=True)
        for number in range(14):
            draw(sku, random).save(root / "delivery" / sku.label / f"{number}.jpg")
    workspace = Workspace.init(root / "shop")
    ingest(workspace, root / "delivery")
    return workspace


@pytest.fixture(scope="module")
def refused(shop: Workspace) -> str:
    """Id of a run that the gate refused, because it permits cleaning to flag no label."""
    with pytest.raises(GateRefused, match="cleaning left out more than 0% of "):
        retrain(shop, recipe(decided_away=0))
    [report] = shop.runs.glob("*/run.json")
    return report.parent.name


@pytest.fixture(scope="module")
def overridden(shop: Workspace, refused: str, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Workspace in which the model of the refused run is registered nevertheless, but not promoted."""
    workspace = copied(shop, tmp_path_factory.mktemp("overridden"))
    for key, value in (("user.name", "Ada"), ("user.email", "ada@shop")):
        subprocess.run(["git", "-C", str(workspace.root), "config", key, value], check=True)
    report = publish_run(workspace, refused, despite=f" {REASON}\n", promote=False)
    assert (report.model_version, report.promoted, report.seen) == (1, False, [])
    return workspace


def copied(workspace: Workspace, folder: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(workspace.root, folder / "shop", symlinks=True)))


def test_clean_makes_the_same_data_version_as_a_retraining_selects_it_and_makes_no_model(
    shop: Workspace, refused: str, tmp_path: Path
) -> None:
    report = json.loads((shop.runs / refused / "run.json").read_text())
    assert DataVersions(shop).selected() == report["data_before"], "the refused run selected nothing"
    shop = copied(shop, tmp_path)
    cleaned = clean_data(shop, recipe())
    assert clean_data(shop, recipe()) == cleaned, "the same again adds nothing"
    assert cleaned.selection == ""
    assert (cleaned.data_before, cleaned.data_after) == (report["data_before"], report["data_after"])
    log = DataVersions(shop).log()
    assert [(entry.id, entry.step) for entry in log] == [
        (cleaned.data_after, "clean-1"),
        (cleaned.data_before, "ingest"),
    ]
    assert cleaned.counts == log[0].counts
    manifest = read_manifest(shop.versions / cleaned.data_after)
    assert cleaned.counts["dropped"] == (manifest.decision == "dropped").sum() > 0


def test_a_recipe_without_rounds_of_cleaning_is_refused(shop: Workspace) -> None:
    with pytest.raises(InputError, match=r"clean\.rounds: 0 leaves nothing to do"):
        clean_data(shop, replace(recipe(), clean=Clean(rounds=0)))


def test_a_refused_run_stays_refused_and_nothing_changes(shop: Workspace, refused: str) -> None:
    (shop.runs / "20200101-000000-abcdef").mkdir()
    before = snapshot(shop.root)
    for reason in ("", "  "):
        with pytest.raises(InputError, match="--despite: the reason is blank"):
            publish_run(shop, refused, despite=reason)
    for name, problem in (("2", "matches several runs"), ("7", "matches no run; there are: ")):
        with pytest.raises(InputError, match=f"'{name}' {problem}"):
            publish_run(shop, name)
    done = cleanshelf("publish", refused, "--workspace", shop.root)
    assert done.returncode == 4
    assert "cleaning left out more than" in done.stderr.splitlines()[-1]
    check_refusal(shop, refused, done.stdout)
    as_json = cleanshelf("publish", refused, "--workspace", shop.root, "--json")
    error = json.loads(as_json.stdout)["error"]
    report = error["report"]
    assert (as_json.returncode, error["run"], report["run"], report["verdict"]["passed"]) == (
        4,
        refused,
        refused,
        False,
    )
    photos = [photo for finding in report["verdict"]["findings"] for photo in finding["photos"]]
    assert [each["photo"] for each in report["look_at"]] == photos != []
    after = snapshot(shop.root)
    for files in (before, after):
        del files[f"runs/{refused}/events.jsonl"]  # the record of the run grows by each attempt
    assert after == before, "the verdict is the same as before"


def check_refusal(shop: Workspace, run: str, output: str) -> None:
    """Checks that a refusal prints the tables of a success, the run and its report, photos to look at, and ways out."""
    report = json.loads((shop.runs / run / "run.json").read_text())
    photo = next(each for each in report["look_at"] if each["gate"] == "decided_away")
    manifest = read_manifest(shop.versions / report["data_after"])
    row = manifest.id.tolist().index(photo["photo"])
    assert (manifest.split[row], manifest.kept[row], manifest.given_label[row]) == (
        "train",
        False,
        photo["given label"],
    )
    for expected in (
        report["steps"][-1]["step"], photo["photo"], photo["path"], f"runs/{run}/report.html", "model  refused: ",
        "cleaning left out more than 0%",
        "decided_away: right labels for these photos (`cleanshelf feedback FILE`)", f"publish {run} --despite REASON",
    ):  # fmt: skip
        assert expected in output, expected


def test_a_run_that_ended_between_gate_and_publication_is_published_and_reported_to_a_named_server(
    shop: Workspace, refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url := str(PREFECT_API_URL.value()))
    workspace = copied(shop, tmp_path)
    path = workspace.runs / refused / "recipe.json"  # as if this recipe had passed the gate
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gate": {"latency_ms": 1000, "above_chance": -1}}))
    report = publish_run(workspace, refused, promote=False)
    assert (report.verdict.passed, report.verdict.override, report.model_version) == (True, None, 1)
    latency = report.verdict.findings[-1]
    assert (latency.gate, latency.allowed, latency.before) == ("latency_ms", 1000, None)
    assert latency.after is not None
    assert 0 < latency.after < 1000
    assert ModelVersions(Ledger(workspace.root)).lineage(1)["override"] is None
    written = json.loads((workspace.runs / refused / "run.json").read_text())
    assert (written["model_version"], written["promoted"], written["verdict"]["passed"]) == (1, False, True)
    assert until(lambda: "cleanshelf.model.staged" in events(url, about=f"run.{report.run}"), timeout_s=30)


def test_an_override_is_kept_with_the_model(overridden: Workspace, refused: str) -> None:
    lineage = repository(overridden).lineage(1)
    override = {"by": "Ada <ada@shop>", "reason": REASON, "gates": ["decided_away"]}
    assert lineage["override"] == ModelVersions(Ledger(overridden.root)).lineage(1)["override"] == override
    verdict = json.loads((overridden.runs / refused / "verdict.json").read_text())
    assert (verdict["passed"], verdict["override"], verdict["against"]) == (False, override, None)
    assert verdict["graph_sha256"] == lineage["graph_sha256"] == lineage["files"]["model.onnx"]
    outcome = ended_before(overridden, inputs(overridden, recipe(decided_away=0)))
    assert outcome.endswith("which published model version 1"), "a schedule does not repeat the run"


def test_a_registered_version_becomes_the_current_model_when_promoted(
    overridden: Workspace, refused: str, tmp_path: Path
) -> None:
    shop = copied(overridden, tmp_path)
    models, versions = ModelVersions(Ledger(shop.root)), repository(shop)
    assert (models.current(), versions.versions(), versions.configured()) == (None, (1,), ())
    data, learnt_from = DataVersions(shop), models.lineage(1)["data_version"]
    assert data.selected() != learnt_from, "it is only registered"
    with pytest.raises(
        UnknownVersion, match="model version 1 has never been the current model; `cleanshelf promote 1`"
    ):
        rollback_model(shop, 1)
    assert promote_version(shop, 1) == 1
    assert (models.current(), versions.configured()) == (1, (1,))
    curve = Curve.read(models.lineage(1), versions.accelerator)
    assert curve is not None
    assert versions.is_configured(1)
    assert TritonConfig.parse(versions.configuration()).joined == curve.largest_batch(50)
    assert (data.selected(), data.log()[0].step, data.verify("selected")) == (learnt_from, "clean-1", [])
    before = snapshot(shop.root)
    assert promote_version(shop, 1) == 1
    assert snapshot(shop.root) == before, "it is the current model already"
    check_report_is_completed(shop, refused)
    check_second_override_is_kept(shop, refused)


def check_report_is_completed(shop: Workspace, run: str) -> None:
    """Checks that a publication that was killed before its report is completed from the registry."""
    path = shop.runs / run / "run.json"
    path.write_bytes(path.read_bytes().replace(b'"model_version": 1', b'"model_version": null'))
    done = publish_run(shop, run)
    assert (done.model_version, done.promoted, done.verdict.explanation[-1]) == (
        1,
        True,
        f"overridden by Ada <ada@shop>: {REASON}",
    )
    written = json.loads(path.read_bytes())
    assert (written["model_version"], written["promoted"]) == (1, True)


def check_second_override_is_kept(shop: Workspace, run: str) -> None:
    """Checks that the console, the files of the run and the registry say the same of each override, and lose none."""
    models, folder = ModelVersions(Ledger(shop.root)), shop.runs / run
    first = models.lineage(1)
    report = publish_run(shop, run, despite="the buyer  agreed\n")
    assert (report.model_version, report.promoted, models.current()) == (2, True, 2)
    verdict, written = (json.loads((folder / name).read_bytes()) for name in ("verdict.json", "run.json"))
    assert verdict["override"] == written["verdict"]["override"] == models.lineage(2)["override"]
    assert verdict["override"] == {"by": "Ada <ada@shop>", "reason": "the buyer agreed", "gates": ["decided_away"]}
    assert report.verdict.explanation[-1] == "overridden by Ada <ada@shop>: the buyer agreed"
    assert report.verdict.explanation[-1] in (folder / "report.md").read_text()
    assert models.lineage(2)["verdict"] == first["verdict"] == list(report.verdict.reasons)
    assert models.lineage(1) == first
    before = snapshot(shop.root)
    for despite in (None, "the buyer agreed"):
        again = publish_run(shop, run, despite=despite)
        assert (again.model_version, again.verdict.explanation) == (2, report.verdict.explanation)
    assert snapshot(shop.root) == before, "the current model is not judged against itself"
    log = json.loads(cleanshelf("model", "log", "-w", shop.root, "--json").stdout)
    assert [entry["override"]["reason"] for entry in log] == ["the buyer agreed", REASON]
    assert verify(shop).broken == []
    (repository(shop).path(2) / "golden.npz").write_bytes(b"")
    with pytest.raises(CorruptVersion, match=r"golden\.npz"):  # a damaged current model would be easy to beat
        publish_run(shop, run, despite=REASON)


def test_a_missing_or_damaged_graph_is_not_published(shop: Workspace, refused: str, tmp_path: Path) -> None:
    workspace = copied(shop, tmp_path)
    for graph in workspace.runs.glob("stages/export-*/model.onnx"):
        graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"the graph of run {refused} is no longer in .*stages"):
        publish_run(workspace, refused, despite=REASON)
    assert ModelVersions(Ledger(workspace.root)).log() == []
    assert repository(workspace).versions() == ()


def register_copy(workspace: Workspace, **changes: object) -> int:
    """Registers version 1 again, with a changed lineage, and returns the new number."""
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    lineage, number = models.lineage(1) | changes, max(versions.versions()) + 1
    versions.write(versions.path(1) / "model.onnx", version=number, labels=versions.labels(1), lineage=lineage,
                   golden=versions.golden(1).image)  # fmt: skip
    models.register(versions.lineage(number))
    return number


def test_a_version_whose_verdict_does_not_apply_is_not_promoted(
    overridden: Workspace, refused: str, tmp_path: Path
) -> None:
    shop = copied(overridden, tmp_path)
    stale, other, damaged = register_copy(shop, parent=7), register_copy(shop, graph_sha256="0"), register_copy(shop)
    (repository(shop).path(damaged) / "labels.txt").write_text("x")
    way_out = f"no model serves now; `cleanshelf publish {refused}` judges it again"
    for number, error, message in (
        (stale, GateRefused, f"was judged against model version 7, but {way_out}"),
        (other, CorruptObject, "its graph is not the one that was judged"),
        (damaged, CorruptVersion, "labels.txt"),
        (9, UnknownVersion, "there is no model version 9"),
    ):
        with pytest.raises(error, match=message):
            promote_version(shop, number)
    assert ModelVersions(Ledger(shop.root)).current() is None
    assert repository(shop).configured() == ()
