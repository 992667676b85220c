"""Enrolment and withdrawal of a product under load: a real workspace, a real server, an untrained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from durable import sha256
from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.endpoint.promotion import register_and_promote
from flows.enrol import enrol_product, withdraw_product
from flows.errors import GateRefused, UnknownVersion, WorkspaceBusy
from flows.registry.repository import repository
from flows.registry.versions import ModelVersions
from flows.rollback import rollback_model
from flows.run.run import ResultCache
from flows.sample.draw import draw
from flows.sample.families import Sku, assortment
from flows.verify import verify
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.data.manifest import read_manifest
from models.errors import EnrolmentError
from models.evaluation.accuracy import accuracy
from models.export.graph import DeployGraph
from models.export.measure import measure, write_answers
from models.export.onnx_file import write_onnx
from models.export.patch import name_classes, read_metadata
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.classifiers import class_means, set_classifier
from models.training.train import Trained
from pixels import BadPhoto, decode, to_square
from serving import Recognizer
from serving.repository.curve import SIZES, noise
from serving.server.environment import Environment
from tests.command_line import cleanshelf, refusal, snapshot
from tests.endpoint_client import RepeatingClient, running_endpoint

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.triton,
]

SIZE = 48
*KNOWN, NEW = assortment()[::4]  # one product of each brand
ANY = ("gate.enrol=1", "gate.head=1", "gate.middle=1", "gate.tail=1")
NEVER = ("gate.enrol=-1",)  # one whole point better


def photos(folder: Path, sku: Sku, count: int, *, seed: int) -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        draw(sku, random).save(folder / f"{number}.jpg")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, triton_environment: Environment) -> Workspace:
    """Workspace with one data version, and model version 1: random features, classified by class means."""
    root = tmp_path_factory.mktemp("shop")
    workspace = Workspace.init(root / "shop")
    for number, sku in enumerate(KNOWN):
        photos(root / "delivery" / sku.label, sku, 12, seed=number)
    versions = DataVersions(workspace)
    folder = versions.new_folder()
    build_version(root / "delivery", base=None, out=folder, test_share=0.3)
    data = versions.materialise(versions.commit(folder, step="ingest", message="first"))
    graph = write_graph(data, root / "model.onnx")
    lineage = {"run": "none", "parent": None, "recipe": "by hand", "config_hash": "", "commit": "", "data_version": data.name,
              "graph_sha256": sha256(graph), "metrics": {}, "parity": {}, "verdict": []}  # fmt: skip
    manifest = read_manifest(data)
    golden = np.stack([to_square(decode(manifest.read_photo(row)), SIZE) for row in range(3)])
    with workspace.lock("test", name="serving"):
        assert register_and_promote(workspace, graph, lineage=lineage, labels=manifest.classes, golden=golden) == 1
    files = ("model.onnx", "answers.npz", "accuracy.json")
    ResultCache(workspace).cached("export", files=files, work=lambda out: leave_export(graph, data, out))
    return workspace


def leave_export(graph: Path, data: Path, out: Path) -> None:
    """Writes what the export of a retraining leaves of its measurement."""
    shutil.copyfile(graph, out / "model.onnx")
    write_answers(graph, read_manifest(data), out)


def write_graph(data: Path, path: Path) -> Path:
    manifest = read_manifest(data)
    torch.manual_seed(0)
    member = Member(backbone="test_resnet", size=32)
    network = build_network(member, num_classes=len(manifest.classes))
    pixels = torch.from_numpy(
        np.stack([to_square(decode(manifest.read_photo(row)), 32) for row in range(len(manifest))])
    )
    train = manifest.split == "train"
    with torch.no_grad():
        for _ in range(40):  # so that the neck gets statistics
            network.train()(pixels.permute(0, 3, 1, 2) / 255)
        embedding = network.eval()(pixels.permute(0, 3, 1, 2) / 255).embedding[torch.from_numpy(train)]
        rows, bias = class_means(embedding, manifest.target[train], num_classes=len(manifest.classes))
    set_classifier(network.head, rows, bias)
    graph = DeployGraph([Trained(network, member, manifest.classes, 0.0)], settings=Export(input_size=SIZE, crops=2))
    write_onnx(graph, path, input_size=SIZE, metadata=name_classes(manifest.classes) | {"data_version": data.name})
    return path


@pytest.fixture
def workspace(shop: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(shop.root, tmp_path / "shop", symlinks=True)))


@pytest.fixture(scope="module")
def new_photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five photos of the new product, for its enrolment."""
    return photos(tmp_path_factory.mktemp("new_photos") / "new", NEW, 5, seed=100)


