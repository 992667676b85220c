"""The exported graph, compared with its networks."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional
from torchvision.transforms import TenCrop

from models.data.manifest import read_manifest
from models.errors import ParityError, WeightsMismatch
from models.export import parity
from models.export.__main__ import describe, export, main
from models.export.calibrate import Chosen
from models.export.graph import Branch, DeployGraph, GraphOutput, crop_boxes, fold_head
from models.export.onnx_file import write_onnx
from models.export.ood import UNCALIBRATED, Calibration
from models.export.patch import read_metadata, stamp
from models.export.resize import Resize, resize_matrix
from models.export.session import open_session
from models.networks.network import build_network
from models.recipe.config import Export, Member, Recipe, to_dict
from models.training.train import Trained, load_network, save_network

SETTINGS = Export(input_size=40, crops=2, enlarge=(1.25,))
CLASSES = ["apple", "bean", "corn", "dill"]


def trained(size: int, *, seed: int, tau: float = 0.0, classes: list[str] = CLASSES) -> Trained:
    """A network with batch norm statistics of random photos and a classifier with clear preferences."""
    torch.manual_seed(seed)
    member = Member(backbone="test_resnet", size=size, seed=seed)
    network = build_network(member, num_classes=len(classes)).train()
    for _ in range(3):
        network(torch.rand(8, 3, size, size))
    network.head.neck.weight.data.uniform_(0.5, 1.5)
    network.head.classifier.weight.data *= 20 * torch.linspace(0.5, 2, len(classes))[:, None]
    return Trained(network.eval(), member, classes, tau)


@pytest.fixture(scope="module")
def members() -> list[Trained]:
    return [trained(32, seed=1, tau=0.7), trained(24, seed=2)]


@pytest.fixture(scope="module")
def exported(members: list[Trained], data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of an export."""
    out = tmp_path_factory.mktemp("export")
    for i, member in enumerate(members):
        save_network(out / f"{i}.pt", member.network, member=member.member, classes=member.classes, tau=member.tau)
    card = {"data_version": "0123456789ab", "recipe": "tiny"}
    settings = dataclasses.replace(recipe, export=SETTINGS)
    export([out / "0.pt", out / "1.pt"], data=data, recipe=settings, card=card, out=out)
    return out


@pytest.fixture(scope="module")
def golden(exported: Path) -> np.ndarray:
    return np.load(exported / "golden.npy")


@pytest.mark.parametrize("tau", [0.0, 0.8])
def test_a_folded_head_answers_as_the_unfolded(tau: float) -> None:
    head = trained(32, seed=3).network.head
    head.neck.bias.data.normal_()  # fixed at 0 in training, and folded nevertheless
    embed, classifier = fold_head(head, tau=tau)
    features = 3 * torch.randn(50, head.embed.in_features)
    with torch.no_grad():
        plain = head(features)
        torch.testing.assert_close(embed(features), plain.embedding, rtol=1e-5, atol=1e-5)
        if tau == 0:
            torch.testing.assert_close(classifier(embed(features)), plain.logits, rtol=1e-5, atol=1e-4)
        norm = head.classifier.weight.norm(dim=1)
        scaled = plain.logits / (norm / norm.mean()) ** tau
        torch.testing.assert_close(classifier(embed(features)), scaled, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("source", "target"), [(40, 32), (40, 17), (40, 40), (40, 60)])
