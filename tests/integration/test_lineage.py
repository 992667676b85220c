"""Every link of a published model, broken one at a time, is named: a real workspace, real files, an untrained model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract import labels_sha256
from durable import sha256
from flows.data.verify import Broken
from flows.data.versions import DataVersions
from flows.endpoint.promotion import number_for
from flows.errors import UnknownVersion
from flows.gate.gates import Verdict
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.run.run import Run
from flows.steps.publish import describe
from flows.verify import verify
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.recipe.config import digest, load_recipe
from serving.server.control import load_on_start
from tests.command_line import ROOT, cleanshelf, refusal, snapshot
from tests.graphs import LABELS, golden_images, write_graph
from tests.versions import commit_drop, commit_first, damage

pytestmark = pytest.mark.dvc


def publish(workspace: Workspace, folder: Path, *, version: int, **facts: Any) -> None:
    """Publishes a graph and its card as the current model; `facts` replace entries of its lineage, not of its card."""
    run = Run(workspace, load_recipe("smoke"), id=f"run-{version}")
    run.open({})
    stage = run.cached(
        "train", version, files=["network.pt"], work=lambda out: (out / "network.pt").write_bytes(b"weights")
    )
    data = DataVersions(workspace)
    card = {
        "data_version": data.resolve("selected"),
        "data_parents": json.dumps([entry.id for entry in data.log()[1:]]),
        "stages": json.dumps({stage.name: json.loads((stage / "done.json").read_bytes())}),
        "config_hash": digest(run.recipe),
        "labels_sha256": labels_sha256(LABELS),
        "metrics": json.dumps({"top1": 0.5}),
    }
    graph = write_graph(folder / "model.onnx", seed=version, metadata=card)
    verdict = Verdict(True, ("good",), sha256(graph))
    lineage = describe(run, folder, verdict, parent=version - 1 or None) | facts
    versions, models = repository(workspace), ModelVersions(Ledger(workspace.root))
    versions.write(graph, version=version, labels=LABELS, lineage=lineage, golden=golden_images())
    models.register(versions.lineage(version))
    load_on_start(versions, version)
    models.promote(version)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Workspace with two data versions and a model of each; the second is the current model."""
    folder = tmp_path_factory.mktemp("shop")
    workspace = Workspace.init(folder / "shop")
    commit_first(DataVersions(workspace), folder)
    publish(workspace, folder, version=1)
    commit_drop(DataVersions(workspace), num=1)
    publish(workspace, folder, version=2)
    return workspace


@pytest.fixture
def workspace(shop: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(shop.root, tmp_path / "shop", symlinks=True)))


