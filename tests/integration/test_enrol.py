"""Enrols and withdraws a product while a client keeps asking: real workspace, real server, an untrained model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
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
from flows.sample.draw import draw
from flows.sample.families import Sku, assortment
from flows.verify import verify
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from models.data.manifest import read_manifest
from models.errors import EnrolmentError
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.patch import name_classes, read_metadata
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.classifiers import class_means, set_classifier
from models.training.train import Trained
from pixels import BadPhoto, decode, to_square
from serving import Recognizer
from serving.server.environment import Environment
from tests.asking import Asking, served
from tests.command_line import cleanshelf, refusal, snapshot

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.triton,
]

SIZE = 48
*KNOWN, NEW = assortment()[::4]  # one pack of each brand
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
    """A workspace with one data version, and model version 1: random features, classified by the class means of its photos."""
    place = tmp_path_factory.mktemp("shop")
    workspace = Workspace.init(place / "shop")
    for number, sku in enumerate(KNOWN):
        photos(place / "delivery" / sku.label, sku, 12, seed=number)
    versions = DataVersions(workspace)
    folder = versions.new_folder()
    build_version(place / "delivery", base=None, out=folder, test_share=0.3)
    data = versions.materialise(versions.commit(folder, step="ingest", message="first"))
    graph = write_graph(data, place / "model.onnx")
    lineage = {"run": "none", "parent": None, "recipe": "by hand", "config_hash": "", "commit": "", "data_version": data.name,
              "graph_sha256": sha256(graph), "metrics": {}, "parity": {}, "verdict": []}  # fmt: skip
    manifest = read_manifest(data)
    golden = np.stack([to_square(decode(manifest.read_photo(row)), SIZE) for row in range(3)])
    with workspace.lock("test", name="serving"):
        assert register_and_promote(workspace, graph, lineage=lineage, labels=manifest.classes, golden=golden) == 1
    return workspace


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
        for _ in range(40):  # statistics of the neck
            network.train()(pixels.permute(0, 3, 1, 2) / 255)
        embedding = network.eval()(pixels.permute(0, 3, 1, 2) / 255).embedding[torch.from_numpy(train)]
        rows, bias = class_means(embedding, manifest.target[train], num_classes=len(manifest.classes))
    set_classifier(network.head, rows, bias)
    graph = DeployGraph([Trained(network, member, manifest.classes, 0.0)], settings=Export(input_size=SIZE, crops=2))
    write_onnx(graph, path, input_size=SIZE, metadata=name_classes(manifest.classes) | {"data_version": data.name})
    return path


@pytest.fixture
def own(shop: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(shop.root, tmp_path / "shop", symlinks=True)))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photos of the new product to enrol it by."""
    return photos(tmp_path_factory.mktemp("few") / "new", NEW, 5, seed=100)


def models(workspace: Workspace) -> ModelVersions:
    return ModelVersions(Ledger(workspace.root))


def test_a_product_comes_and_goes_while_requests_are_answered(own: Workspace, few: list[Path], tmp_path: Path) -> None:
    later = photos(tmp_path / "later", NEW, 8, seed=200)
    with (
        served(own) as access,
        Asking(own, access) as asking,
        Recognizer(access, labels=repository(own).labels) as recognizer,
    ):
        asking.wait_for(20)
        before = recognizer.recognise(later)
        assert NEW.label not in {answer.ranked[0][0] for answer in before}

        added = enrol_product(own, NEW.label, few, overrides=ANY)
        assert (added.model_version, added.parent, added.products) == (2, 1, len(KNOWN) + 1)
        asking.wait_for(20)
        right = [answer.ranked[0][0] == NEW.label for answer in recognizer.recognise(later)]
        assert np.mean(right) >= 0.5
        assert {answer.model_version for answer in recognizer.recognise(later)} == {2}

        gone = withdraw_product(own, NEW.label, overrides=ANY)
        assert (gone.model_version, gone.products) == (3, len(KNOWN))
        asking.wait_for(20)
        after = recognizer.recognise(later)
    assert [answer.ranked for answer in after] == [answer.ranked for answer in before], "bit for bit"
    assert asking.failed == []
    answered = np.array(asking.answered)
    assert set(answered) == {1, 2, 3}
    assert (np.diff(answered) >= 0).all(), "never to and fro"