def test_the_resize_matrix_is_torchs_antialiased_resize(source: int, target: int) -> None:
    weights = resize_matrix(source, target)
    image = torch.rand(2, 3, source, source, dtype=torch.float64)  # in float32 torch's own resize is 3e-6 off
    expected = functional.interpolate(image, (target, target), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(weights @ image.float() @ weights.T, expected.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights.sum(1), torch.ones(target))
    torch.testing.assert_close(Resize(source, target)(image.float()), expected.float(), rtol=0, atol=1e-6)


def test_a_resize_multiplies_few_zeros() -> None:
    resize = Resize(160, 96)
    assert sum(weights.numel() for weights in resize.buffers()) < 160 * 96 / 4
    assert not list(Resize(160, 160).buffers())


@pytest.mark.parametrize("crops", [1, 2, 5, 10])
def test_crops_lie_inside_and_differ(crops: int) -> None:
    boxes = crop_boxes(40, 32, crops)
    assert len(set(boxes)) == crops
    assert boxes[0] == (4, 4, False), "the centre first"
    assert {(top, left) for top, left, _ in boxes} <= {(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)}
    assert sum(mirrored for _, _, mirrored in boxes) == (crops // 2 if crops in (2, 10) else 0)


def test_one_crop_sees_the_whole_photo() -> None:
    branch = Branch(trained(32, seed=1), settings=dataclasses.replace(SETTINGS, crops=1))
    assert (branch.resize.source, branch.resize.target, branch.crops) == (40, 32, [(0, 0, False)])


def slow_answer(members: list[Trained], photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean probabilities (C,) and the first member's normalised embedding (512,), crop by crop with the unfolded networks."""
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].double() / 255
    answers, embedding = [], None
    for member in members:
        size, full = member.member.size, round(member.member.size * SETTINGS.enlarge[0])
        large = functional.interpolate(image, (full, full), mode="bilinear", antialias=True)
        edge = (full - size) // 2
        crop = large[:, :, edge : edge + size, edge : edge + size].float()
        with torch.no_grad():
            outputs = [member.network(view) for view in (crop, crop.flip(3))]
        norm = member.network.head.classifier.weight.norm(dim=1)
        scale = (norm.mean() / norm) ** member.tau
        answers.append(torch.stack([(output.logits * scale).softmax(1)[0] for output in outputs]).mean(0))
        if embedding is None:
            embedding = torch.stack([output.embedding[0] for output in outputs]).mean(0)
    assert embedding is not None
    return torch.stack(answers).mean(0).detach().numpy(), functional.normalize(embedding, dim=0).numpy()


def test_the_file_answers_as_the_networks_one_by_one(
    exported: Path, members: list[Trained], golden: np.ndarray
) -> None:
    ids, probs, _, embedding = open_session(exported / "model.onnx").run(None, {"image": golden})
    assert (ids.dtype, probs.dtype, embedding.dtype) == (np.int64, np.float32, np.float32)
    for photo, row, p, vector in zip(golden, ids, probs, embedding, strict=True):
        mean, direction = slow_answer(members, photo)
        assert row.tolist() == [*np.argsort(-mean), -1], "four classes, and the fifth answer says so"
        assert p == pytest.approx([*-np.sort(-mean), 0], abs=2e-6)
        assert vector == pytest.approx(direction, abs=2e-5)
        assert p.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_any_batch_size_answers_alike(exported: Path, golden: np.ndarray, size: int) -> None:
    session = open_session(exported / "model.onnx")
    assert session.get_inputs()[0].shape[1:] == [40, 40, 3]
    batch = golden[np.arange(size) % len(golden)]
    ids, probs, _, embedding = session.run(None, {"image": batch})
    assert (ids.shape, probs.shape, embedding.shape) == ((size, 5), (size, 5), (size, 512))
    for i in range(size):
        alone = session.run(None, {"image": batch[i : i + 1]})
        assert np.array_equal(alone[0][0], ids[i])
        assert alone[1][0] == pytest.approx(probs[i], abs=1e-6)


def test_only_the_ten_best_of_a_member_take_part_in_the_mean() -> None:
    names = [f"{i:02}" for i in range(30)]
    pair = [trained(32, seed=seed, classes=names) for seed in (1, 2)]
    photos = torch.randint(0, 256, (3, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single = [DeployGraph([one], settings=dataclasses.replace(SETTINGS, keep=30, top_k=30))(photos) for one in pair]
        ids, probs, *_ = DeployGraph(pair, settings=dataclasses.replace(SETTINGS, top_k=8))(photos)
    total = torch.zeros(3, 30)
    for one_ids, one_probs, *_ in single:
        total.scatter_add_(1, one_ids[:, :10], one_probs[:, :10] / 2)
    best = total.topk(8)
    assert torch.equal(ids, best.indices)
    torch.testing.assert_close(probs, best.values)


@pytest.mark.parametrize(("size", "enlarge"), [(32, 1.25), (24, 1.5), (33, 1.15)])
def test_ten_crops_are_torchvisions(size: int, enlarge: float) -> None:
    """The crops are equal, in any order."""
    settings = Export(input_size=40, crops=10, enlarge=(enlarge,))
    branch = Branch(trained(size, seed=1), settings=settings)
    pixels = torch.rand(1, 3, 40, 40)
    full = branch.resize(pixels)
    ours = [branch._crop(full, *box)[0] for box in branch.crops]
    theirs = [view[0] for view in TenCrop(size)(full)]
    assert len(ours) == len(theirs) == 10
    assert {view.numpy().tobytes() for view in ours} == {view.numpy().tobytes() for view in theirs}


def test_crops_that_coincide_are_asked_once() -> None:
    assert crop_boxes(32, 32, 10) == [(0, 0, False), (0, 0, True)]
    assert crop_boxes(32, 32, 5) == [(0, 0, False)]


@pytest.mark.parametrize("weights", [[0.75, 0.25], [0.1, 0.9]])
def test_weights_fold_exactly(members: list[Trained], weights: list[float], tmp_path: Path) -> None:
    """The file gives the weighted mean of the members' answers."""
    photos = torch.randint(0, 256, (5, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    graph = DeployGraph(members, settings=SETTINGS, weights=weights)
    write_onnx(graph, tmp_path / "model.onnx", input_size=40, metadata={})
    ids, probs, _, embedding = open_session(tmp_path / "model.onnx").run(None, {"image": photos.numpy()})
    total = np.zeros((5, 4), np.float64)
    for weight, member in zip(weights, members, strict=True):
        alone = dataclasses.replace(SETTINGS, keep=4, top_k=4)
        with torch.no_grad():
            their_ids, their_probs, *_ = DeployGraph([member], settings=alone)(photos)
        np.put_along_axis(
            total, their_ids.numpy(), np.take_along_axis(total, their_ids.numpy(), 1) + weight * their_probs.numpy(), 1
        )
    assert np.array_equal(ids[:, :4], np.argsort(-total, 1))
    assert probs[:, :4] == pytest.approx(-np.sort(-total, 1), abs=1e-6)
    assert embedding == pytest.approx(graph(photos).embedding.detach().numpy(), abs=1e-5)
    parity.require_parity(parity.measure_parity(graph, tmp_path / "model.onnx", photos.numpy()))


def test_a_member_without_weight_is_no_part_of_the_graph(
    exported: Path, data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = {"recipe": to_dict(recipe), "card": {"recipe": "tiny"}, "ensemble": {"weights": [0.0, 1.0]},
               "crops": {"crops": 2, "enlarge": 1.5}, "calibration": Chosen(UNCALIBRATED).to_dict()}  # fmt: skip
    arguments = ["--data", data, "--out", tmp_path, "--networks", exported / "0.pt", exported / "1.pt"]
    for name, content in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        arguments += [f"--{name}", tmp_path / f"{name}.json"]
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    main()
    card = read_metadata(tmp_path / "model.onnx")
    assert [(m["size"], m["weight"]) for m in json.loads(card["members"])] == [(24, 1.0)]
    assert json.loads(card["views"]) == {"crops": 2, "enlarge": 1.5}
    alone = load_network(exported / "1.pt")
    photos = torch.from_numpy(np.load(tmp_path / "golden.npy"))
    with torch.no_grad():
        ids, probs, *_ = DeployGraph([alone], settings=Export(input_size=40, crops=2, enlarge=(1.5,)))(photos)
    answers = open_session(tmp_path / "model.onnx").run(None, {"image": photos.numpy()})
    assert np.array_equal(answers[0], ids)
    assert answers[1] == pytest.approx(probs.numpy(), abs=1e-6)


def test_members_must_know_the_same_classes(members: list[Trained]) -> None:
    with pytest.raises(WeightsMismatch, match="know different classes"):
        DeployGraph([members[0], trained(24, seed=2, classes=["apple", "bean", "corn", "date"])], settings=SETTINGS)


@pytest.mark.parametrize("harm", ["classifier", "backbone", "nan"])
def test_parity_refuses_a_graph_whose_weights_were_changed(exported: Path, golden: np.ndarray, harm: str) -> None:
    own = [load_network(exported / f"{i}.pt") for i in (0, 1)]
    parity.require_parity(parity.measure_parity(DeployGraph(own, settings=SETTINGS), exported / "model.onnx", golden))
    graph = DeployGraph(own, settings=SETTINGS)
    branch = graph.branches[1]
    assert isinstance(branch, Branch)
    with torch.no_grad():
        if harm == "classifier":
            branch.classifier.weight[2, 5] += 0.01
        elif harm == "backbone":
            next(branch.backbone.parameters()).mul_(1.001)
        else:
            branch.classifier.weight[2, 5] = float("nan")
    found = parity.measure_parity(graph, exported / "model.onnx", golden)
    with pytest.raises(ParityError, match=r"differs from torch on 4 photos: .* it must not be served"):
        parity.require_parity(found)


@pytest.mark.parametrize("harm", [None, "classifier"])
def test_a_gpu_that_answers_otherwise_is_not_used(
    exported: Path, members: list[Trained], golden: np.ndarray, tmp_path: Path, harm: str | None
) -> None:
    """A session of another graph stands for a GPU whose kernels compute something else."""
    session = open_session(exported / "model.onnx")
    if harm is None:
        parity.require_same_on_gpu(session, session, golden)
        return
    graph = DeployGraph([members[1], members[0]], settings=SETTINGS, weights=[0.9, 0.1])
    write_onnx(graph, tmp_path / "model.onnx", input_size=40, metadata={})
    with pytest.raises(ParityError, match=r"answers otherwise on this GPU .* hide the GPU"):
        parity.require_same_on_gpu(open_session(tmp_path / "model.onnx"), session, golden)


@pytest.mark.parametrize(("figure", "word"), [("probability", "probabilities"), ("known", "known")])
def test_an_answer_that_is_no_number_is_no_agreement(figure: str, word: str) -> None:
    same = parity.Parity(1, 0, probability=0.0, known=0.0, embedding=0.0, rounding=0.0, known_rounding=0.0)
    parity.require_parity(same)
    with pytest.raises(ParityError, match=f"{word} by nan"):
        parity.require_parity(dataclasses.replace(same, **{figure: float("nan")}))


def test_rounding_is_measured_and_the_one_excuse(exported: Path, golden: np.ndarray) -> None:
    own = [load_network(exported / f"{i}.pt") for i in (0, 1)]
    found = parity.measure_parity(DeployGraph(own, settings=SETTINGS), exported / "model.onnx", golden)
    assert 0 < found.rounding < 1e-5
    rough = dataclasses.replace(found, probability=3e-5, rounding=1e-5)
    parity.require_parity(rough)
    with pytest.raises(ParityError, match=r"by 3.0e-05 \(allowed 1.2e-05\)"):
        parity.require_parity(dataclasses.replace(rough, rounding=3e-6))


@pytest.mark.parametrize("size", parity.BATCHES)
def test_rounding_is_measured_in_batches_of_every_size(exported: Path, golden: np.ndarray, size: int) -> None:
    """Torch may take another kernel for another batch, as if a photo had slightly other answers in it."""
    graph = DeployGraph([load_network(exported / f"{i}.pt") for i in (0, 1)], settings=SETTINGS)

    def rounded(_: torch.nn.Module, images: tuple[torch.Tensor], found: GraphOutput) -> GraphOutput:
        rough = 2e-5 * (len(images[0]) == size and found.probs.dtype == torch.float32)
        return found._replace(probs=found.probs + rough, known=found.known + rough)

    graph.register_forward_hook(rounded)
    found = parity.measure_parity(graph, exported / "model.onnx", np.concatenate([golden, golden])[:7])
    assert found.rounding == pytest.approx(2e-5, rel=0.1)
    assert found.known_rounding == pytest.approx(2e-5, rel=0.1)
    parity.require_parity(found)


def test_the_file_describes_itself(exported: Path, data: Path) -> None:
    card = read_metadata(exported / "model.onnx")
    assert (card["data_version"], card["recipe"]) == ("0123456789ab", "tiny")
    assert json.loads(card["labels"]) == read_manifest(data).classes == CLASSES
    assert [(m["size"], m["tau"], m["weight"]) for m in json.loads(card["members"])] == [(32, 0.7, 0.5), (24, 0.0, 0.5)]
    assert json.loads(card["views"]) == {"crops": 2, "enlarge": 1.25}
    assert json.loads(card["metrics"]) == json.loads((exported / "accuracy.json").read_text())
    assert json.loads(card["parity"])["different_ids"] == 0


def test_the_card_says_what_members_started_from(exported: Path) -> None:
    """Starting weights are named by their file name without its folder; random weights have no licence."""
    fresh = load_network(exported / "0.pt")
    started = dataclasses.replace(
        fresh, member=dataclasses.replace(fresh.member, weights="/some/where/net.safetensors")
    )
    ours = dataclasses.replace(
        fresh.member, backbone="test_resnet.r160_in1k", weights="pretrained", weights_sha256="ab12"
    )
    timms = dataclasses.replace(fresh, member=ours)
    graph = DeployGraph([fresh, started, timms], settings=SETTINGS, weights=[0.25, 0.5, 0.25])
    calibration = Calibration((2.0, 0.5, 1.0), "angle", 3.0, 0.25)
    card = describe(
        [fresh, started, timms], graph, settings=dataclasses.replace(SETTINGS, accept=0.9), calibration=calibration
    )
    assert json.loads(card["members"]) == [
        {"backbone": "test_resnet", "size": 32, "tau": 0.7, "temperature": 2.0, "weight": 0.25, "started_from": "",
         "weights_sha256": "", "licence": "none"},
        {"backbone": "test_resnet", "size": 32, "tau": 0.7, "temperature": 0.5, "weight": 0.5,
         "started_from": "net.safetensors", "weights_sha256": "", "licence": "unknown"},
        {"backbone": "test_resnet.r160_in1k", "size": 32, "tau": 0.7, "temperature": 1.0, "weight": 0.25,
         "started_from": "timm/test_resnet.r160_in1k", "weights_sha256": "ab12", "licence": "apache-2.0"},
    ]  # fmt: skip
    assert json.loads(card["known"]) == {
        "score": "angle",
        "slope": 3.0,
        "threshold": 0.25,
        "accept": 0.9,
        "reject": False,
    }


def test_what_a_network_started_from_is_remembered_and_not_needed(tmp_path: Path) -> None:
    made = trained(32, seed=1)
    member = dataclasses.replace(made.member, weights=str(tmp_path / "gone.safetensors"))
    save_network(tmp_path / "network.pt", made.network, member=member, classes=made.classes)
    assert load_network(tmp_path / "network.pt").member == member


def test_a_stamp_adds_and_replaces_and_leaves_the_weights(exported: Path, golden: np.ndarray, tmp_path: Path) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes((exported / "model.onnx").read_bytes())
    before = read_metadata(copy)
    stamp(copy, {"recipe": "näher", "note": "new"})
    assert read_metadata(copy) == before | {"recipe": "näher", "note": "new"}
    onnx.checker.check_model(copy)
    one, two = (open_session(path).run(["probs"], {"image": golden})[0] for path in (copy, exported / "model.onnx"))
    assert np.array_equal(one, two)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
