"""Distillation: the loss against its formula, the teacher's answers, and the photos that a student learns from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.data.manifest import UNLABELLED, Manifest, read_manifest
from models.data.photos import Photos
from models.errors import CheckpointMismatch, ConfigError, WeightsMismatch
from models.evaluation.scores import read_scores
from models.export import teacher
from models.export.crops import Ensemble
from models.losses.base import LossBatch
from models.losses.distilled import Distilled
from models.networks.inputs import Features
from models.networks.network import Head, Network, build_network
from models.recipe.config import Distil, Member, Recipe, Train, from_dict
from models.training import distil
from models.training.answers import Answers, open_answers, read_answers, student_rows
from models.training.check import check
from models.training.epochs import fit
from models.training.job import Job
from models.training.train import Trained, load_network, train

Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]
TEMPERATURES = (1.0, 3.0)


def sparse(logits: Tensor, *, keep: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Classes and probabilities of a teacher with these logits (N, C), as its answers hold them."""
    probs, classes = (logits / temperature).softmax(1).topk(keep)
    return classes.int(), torch.cat([probs, 1 - probs.sum(1, keepdim=True)], 1).half()


def divergence(taught: Tensor, learnt: Tensor, *, keep: int, temperature: float) -> Tensor:
    """(N,) T^2 sum_k p_k log(p_k / q_k) over the teacher's `keep` best classes, and over all others as one; in float64."""
    p, q = ((each.double() / temperature).softmax(1) for each in (taught, learnt))
    values = []
    for p_row, q_row in zip(p, q, strict=True):
        best = p_row.argsort(descending=True)[:keep]
        events = [(p_row[k], q_row[k]) for k in best] + [(1 - p_row[best].sum(), 1 - q_row[best].sum())]
        values.append(temperature**2 * torch.stack([a * torch.log(a / b) for a, b in events if a > 1e-12]).sum())
    return torch.stack(values)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("keep", [1, 4, 9])
def test_the_loss_and_its_gradient_follow_the_formula(keep: int, temperature: float) -> None:
    draw = torch.Generator().manual_seed(keep)
    taught, learnt = (2 * torch.randn(12, 10, generator=draw) for _ in range(2))
    classes, probs = sparse(taught, keep=keep, temperature=temperature)
    loss, order = Distilled(10, classes, probs, temperature=temperature), torch.randperm(12, generator=draw)
    logits, reference = learnt[order].requires_grad_(), learnt[order].double().requires_grad_()
    value = loss(logits, classes[order, 0].long(), order)
    expected = divergence(taught[order], reference, keep=keep, temperature=temperature)
    torch.testing.assert_close(value.double(), expected, atol=3e-3, rtol=3e-3)  # answers are in half precision
    (slope,), (right,) = (torch.autograd.grad(v.sum(), x) for v, x in ((value, logits), (expected, reference)))
    torch.testing.assert_close(slope.double(), right, atol=3e-3, rtol=3e-3)


