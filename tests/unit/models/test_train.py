"""One training, killed, resumed and scored."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import models.training.epochs
from models.data.manifest import Manifest, read_manifest
from models.errors import CheckpointMismatch, ConfigError, ManifestError
from models.evaluation.scores import read_scores
from models.networks.network import EMBEDDING
from models.recipe.config import Clean, Loss, Proof, Recipe, Train, digest, to_dict, training_inputs
from models.training import checkpoint
from models.training.epochs import report
from models.training.job import Job, split_rows
from models.training.train import load_network, train

Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


def job(data: Path, recipe: Recipe, out: Path, fold: int | None = None, **settings: Any) -> Job:
    out.mkdir(exist_ok=True)
    changed = dataclasses.replace(recipe, train=Train(**vars(recipe.train) | settings))
    return Job(data=data, recipe=changed, member=0, out=out, fold=fold)


def tensors(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out / "network.pt", weights_only=True)["state"]
    return found


def epochs(out: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def killed_after_an_epoch(job: Job, tmp_path: Path) -> int:
    """Runs a training as the flow does, and kills it once it has a checkpoint; returns the number of epochs done."""
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(to_dict(job.recipe)))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "models.training.train",
        "--data",
        job.data,
        "--recipe",
        file,
        "--out",
        job.out,
    ]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (job.out / "checkpoint.pt").exists():
            assert child.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    return int(checkpoint.load(job.out / "checkpoint.pt")["epoch"])


def assert_same_result(one: Job, other: Job) -> None:
    ours, theirs = tensors(one.out), tensors(other.out)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert np.array_equal(
        read_scores(one.out / "scores.parquet").probs, read_scores(other.out / "scores.parquet").probs
    )
    assert epochs(one.out) == epochs(other.out) == list(range(1, one.train.epochs + 1))
    assert not (one.out / "checkpoint.pt").exists()


def test_a_killed_training_goes_on_to_the_same_bits(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    whole, halved = (job(data, recipe, tmp_path / name, epochs=40, sampling_power=0.5) for name in ("whole", "halved"))
    done = killed_after_an_epoch(halved, tmp_path)
    assert 1 <= done < halved.train.epochs
    assert not (halved.out / "network.pt").exists()
    train(halved)
    train(whole)
    assert_same_result(halved, whole)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_an_epoch_that_was_reported_but_not_saved_is_done_again(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    whole, halved = (job(data, recipe, tmp_path / name, backbone_lr_scale=scale) for name in ("whole", "halved"))

    def report_and_die(out: Path, *, epoch: int, num_epochs: int, **figures: float) -> None:
        report(out, epoch=epoch, num_epochs=num_epochs, **figures)
        if epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(models.training.epochs, "report", report_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(halved)
    monkeypatch.undo()
    assert epochs(halved.out) == [1, 2]
    assert checkpoint.load(halved.out / "checkpoint.pt")["epoch"] == 1
    train(halved)
    train(whole)
    assert_same_result(halved, whole)


def test_a_frozen_backbone_keeps_weights_and_statistics(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    first, longer = (job(data, recipe, tmp_path / str(n), backbone_lr_scale=0.0, epochs=n) for n in (1, 3))
    for each in (first, longer):
        train(each)
    ours, theirs = tensors(first.out), tensors(longer.out)
    changed = {key.split(".")[0] for key in ours if not torch.equal(ours[key], theirs[key])}
    assert changed == {"head"}


def test_scores_cover_validation_and_test_and_nothing_that_was_trained_on(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    train(job(data, recipe, tmp_path / "out"))
    manifest, scores = read_manifest(data), read_scores(tmp_path / "out" / "scores.parquet")
    assert sorted(scores.id) == sorted(manifest.id[manifest.split != "train"])
    assert set(manifest.split[np.isin(manifest.id, scores.id)]) == {"val", "test"}
    assert scores.top.shape == (len(scores), 4), "all classes, where there are fewer than ten"
    assert scores.probs.sum(1) == pytest.approx(1, abs=1e-5)
    row = np.searchsorted(manifest.id.astype(str), scores.id)
    assert np.array_equal(scores.target, manifest.target[row])
    picked = np.take_along_axis(scores.probs, np.argsort(scores.top, 1), 1)[np.arange(len(scores)), scores.target]
    assert picked == pytest.approx(scores.p_label, abs=1e-6)


def test_folds_score_every_training_photo_once_unseen(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    manifest = read_manifest(data)
    seen = []
    for fold in range(recipe.clean.folds):
        train(job(data, recipe, tmp_path / str(fold), fold=fold))
        rows, held_out = split_rows(manifest, fold=fold, num_folds=recipe.clean.folds)
        scores = read_scores(tmp_path / str(fold) / "scores.parquet")
        assert np.array_equal(scores.id, manifest.id[held_out].astype(str))
        assert not np.isin(scores.id, manifest.id[rows]).any()
        assert np.isin(manifest.id[manifest.split == "val"], scores.id).all()
        assert not np.isin(manifest.id[manifest.split == "test"], scores.id).any()
        assert epochs(tmp_path / str(fold)) == [1], "clean.epochs, not train.epochs"
        seen.append(scores.select(np.isin(scores.id, manifest.id[manifest.split == "train"])).id)
    assert sorted(np.concatenate(seen)) == sorted(manifest.id[manifest.split == "train"])


@pytest.mark.parametrize("fold", [None, 0])
def test_photos_without_a_label_change_no_bit_of_a_training_and_are_not_scored(
    data: Path, unlabelled: Path, recipe: Recipe, tmp_path: Path, fold: int | None
) -> None:
    plain, more = (job(each, recipe, tmp_path / each.name, fold=fold) for each in (data, unlabelled))
    assert read_manifest(unlabelled).classes == read_manifest(data).classes
    for each in (plain, more):
        train(each)
    assert_same_result(plain, more)
    assert read_scores(plain.out / "scores.parquet").id.tolist() == read_scores(more.out / "scores.parquet").id.tolist()


def test_a_fold_leaves_embeddings_where_the_rule_compares_photos(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    asking = dataclasses.replace(recipe, clean=dataclasses.replace(recipe.clean, rule="posterior"))
    train(job(data, asking, tmp_path / "asked", fold=0))
    train(job(data, asking, tmp_path / "all"))
    embeddings = np.load(tmp_path / "asked" / "embeddings.npy")
    assert embeddings.shape == (len(read_scores(tmp_path / "asked" / "scores.parquet")), EMBEDDING)
    assert np.isfinite(embeddings).all()
    assert len(np.unique(embeddings.astype(np.float32), axis=0)) > 1, "photos differ"
    assert not (tmp_path / "all" / "embeddings.npy").exists()


def test_folds_on_a_frozen_backbone_leave_features_that_they_share(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Features of the validation photos are equal in both folds, although the heads differ."""
    asking = dataclasses.replace(recipe, clean=dataclasses.replace(recipe.clean, rule="posterior"))
    ids, found = [], []
    for fold in (0, 1):
        out = tmp_path / str(fold)
        train(job(data, asking, out, fold=fold, backbone_lr_scale=0.0))
        ids.append(read_scores(out / "scores.parquet").id)
        found.append(np.load(out / "features.npy").astype(np.float32))
        assert not (out / "embeddings.npy").exists()
    _, first, second = np.intersect1d(*ids, return_indices=True)
    assert len(first) > 0
    assert found[0].shape[1] != EMBEDDING
    assert np.array_equal(found[0][first], found[1][second])