def models(workspace: Workspace) -> ModelVersions:
    return ModelVersions(Ledger(workspace.root))


def test_a_product_is_enrolled_and_withdrawn_while_requests_are_answered(
    workspace: Workspace, new_photos: list[Path], tmp_path: Path
) -> None:
    later = photos(tmp_path / "later", NEW, 8, seed=200)
    for folder in workspace.runs.glob("stages/export-*"):  # as if it had been cleared out
        shutil.rmtree(folder)
    with (
        running_endpoint(workspace) as access,
        RepeatingClient(workspace, access) as client,
        Recognizer(access, labels=repository(workspace).labels) as recognizer,
    ):
        client.wait_for_answers(20)
        before = recognizer.recognise(later)
        assert NEW.label not in {answer.ranked[0][0] for answer in before}

        added = enrol_product(workspace, NEW.label, new_photos, overrides=ANY)
        assert (added.model_version, added.parent, added.products) == (2, 1, len(KNOWN) + 1)
        client.wait_for_answers(20)
        right = [answer.ranked[0][0] == NEW.label for answer in recognizer.recognise(later)]
        assert np.mean(right) >= 0.5
        assert {answer.model_version for answer in recognizer.recognise(later)} == {2}

        withdrawn = withdraw_product(workspace, NEW.label, overrides=ANY)
        assert (withdrawn.model_version, withdrawn.products) == (3, len(KNOWN))
        client.wait_for_answers(20)
        after = recognizer.recognise(later)
    assert [answer.ranked for answer in after] == [answer.ranked for answer in before], "the same bits"
    assert client.errors == []
    answered_by = np.array(client.versions)
    assert set(answered_by) == {1, 2, 3}
    assert (np.diff(answered_by) >= 0).all(), "versions do not alternate"
    assert len([*workspace.runs.glob("stages/measure-*")]) == 1, "the model was measured once, for both changes"