def git(workspace: Workspace, *args: str) -> str:
    """Runs git as a user would, on a machine without a git identity."""
    command = ["git", "-C", str(workspace.root), "-c", "user.name=a", "-c", "user.email=a@b", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def broken_links(workspace: Workspace, version: int | None = None) -> list[str]:
    return [broken.link for broken in verify(workspace, version).broken]


def only_broken_link(workspace: Workspace) -> Broken:
    [broken] = verify(workspace).broken
    return broken


def test_every_link_of_a_published_model_holds_and_a_check_changes_nothing(workspace: Workspace) -> None:
    before = snapshot(workspace.root)
    for version in (1, 2, None):
        found = verify(workspace, version)
        assert (found.version, found.broken, found.gone) == (version or 2, [], [])
    assert snapshot(workspace.root) == before
    with pytest.raises(UnknownVersion, match="there are: 2, 1"):
        verify(workspace, 3)


def test_the_registry_and_the_repository_have_the_same_file(workspace: Workspace) -> None:
    file = repository(workspace).path(2) / "lineage.json"
    assert git(workspace, "show", "products@v2.0.0:lineage.json") + "\n" == file.read_text("utf-8")
    lineage = json.loads(file.read_bytes())
    assert lineage["graph_sha256"] == lineage["files"]["model.onnx"] == sha256(file.parent / "model.onnx")
    assert (lineage["version"], lineage["parent"], lineage["run"], lineage["verdict"]) == (2, 1, "run-2", ["good"])
    assert list(lineage["stages"].values()) == [
        {"network.pt": sha256(next(workspace.runs.glob("stages/*/network.pt")))}
    ]


def test_a_version_that_a_killed_publication_left_is_reused(workspace: Workspace, tmp_path: Path) -> None:
    models, versions = ModelVersions(Ledger(workspace.root)), repository(workspace)
    graph = write_graph(tmp_path / "model.onnx", seed=3)
    left = {"graph_sha256": sha256(graph)}
    assert number_for(left, models=models, versions=versions) == 3
    versions.write(graph, version=3, labels=LABELS, lineage=left, golden=golden_images())
    assert number_for(left, models=models, versions=versions) == 3
    assert number_for(models.lineage(1), models=models, versions=versions) == 1
    for changed in ({"parent": 7}, {"verdict": ["bad"]}, {"override": {"by": "me", "reason": "so", "gates": []}}):
        assert number_for(models.lineage(1) | changed, models=models, versions=versions) == 4, (
            "the registry keeps its word"
        )
    assert number_for({"graph_sha256": "another"}, models=models, versions=versions) == 4
    models.register({"version": 7, "graph_sha256": "never written"})  # as a kill in an earlier release left it
    assert number_for({"graph_sha256": "never written"}, models=models, versions=versions) == 8


def lose_tag(shop: Workspace) -> None:
    git(shop, "tag", "-d", "products@v2.0.0")


def move_tag(shop: Workspace) -> None:
    other = git(shop, "rev-parse", "products@v1.0.0^{commit}")
    git(shop, "tag", "-f", "-a", "-m", "moved", "products@v2.0.0", other)


def lose_history(shop: Workspace) -> None:
    git(shop, "update-ref", "-d", "refs/models/main")


def break_ledger(shop: Workspace) -> None:
    blob = git(shop, "rev-parse", "products@v2.0.0:lineage.json")
    (shop.root / ".git" / "objects" / blob[:2] / blob[2:]).unlink()


def edit_lineage(shop: Workspace) -> None:
    file = repository(shop).path(2) / "lineage.json"
    file.write_bytes(file.read_bytes().replace(b'"good"', b'"fine"'))


def lose_lineage(shop: Workspace) -> None:
    (repository(shop).path(2) / "lineage.json").unlink()


def lose_version(shop: Workspace) -> None:
    shutil.rmtree(repository(shop).path(2))


def edit_parameter(shop: Workspace) -> None:
    versions = repository(shop)
    versions.restore(versions.configuration().replace('"run-2"', '"run-1"'))


def serve_another(shop: Workspace) -> None:
    repository(shop).configure([1])


def break_config(shop: Workspace) -> None:
    repository(shop).restore("no configuration")


def lose_data_tag(shop: Workspace) -> None:
    git(shop, "tag", "-d", f"data/{str(DataVersions(shop).selected())[:12]}")


def break_data(shop: Workspace) -> None:
    damage(shop.data / "labels.parquet")


def break_network(shop: Workspace) -> None:
    damage(max(shop.runs.glob("stages/*"), key=os.path.getmtime) / "network.pt")


def edit_recipe(shop: Workspace) -> None:
    path = shop.runs / "run-2" / "recipe.json"
    path.write_text(path.read_text().replace('"smoke"', '"fire"'))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("breaking", "link", "file", "way_out"),
    [
        (lose_tag, "tag", "refs/tags/products@v2.0.0", "git tag -f"),
        (move_tag, "tag", "refs/tags/products@v2.0.0", "git tag -f"),
        (break_ledger, "lineage", "lineage.json", "data pull --refs"),
        (edit_lineage, "lineage", "products/2/lineage.json", "git show"),
        (lose_lineage, "lineage", "products/2/lineage.json", "git show"),
        (lose_version, "files", "products/2", "model rollback"),
        (edit_parameter, "endpoint", "config.pbtxt: run.2", "model rollback 2"),
        (serve_another, "endpoint", "config.pbtxt", "model rollback 2"),
        (break_config, "endpoint", "config.pbtxt", "model rollback 2"),
        (lose_data_tag, "data tag", "refs/tags/data/", "data verify"),
        (break_data, "data data", "data/labels.parquet", "data verify"),
        (break_network, "stage", "network.pt", "remove"),
        (edit_recipe, "recipe", "run-2/recipe.json", "remove"),
    ],
)
def test_a_broken_link_is_named(
    workspace: Workspace, breaking: Callable[[Workspace], None], link: str, file: str, way_out: str
) -> None:
    breaking(workspace)
    broken = only_broken_link(workspace)
    assert broken.link == link
    assert (broken.version == "products@v2.0.0") is not link.startswith("data")
    assert file in broken.file
    assert way_out in broken.way_out