def test_with_all_classes_but_one_it_is_the_divergence_of_the_whole_answer() -> None:
    taught, learnt = (torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    loss = Distilled(5, *sparse(taught, keep=4))
    whole = functional.kl_div(learnt.log_softmax(1), taught.softmax(1), reduction="none").sum(1)
    value = loss(learnt, taught.argmax(1), torch.arange(6))
    torch.testing.assert_close(value, whole, atol=2e-3, rtol=2e-3)
    assert loss(taught, taught.argmax(1), torch.arange(6)).abs().max() < 1e-3, "nothing is left to learn"


def test_a_sure_teacher_and_a_sure_student_leave_finite_gradients() -> None:
    logits = torch.tensor([[80.0, -80.0, 0.0, 0.0], [-80.0, 80.0, 0.0, 0.0]]).requires_grad_()
    loss = Distilled(4, torch.tensor([[0, 1], [0, 1]]).int(), torch.tensor([[1.0, 0.0, 0.0]] * 2).half())
    value = loss(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    value.sum().backward()
    assert value.tolist() == pytest.approx([0, 160])
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def clusters(num: int = 240, *, num_classes: int = 6) -> tuple[Tensor, Tensor]:
    """Points (2, N, 8) around six centres, and the logits (N, 6) of a teacher that knows the centres."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(num_classes, 8, generator=draw)
    points = centres[torch.arange(num) % num_classes] + 0.5 * torch.randn(num, 8, generator=draw)
    return points.expand(2, -1, -1), -torch.cdist(points, centres).square()


class Student(Network):
    """A head on points instead of a backbone."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(1))
        self.backbone, self.head = torch.nn.Identity(), Head(8, num_classes=6)


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_student_of_drawn_clusters_comes_to_answer_like_its_teacher(tmp_path: Path, mixup: float) -> None:
    """Half of the labels are wrong, but no label is used: the teacher's answers are."""
    recipe = from_dict({"name": "s", "augment": {"mixup": mixup},
                        "distil": {"backbone": "none", "epochs": 12, "batch_size": 24, "lr": 1e-2}})  # fmt: skip
    torch.manual_seed(0)
    points, taught = clusters()
    student, (classes, probs) = Student(), sparse(taught, keep=3)
    inputs, ids = Features(points, student.head, augment=recipe.augment.of_features), np.arange(240).astype(str)
    answers = Answers(tmp_path, classes.numpy(), probs.numpy(), "key")
    distil.learn(recipe, student, answers, ids=ids.astype(object), inputs=inputs, out=tmp_path)
    learnt = student.eval().head(points[0]).logits.detach()
    assert float((learnt.argmax(1) == taught.argmax(1)).float().mean()) > 0.97
    assert float(divergence(taught, learnt, keep=3, temperature=1.0).mean()) < 0.1


def with_all_outcomes(manifest: Manifest) -> dict[str, Any]:
    """The first train photos get a decision each, and all keep their split."""
    decision, kept, scored_by = manifest.decision.copy(), manifest.kept.copy(), manifest.scored_by.copy()
    outcomes = (("dropped", False), ("doubted", True), ("conflict", False), ("near-test", False), ("checked", False))
    for row, (name, stays) in zip(np.flatnonzero(manifest.split == "train"), outcomes, strict=False):
        decision[row], kept[row] = name, stays
    kept[np.flatnonzero(manifest.split == "val")[0]] = False
    return {"decision": decision, "kept": kept, "scored_by": scored_by}


RECIPE = from_dict(
    {
        "name": "tiny",
        "members": [{"backbone": "test_resnet", "size": 32, "seed": 3}, {"backbone": "test_byobnet", "size": 32}],
        "train": {"checkpoint_minutes": 0},
        "distil": {"backbone": "test_resnet", "size": 32, "epochs": 2, "batch_size": 8},
        "export": {"input_size": 40},
    }
)


@pytest.fixture(scope="module")
def members(data: Path) -> list[Trained]:
    torch.manual_seed(0)
    networks = [build_network(member, num_classes=4).eval() for member in RECIPE.members]
    for network in networks:
        network.head.classifier.weight.data *= 100
    classes = read_manifest(data).classes
    return [Trained(network, member, classes, 0.3) for network, member in zip(networks, RECIPE.members, strict=True)]


def answered(folder: Path, ensemble: Ensemble, *, key: str = "one") -> Answers:
    """The answers of an ensemble to the photos of its student."""
    folder.mkdir(exist_ok=True)
    rows = student_rows(ensemble.manifest)
    found = open_answers(folder, num_photos=len(rows), num_classes=4, key=key)
    teacher.answer(teacher.make_teacher(ensemble), Photos(ensemble.manifest, rows, side=40), found)
    return found


def test_all_train_photos_but_near_duplicates_and_removed_ones_are_learnt_from(variant: Variant) -> None:
    manifest = read_manifest(variant(with_all_outcomes))
    rows, train = student_rows(manifest), np.flatnonzero(manifest.split == "train")
    assert set(train) - set(rows) == set(train[3:5]), "near-duplicates of test photos, and what a person took out"
    assert {"dropped", "doubted", "conflict"} <= set(manifest.decision[rows])
    assert set(manifest.split[rows]) == {"train"}


def test_photos_without_a_label_are_learnt_from_unless_they_were_left_out(unlabelled: Path) -> None:
    manifest = read_manifest(unlabelled)
    taken, near, gone, *others = np.flatnonzero(manifest.split == UNLABELLED).tolist()
    for row, decision in ((near, "near-test"), (gone, "checked")):
        manifest.kept[row], manifest.decision[row] = False, decision
    rows = set(student_rows(manifest))
    assert rows == {taken, *others, *np.flatnonzero(manifest.split == "train")}


def test_answers_are_means_over_the_photo_and_its_mirror_image_and_the_members(
    members: list[Trained], data: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(data)
    recipe = dataclasses.replace(RECIPE, distil=dataclasses.replace(RECIPE.distil, temperature=2.0))
    found = answered(tmp_path / "out", Ensemble(recipe, members, [0.25, 0.75], manifest))
    photos = next(Photos(manifest, student_rows(manifest), side=40).in_order(8)).permute(0, 3, 1, 2) / 255
    small = functional.interpolate(photos, (32, 32), mode="bilinear", antialias=True)
    expected = torch.zeros(8, 4)
    for (network, *_), share in zip(((m.network, m.tau) for m in members), (0.25, 0.75), strict=True):
        head = network.head
        norm = head.classifier.weight.norm(dim=1, keepdim=True)
        rows = head.classifier.weight / (norm / norm.mean()) ** 0.3
        with torch.inference_mode():
            for view in (small, small.flip(3)):
                expected += share * (network.embedding(view) @ rows.T / 2.0).softmax(1) / 2
    probs, classes = expected.topk(3)
    assert found.classes[:8].tolist() == classes.tolist()
    np.testing.assert_allclose(found.probs[:8, :3], probs, atol=1e-3)
    np.testing.assert_allclose(found.probs[:8, 3], 1 - probs.sum(1), atol=1e-3)


def test_a_teacher_that_was_killed_goes_on_where_it_was(
    members: list[Trained], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = Ensemble(RECIPE, members, [0.5, 0.5], read_manifest(data))
    monkeypatch.setattr(teacher, "EVAL_BATCH", {"cpu": 4 * RECIPE.distil.crops})
    monkeypatch.setattr(teacher, "BLOCK", 8)
    whole, photos, asked = answered(tmp_path / "whole", ensemble), Photos.batches, list[int]()

    def counted(self: Photos, order: Any, *more: Any) -> Any:
        for positions, batch in zip(order, photos(self, order, *more), strict=True):
            if len(asked) == 3:
                raise KeyboardInterrupt
            asked.append(int(positions[0]))
            yield batch

    monkeypatch.setattr(Photos, "batches", counted)
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path / "out", ensemble)
    with pytest.raises(
        CheckpointMismatch, match=r"answers\.json: 8 photos have an answer of the teacher, but the student"
    ):
        read_answers(tmp_path / "out", num_photos=len(whole))
    monkeypatch.setattr(Photos, "batches", photos)
    assert open_answers(tmp_path / "out", num_photos=len(whole), num_classes=4, key="one").done == 8
    resumed = answered(tmp_path / "out", ensemble)
    assert np.array_equal(resumed.classes, whole.classes)
    assert np.array_equal(resumed.probs, whole.probs)
    assert json.loads((tmp_path / "out" / "answers.json").read_text())["done"] == len(whole)
    assert open_answers(tmp_path / "out", num_photos=len(whole), num_classes=4, key="two").done == 0, (
        "of another teacher"
    )


def distilled(data: Path, out: Path, members: list[Trained]) -> Path:
    """Folder of the student of these members."""
    answers = out.with_name(f"{out.name} answers")
    answered(answers, Ensemble(RECIPE, members, [0.5, 0.5], read_manifest(data)))
    out.mkdir(exist_ok=True)
    distil.distil(RECIPE, data, answers=answers, out=out)
    return out


@pytest.mark.parametrize("splits", [{"train"}, {"train", UNLABELLED}])
def test_a_student_sees_every_train_photo_and_neither_validation_nor_test_photos(
    variant: Variant,
    unlabelled: Path,
    tmp_path: Path,
    members: list[Trained],
    monkeypatch: pytest.MonkeyPatch,
    splits: set[str],
) -> None:
    data, seen = unlabelled if UNLABELLED in splits else variant(with_all_outcomes), set[int]()

    def watched(network: Network, loss: Any, inputs: Any, **named: Any) -> None:
        batches, rows = inputs.photos.batches, inputs.photos.rows

        def noting(order: Any, *more: Any) -> Any:
            seen.update(*(rows[positions] for positions in order))
            return batches(order, *more)

        inputs.photos.batches = noting
        fit(network, loss, inputs, **named)

    monkeypatch.setattr(distil, "fit", watched)
    out, manifest = distilled(data, tmp_path / "out", members), read_manifest(data)
    assert seen == set(student_rows(manifest).tolist())
    assert set(manifest.split[sorted(seen)]) == splits
    assert UNLABELLED in splits or "dropped" in manifest.decision[sorted(seen)]
    scores = read_scores(out / "scores.parquet")
    assert set(manifest.split[manifest.rows_of(scores.id)]) == {"val", "test"}
    trained = load_network(out / "network.pt")
    assert (trained.member, trained.tau, trained.classes) == (RECIPE.distil.member, 0.0, manifest.classes)
    assert not (out / "checkpoint.pt").exists()


def test_a_photo_without_a_label_teaches_the_student_and_no_network_with_labels(
    data: Path, unlabelled: Path, recipe: Recipe, members: list[Trained], tmp_path: Path
) -> None:
    """Networks are equal to the bit with and without such photos; the student changes with the answer to one of them."""
    learnt = []
    for number, version in enumerate((data, unlabelled)):
        out = tmp_path / f"network {number}"
        out.mkdir()
        train(Job(data=version, recipe=recipe, member=0, out=out))
        learnt.append(torch.load(out / "network.pt")["state"])
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in learnt), strict=True))

    distilled(unlabelled, tmp_path / "student", members)
    manifest = read_manifest(unlabelled)
    row = int(np.flatnonzero(manifest.split[student_rows(manifest)] == UNLABELLED)[0])
    classes = np.load(tmp_path / "student answers" / "classes.npy", mmap_mode="r+")
    classes[row] = classes[row, ::-1]
    (tmp_path / "other").mkdir()
    distil.distil(RECIPE, unlabelled, answers=tmp_path / "student answers", out=tmp_path / "other")
    before, after = (torch.load(tmp_path / name / "network.pt")["state"] for name in ("student", "other"))
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_student_that_was_killed_resumes_to_the_same_bits(
    data: Path, tmp_path: Path, members: list[Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, value, left = distilled(data, tmp_path / "whole", members), Distilled.value, iter(range(4))

    def value_or_halt(self: Distilled, batch: LossBatch) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return value(self, batch)

    monkeypatch.setattr(Distilled, "value", value_or_halt)
    with pytest.raises(KeyboardInterrupt):
        distilled(data, tmp_path / "out", members)
    monkeypatch.setattr(Distilled, "value", value)
    assert (tmp_path / "out" / "checkpoint.pt").exists()
    resumed, uninterrupted = (
        torch.load(out / "network.pt")["state"] for out in (distilled(data, tmp_path / "out", members), whole)
    )
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


def test_nothing_that_concerns_labels_stays_in_the_training_of_a_student() -> None:
    train = Train(sampling_power=0.0, balanced_epochs=2, best_epochs=1, class_weights="inverse", har=0.1, ema=0.9, l1=1e-4,
                  backbone_lr_scale=0.0)  # fmt: skip
    assert Distil(epochs=7, lr=0.1, batch_size=48).settings(train) == Train(
        epochs=7, lr=0.1, ema=0.9, l1=1e-4, batch_size=48
    )
    assert Distil(backbone="resnet10t", size=64, std=(1.0, 1.0, 1.0)).member == Member(size=64, std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"crops": 3}, r"^distil\.crops: 3 is not one of 1, 2, 5, 10; set one of them$"),
        ({"mean": [0.5]}, r"^distil\.mean: \(0\.5,\) does not have three values"),
        ({"temperature": 0}, r"^distil\.temperature: "),
    ],
)
def test_a_recipe_refuses_what_no_student_can_have(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"name": "any", "distil": table})


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ({"backbone": "resent18"}, ConfigError, r"^distil\.backbone: .*'resent18' \(did you mean resnet18"),
        ({"args": {"nonsense": 3}}, ConfigError, r"^distil\.args or distil\.size: test_resnet at 32 px: .*nonsense"),
        (
            {"batch_size": 3},
            ConfigError,
            r"^distil\.batch_size: 3 of \d+ photos gives batches of 2, but each of 2 workers",
        ),
        ({"weights": "none.pth"}, WeightsMismatch, r"^distil\.weights: none\.pth does not exist"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused_before_anything_starts(
    data: Path, recipe: Recipe, table: dict[str, Any], error: type[Exception], message: str
) -> None:
    student = dataclasses.replace(RECIPE.distil, **table)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, workers=2))
    check(dataclasses.replace(recipe, distil=RECIPE.distil), data=data)
    with pytest.raises(error, match=message):
        check(dataclasses.replace(recipe, distil=student), data=data)