def test_a_dropped_photo_is_not_trained_on_and_scored_by_its_fold_alone(data: Path) -> None:
    delivered = read_manifest(data)
    kept = np.arange(len(delivered)) % 3 > 0
    conflict = np.arange(len(delivered)) == np.flatnonzero(~kept & (delivered.split == "train"))[0]
    decision = np.where(kept, "", np.where(conflict, "conflict", "dropped")).astype(object)
    manifest = dataclasses.replace(delivered, kept=kept, decision=decision)
    assert kept[np.concatenate(split_rows(manifest, fold=None, num_folds=2))].all()
    for fold in (0, 1):
        rows, scored = split_rows(manifest, fold=fold, num_folds=2)
        assert kept[rows].all()
        assert not np.isin(rows, scored).any()
        before = split_rows(delivered, fold=fold, num_folds=2)[1]
        assert scored[manifest.split[scored] == "val"].tolist() == before[delivered.split[before] == "val"].tolist()
    scored = np.concatenate([split_rows(manifest, fold=fold, num_folds=2)[1] for fold in (0, 1)])
    assert set(scored) == set(np.flatnonzero((manifest.split != "test") & ~conflict))


def test_a_relabelled_photo_stays_in_its_fold_and_is_judged_by_the_given_label(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Variant
) -> None:
    delivered = read_manifest(data)
    moved = variant(lambda m: {"label": np.where((m.split == "train") & (m.label == "bean"), "corn", m.label)})
    for fold in (0, 1):
        assert np.array_equal(split_rows(delivered, fold=fold, num_folds=2)[1],
                              split_rows(read_manifest(moved), fold=fold, num_folds=2)[1])  # fmt: skip
    train(job(moved, recipe, tmp_path / "fold", fold=0))
    train(job(moved, recipe, tmp_path / "all"))
    scores = read_scores(tmp_path / "fold" / "scores.parquet")
    row = np.searchsorted(delivered.id.astype(str), scores.id)
    assert np.array_equal(scores.target, delivered.target[row])
    assert "bean" in delivered.label[row]