@pytest.mark.faults
@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "golden.npz"])
def test_a_flipped_bit_of_any_file_is_named(workspace: Workspace, name: str) -> None:
    damage(repository(workspace).path(2) / name)
    broken = only_broken_link(workspace)
    assert (broken.link, Path(broken.file).name) == ("files", name)


@pytest.mark.faults
def test_a_lost_history_is_named_link_by_link(workspace: Workspace) -> None:
    git(workspace, "update-ref", "-d", "refs/models/main")
    assert broken_links(workspace) == ["entry"], "its tag keeps the commit"
    git(workspace, "tag", "-d", "products@v1.0.0")
    assert broken_links(workspace, 1) == ["entry", "tag", "lineage"]
    git(workspace, "update-ref", "-d", "refs/data/main")
    assert broken_links(workspace) == ["entry", "data"]


@pytest.mark.faults
def test_a_lineage_that_contradicts_the_card_of_its_graph(workspace: Workspace, tmp_path: Path) -> None:
    publish(workspace, tmp_path, version=3, metrics={"top1": 0.9}, data_parents=[])
    assert [(b.link, b.file.rpartition(": ")[2]) for b in verify(workspace).broken] == [
        ("metadata", "data_parents"), ("metadata", "metrics"), ("data", DataVersions(workspace).selected())
    ]  # fmt: skip


def test_files_that_were_cleared_away_are_listed_and_no_error(workspace: Workspace) -> None:
    stages = sorted(workspace.runs.glob("stages/*"))
    shutil.rmtree(workspace.runs / "stages")
    found = verify(workspace)
    assert (found.broken, len(found.gone)) == ([], 1)
    assert Path(found.gone[0]).parent in stages


def test_a_step_that_was_repeated_is_listed_and_no_error(workspace: Workspace) -> None:
    for folder in workspace.runs.glob("stages/*"):
        (folder / "network.pt").write_bytes(b"other weights")
        (folder / "done.json").write_text(json.dumps({"network.pt": sha256(folder / "network.pt")}))
    found = verify(workspace)
    assert (found.broken, [Path(path).name for path in found.gone]) == ([], ["network.pt"])


def test_a_version_of_an_earlier_release(workspace: Workspace) -> None:
    """An earlier release named the file record.json, and registered fewer entries."""
    folder, models = repository(workspace).path(1), ModelVersions(Ledger(workspace.root))
    lineage = repository(workspace).lineage(1)
    (folder / "lineage.json").unlink()
    (folder / "record.json").write_text(json.dumps(lineage, sort_keys=True, indent=1))
    registered = {
        key: lineage[key] for key in ("run", "parent", "config_hash", "data_version", "graph_sha256", "metrics")
    }
    ledger = models.ledger
    git(workspace, "update-ref", "-d", "refs/models/main")
    git(workspace, "tag", "-d", *git(workspace, "tag", "--list", "products*").split())
    sha = ledger.commit("refs/models/main", {"record.json": json.dumps(registered).encode()}, message="products v1")
    ledger.tag("products@v1.0.0", sha, "products v1")
    models.promote(1)
    load_on_start(repository(workspace), 1)
    assert verify(workspace).broken == []
    (folder / "record.json").write_text(json.dumps(lineage | {"metrics": {}}))
    assert broken_links(workspace) == ["lineage"]


def test_the_verb_names_the_link_in_text_and_in_json(workspace: Workspace) -> None:
    shop = ("--workspace", workspace.root)
    whole = cleanshelf("verify", *shop)
    assert (whole.returncode, whole.stdout) == (0, "every link of model version 2 holds\n"), whole.stderr
    damage(repository(workspace).path(2) / "model.onnx")
    broken = cleanshelf("verify", "2", *shop, "--json")
    assert broken.returncode == 3, broken.stderr
    report = json.loads(broken.stdout)
    assert (report["version"], [each["link"] for each in report["broken"]], report["gone"]) == (2, ["files"], [])
    assert "products/2/model.onnx sha256 is" in cleanshelf("verify", *shop).stdout
    assert "there is no model version 9; there are: 2, 1" in refusal(cleanshelf("verify", "9", *shop))


def test_a_model_is_rolled_back_during_a_training_and_without_prefect(workspace: Workspace) -> None:
    script = "import sys; sys.modules |= {'prefect': None, 'torch': None}; from flows.cli import main; main()"
    command = [sys.executable, "-c", script, "model", "rollback", "--workspace", workspace.root, "--json"]
    with workspace.lock("retrain"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout or "0")) == (0, {"serving": 1}), done.stderr
    assert broken_links(workspace) == broken_links(workspace, 2) == []