def test_the_version_says_what_was_done_to_which(own: Workspace, few: list[Path]) -> None:
    done = enrol_product(own, NEW.label, few, overrides=ANY)
    lineage, versions = models(own).lineage(2), repository(own)
    hashes = [sha256(path) for path in few]
    assert sorted(lineage["photos"]) == sorted(done.photos) == sorted(hashes)
    assert (lineage["parent"], lineage["step"], lineage["data_version"]) == (
        1,
        f"enrol {NEW.label}",
        models(own).lineage(1)["data_version"],
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
    assert verify(own).broken == []


def test_the_same_again_after_a_rollback_is_the_same_version(own: Workspace, few: list[Path]) -> None:
    assert enrol_product(own, NEW.label, few, overrides=ANY).model_version == 2
    assert rollback_model(own) == 1
    assert enrol_product(own, NEW.label, few, overrides=ANY).model_version == 2
    assert models(own).current() == 2


def test_a_refused_product_changes_nothing(own: Workspace, few: list[Path]) -> None:
    with pytest.raises(GateRefused, match=r"mean-class accuracy .*--set gate.enrol"):
        enrol_product(own, NEW.label, few, overrides=NEVER)
    assert (models(own).current(), [entry.version for entry in models(own).log()]) == (1, [1])
    assert (repository(own).versions(), repository(own).configured()) == ((1,), (1,))


def test_a_switch_meanwhile_is_noticed(own: Workspace, few: list[Path]) -> None:
    with own.lock("publish", name="serving"), pytest.raises(WorkspaceBusy, match="publish"):
        enrol_product(own, NEW.label, few, overrides=ANY)
    assert models(own).current() == 1


def test_photos_that_are_none_are_all_named(own: Workspace, few: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(few[0].read_bytes()[:200])
    bad = [tmp_path / "broken.jpg", tmp_path / "missing.jpg", tmp_path]
    with pytest.raises(BadPhoto, match=r"broken\.jpg: .*missing\.jpg: No such file.*Is a directory; leave them out"):
        enrol_product(own, NEW.label, [few[0], *bad])


def test_what_cannot_be_enrolled_or_withdrawn_is_refused(own: Workspace, few: list[Path], tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="already"):
        enrol_product(own, KNOWN[0].label, few)
    with pytest.raises(EnrolmentError, match="is not a product of the current model"):
        withdraw_product(own, NEW.label)
    with pytest.raises(UnknownVersion, match="retrain"):
        enrol_product(Workspace.init(tmp_path / "empty"), NEW.label, few)


def test_a_rehearsal_changes_nothing(own: Workspace, few: list[Path]) -> None:
    before = snapshot(own.root)
    added, gone = (
        enrol_product(own, NEW.label, few, dry_run=True),
        withdraw_product(own, KNOWN[0].label, dry_run=True),
    )
    assert (added.products, added.model_version) == (len(KNOWN) + 1, None)
    assert (gone.products, gone.model_version) == (len(KNOWN) - 1, None)
    assert snapshot(own.root) == before


def test_the_verbs_and_their_exit_codes(own: Workspace, few: list[Path], triton_environment: Environment) -> None:
    env = {"CLEANSHELF_TRITON_ENV": str(triton_environment.path)}
    enrolment = ("enrol", NEW.label, *few, "--workspace", own.root, "--set")
    assert "only keys of [gate]" in refusal(cleanshelf(*enrolment, "train.epochs=3", env=env))
    refused = cleanshelf(*enrolment, NEVER[0], env=env)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "cleanshelf: refused: mean-class accuracy" in refused.stderr
    done = cleanshelf(*enrolment, ANY[0], "--set", ANY[1], env=env)
    assert done.returncode == 0, done.stderr
    assert f"model version 2 answers instead of 1: {NEW.label} is known from 5 photos" in done.stdout
    assert "next retraining forgets" in done.stdout
    gone = cleanshelf(
        "withdraw", KNOWN[0].label, "--workspace", own.root, "--set", ANY[0], "--set", ANY[1], "--json", env=env
    )
    assert json.loads(gone.stdout)["model_version"] == 3
    assert KNOWN[0].label not in repository(own).labels(3)