def test_another_recipes_checkpoint_is_refused(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = job(data, recipe, out, lr=0.5)
    checkpoint.save(out / "checkpoint.pt", {"key": other.key, "epoch": 1})
    with pytest.raises(CheckpointMismatch, match=rf"checkpoint\.pt was written for {other.key}, not for .* delete it"):
        train(job(data, recipe, out))
    checkpoint.save(out / "checkpoint.pt", {"state": {}})
    with pytest.raises(CheckpointMismatch, match="was written for no training"):
        train(job(data, recipe, out))
    (out / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointMismatch, match=r"checkpoint\.pt cannot be read"):
        train(job(data, recipe, out))


def test_a_file_of_the_same_name_and_other_content_is_another_training(
    data: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Weights, loss state, photo weights and photos to select by, for the checkpoint and the cached result equally."""
    file = tmp_path / "file"
    member = dataclasses.replace(recipe.members[0], weights=str(file))
    recipes = [
        dataclasses.replace(recipe, members=(member,)),
        dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, state=str(file))),
        dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, photo_weights=str(file))),
        dataclasses.replace(recipe, proof=Proof(photos=str(file))),
    ]
    for each in recipes:
        keys = []
        for content in ("a", "b", "a"):
            file.write_text(content)
            keys.append((job(data, each, tmp_path).key, digest(*training_inputs(each.of(0)))))
        assert keys[0] == keys[2]
        assert keys[0][0] != keys[1][0]
        assert keys[0][1] != keys[1][1]


def test_a_key_changes_with_whatever_changes_the_result(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Variant
) -> None:
    plain = job(data, recipe, tmp_path)
    others = [
        job(data, recipe, tmp_path, fold=0),
        job(data, recipe, tmp_path, fold=1),
        job(data, recipe, tmp_path, lr=0.1),
        job(data, dataclasses.replace(recipe, loss=Loss(params={"q": 0.1})), tmp_path),
        job(data, dataclasses.replace(recipe, clean=Clean(folds=4)), tmp_path, fold=0),
        job(variant(lambda manifest: {"kept": ~manifest.kept}), recipe, tmp_path),
    ]
    assert len({plain.key, *(other.key for other in others)}) == len(others) + 1
    assert job(data, dataclasses.replace(recipe, clean=Clean(budget=0.5)), tmp_path).key == plain.key
    assert job(data, recipe, tmp_path, workers=3, checkpoint_minutes=0.5).key == plain.key, (
        "any number of workers goes on"
    )


def test_a_trained_network_can_be_loaded_without_its_first_weights(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    plain = job(data, recipe, tmp_path / "out")
    train(plain)
    start = tmp_path / "start.pt"
    torch.save(load_network(plain.out / "network.pt").network.backbone.state_dict(), start)
    member = dataclasses.replace(recipe.members[0], weights=str(start))
    tuned = job(data, dataclasses.replace(recipe, members=(member,)), tmp_path / "tuned")
    train(tuned)
    start.unlink()
    trained = load_network(tuned.out / "network.pt")
    assert trained.classes == ["apple", "bean", "corn", "dill"]
    assert not trained.network.training
    assert trained.tau == 0.0
    assert all(torch.equal(value, tensors(tuned.out)[key]) for key, value in trained.network.state_dict().items())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_version_without_validation_and_test_photos_gives_empty_scores(
    recipe: Recipe, tmp_path: Path, variant: Variant, frozen: bool
) -> None:
    data = variant(lambda manifest: {"split": np.full(len(manifest), "train", object)})
    train(job(data, recipe, tmp_path / "out", epochs=1, backbone_lr_scale=0.0 if frozen else 1.0))
    assert read_scores(tmp_path / "out" / "scores.parquet").top.shape == (0, 4)


def test_a_class_that_only_exists_in_test_has_no_probability(recipe: Recipe, tmp_path: Path, variant: Variant) -> None:
    data = variant(lambda manifest: {"label": np.where(manifest.split == "test", "new", manifest.label)})
    train(job(data, recipe, tmp_path / "out", epochs=1))
    manifest, scores = read_manifest(data), read_scores(tmp_path / "out" / "scores.parquet")
    new = np.isin(scores.id, manifest.id[manifest.split == "test"])
    assert (scores.target[new] == -1).all()
    assert (scores.p_label[new] == 0).all()
    assert (scores.p_label[~new] > 0).all()


@pytest.mark.parametrize("batch_size", [1, 2, 20])
def test_no_batch_of_one_photo(recipe: Recipe, tmp_path: Path, variant: Variant, batch_size: int) -> None:
    """Three photos of one class, in batches of one, two or more: batch norm needs at least two photos."""

    def three(manifest: Manifest) -> dict[str, Any]:
        train = np.flatnonzero(manifest.split == "train")
        return {"label": np.full(len(manifest), "apple", object), "kept": np.isin(np.arange(len(manifest)), train[:3])}

    out = tmp_path / "out"
    train(job(variant(three), recipe, out, epochs=2, batch_size=batch_size))
    assert epochs(out) == [1, 2]
    assert int(tensors(out)["head.neck.num_batches_tracked"]) == 2


def test_too_few_photos_are_named(recipe: Recipe, tmp_path: Path, variant: Variant) -> None:
    data = variant(lambda manifest: {"kept": np.arange(len(manifest)) == np.flatnonzero(manifest.split == "train")[0]})
    with pytest.raises(ManifestError, match=r"labels\.parquet: 1 photos are kept for training"):
        train(job(data, recipe, tmp_path / "out"))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="models")
    return caplog


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (Loss(name="ce"), "loss ce: asymmetry ratio 0; at 4 classes there is no noise rate that it tolerates in theory"),
        (Loss(name="mae"), "loss mae: asymmetry ratio 1; at 4 classes tolerates 75.0% symmetric and 50.0% pair noise, in theory"),
    ],
)  # fmt: skip
def test_a_training_says_what_noise_its_loss_tolerates(
    data: Path, recipe: Recipe, tmp_path: Path, logged: pytest.LogCaptureFixture, loss: Loss, line: str
) -> None:
    train(job(data, dataclasses.replace(recipe, loss=loss), tmp_path / "out", epochs=1))
    assert any(message.startswith(line) for message in logged.messages)


def test_what_a_loss_remembers_is_carried_to_another_data_version(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Variant, logged: pytest.LogCaptureFixture
) -> None:
    marvel = dataclasses.replace(recipe, loss=Loss(name="marvel"))
    train(job(data, marvel, tmp_path / "first"))
    samples = tmp_path / "first" / "samples.parquet"
    first = pq.read_table(samples)
    manifest = read_manifest(data)
    trained = np.flatnonzero(manifest.kept & (manifest.split == "train"))
    assert sorted(first["id"].to_pylist()) == sorted(manifest.id[trained])
    dropped, relabelled = trained[0], trained[1]
    row = np.arange(len(manifest))
    changed = variant(lambda manifest: {
        "kept": row != dropped,
        "label": np.where(row == relabelled, np.where(manifest.label == "apple", "bean", "apple"), manifest.label),
    })  # fmt: skip
    train(job(changed, marvel, tmp_path / "second", epochs=1, state=str(samples)))
    assert f"train.state {samples}: Counts(kept={len(trained) - 2}, reset=1, dropped=1, new=0)" in logged.messages
    assert len(pq.read_table(tmp_path / "second" / "samples.parquet")) == len(trained) - 1


def test_a_misspelt_loss_stops_before_the_first_epoch(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loss\.params\.power: 'gce' has no such parameter"):
        train(job(data, dataclasses.replace(recipe, loss=Loss(params={"power": 0.3})), tmp_path / "out"))
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