@pytest.mark.slow
def test_no_test_photo_goes_through_a_graph_that_was_measured_at_its_publication(
    workspace: Workspace, new_photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    run = onnxruntime.InferenceSession.run

    def counted(session: onnxruntime.InferenceSession, names: list[str], feeds: dict[str, np.ndarray[Any, Any]]) -> Any:
        asked.extend(image.tobytes() for image in feeds.get("image", ()))
        return run(session, names, feeds)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    added = enrol_product(workspace, NEW.label, new_photos, overrides=ANY)
    removed = withdraw_product(workspace, KNOWN[0].label, overrides=ANY)
    assert (added.model_version, removed.model_version) == (2, 3)
    assert [*workspace.runs.glob("stages/measure-*")] == [], "no other process measured it"
    manifest = read_manifest(DataVersions(workspace).materialise("selected"))
    golden = {image.tobytes() for version in (1, 2) for image in repository(workspace).golden(version).image}
    own = {to_square(decode(path.read_bytes()), SIZE).tobytes() for path in new_photos}
    test = {
        to_square(decode(manifest.read_photo(row)), SIZE).tobytes() for row in np.flatnonzero(manifest.split == "test")
    }
    drawn = {image.tobytes() for size in SIZES for image in noise(size, SIZE)}  # for the curve of the graph
    assert set(asked) <= golden | own | drawn
    assert len(test - golden) > 20
    [measured] = workspace.runs.glob("stages/export-*")
    for version in (2, 3):  # the figures are those that the photos would give
        ranked, _, target = measure(
            repository(workspace).path(version) / "model.onnx", manifest, np.load(measured / "rows.npy")
        )
        known = np.isin(
            manifest.label[np.load(measured / "rows.npy")].astype(str), [sku.label for sku in KNOWN[version - 2 :]]
        )
        figures = accuracy(ranked[known], target[known], train_counts=manifest.train_counts())
        assert figures.to_dict() == models(workspace).lineage(version)["metrics"]


def test_the_lineage_names_the_enrolled_photos_and_the_version_before(
    workspace: Workspace, new_photos: list[Path]
) -> None:
    done = enrol_product(workspace, NEW.label, new_photos, overrides=ANY)
    lineage, versions = models(workspace).lineage(2), repository(workspace)
    hashes = [sha256(path) for path in new_photos]
    assert sorted(lineage["photos"]) == sorted(done.photos) == sorted(hashes)
    assert (lineage["parent"], lineage["step"], lineage["data_version"]) == (
        1,
        f"enrol {NEW.label}",
        models(workspace).lineage(1)["data_version"],
    )
    assert lineage["enrolled"] == [{"label": NEW.label, "photos": 5, "sha256": lineage["photos"]}]
    assert lineage["verdict"] == list(done.reasons)
    assert lineage["parity"]["different_ids"] == 0
    assert lineage["parity"]["probability"] < 1e-6
    versions.verify(2)
    card = read_metadata(versions.path(2) / "model.onnx")
    assert json.loads(card["labels"]) == list(versions.labels(2)) == [*sorted(sku.label for sku in KNOWN), NEW.label]
    assert json.loads(card["metrics"]) == lineage["metrics"]
    assert json.loads(card["enrolled"]) == lineage["enrolled"]
    assert lineage["graph_sha256"] == sha256(versions.path(2) / "model.onnx")
    assert lineage["made_from"] == sha256(versions.path(1) / "model.onnx")
    assert verify(workspace).broken == []


@pytest.mark.slow
def test_the_same_again_after_a_rollback_is_the_same_version(workspace: Workspace, new_photos: list[Path]) -> None:
    assert enrol_product(workspace, NEW.label, new_photos, overrides=ANY).model_version == 2
    assert rollback_model(workspace) == 1
    assert enrol_product(workspace, NEW.label, new_photos, overrides=ANY).model_version == 2
    assert models(workspace).current() == 2


def test_a_refused_product_changes_nothing(workspace: Workspace, new_photos: list[Path]) -> None:
    with pytest.raises(GateRefused, match=r"mean-class accuracy .*--set gate.enrol"):
        enrol_product(workspace, NEW.label, new_photos, overrides=NEVER)
    assert (models(workspace).current(), [entry.version for entry in models(workspace).log()]) == (1, [1])
    assert (repository(workspace).versions(), repository(workspace).configured()) == ((1,), (1,))


def test_an_enrolment_during_a_publication_is_refused(workspace: Workspace, new_photos: list[Path]) -> None:
    with workspace.lock("publish", name="serving"), pytest.raises(WorkspaceBusy, match="publish"):
        enrol_product(workspace, NEW.label, new_photos, overrides=ANY)
    assert models(workspace).current() == 1


def test_all_files_that_are_not_photos_are_named(workspace: Workspace, new_photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(new_photos[0].read_bytes()[:200])
    bad = [tmp_path / "broken.jpg", tmp_path / "missing.jpg", tmp_path]
    with pytest.raises(BadPhoto, match=r"broken\.jpg: .*missing\.jpg: No such file.*is not a file; leave them out"):
        enrol_product(workspace, NEW.label, [new_photos[0], *bad])


def test_what_cannot_be_enrolled_or_withdrawn_is_refused(
    workspace: Workspace, new_photos: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(EnrolmentError, match="already"):
        enrol_product(workspace, KNOWN[0].label, new_photos)
    with pytest.raises(EnrolmentError, match="is not a product of the current model"):
        withdraw_product(workspace, NEW.label)
    with pytest.raises(UnknownVersion, match="retrain"):
        enrol_product(Workspace.init(tmp_path / "empty"), NEW.label, new_photos)


def test_a_dry_run_changes_nothing(workspace: Workspace, new_photos: list[Path]) -> None:
    before = snapshot(workspace.root)
    added, withdrawn = (
        enrol_product(workspace, NEW.label, new_photos, dry_run=True),
        withdraw_product(workspace, KNOWN[0].label, dry_run=True),
    )
    assert (added.products, added.model_version) == (len(KNOWN) + 1, None)
    assert (withdrawn.products, withdrawn.model_version) == (len(KNOWN) - 1, None)
    assert snapshot(workspace.root) == before


def test_the_verbs_and_their_exit_codes(
    workspace: Workspace, new_photos: list[Path], triton_environment: Environment
) -> None:
    env = {"CLEANSHELF_TRITON_ENV": str(triton_environment.path)}
    enrolment = ("enrol", NEW.label, *new_photos, "--workspace", workspace.root, "--set")
    assert "only keys of [gate]" in refusal(cleanshelf(*enrolment, "train.epochs=3", env=env))
    refused = cleanshelf(*enrolment, NEVER[0], env=env)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "cleanshelf: refused: mean-class accuracy" in refused.stderr
    done = cleanshelf(*enrolment, ANY[0], "--set", ANY[1], env=env)
    assert done.returncode == 0, done.stderr
    assert f"model version 2 is the current model instead of 1: {NEW.label} is known from 5 photos" in done.stdout
    assert "next retraining forgets" in done.stdout
    withdrawn = cleanshelf(
        "withdraw", KNOWN[0].label, "--workspace", workspace.root, "--set", ANY[0], "--set", ANY[1], "--json", env=env
    )
    assert json.loads(withdrawn.stdout)["model_version"] == 3
    assert KNOWN[0].label not in repository(workspace).labels(3)
