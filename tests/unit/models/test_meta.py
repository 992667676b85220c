"""Hyperparameters of a loss, learnt from trusted photos."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import models.training.epochs
from models.data.manifest import Manifest, read_manifest
from models.data.mixing import Mixed
from models.errors import ConfigError
from models.losses import LOSSES, build_loss
from models.networks.network import Network, Normalisation
from models.recipe.config import Loss, Member, Meta, Recipe, Train
from models.training.check import check
from models.training.epochs import report
from models.training.job import Job
from models.training.meta import Adjuster, Constant, bounded, start_of
from models.training.train import train

Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]
LEARNT = ("gce", "sce", "polysoft", "bi_tempered")


@pytest.mark.parametrize("name", LEARNT)
def test_every_number_starts_where_the_loss_is_and_stays_in_its_bounds(name: str) -> None:
    loss = build_loss(name, 20)
    for raw, (key, span) in zip(start_of(loss), loss.learnable().items(), strict=True):
        assert float(bounded(torch.tensor(raw, dtype=torch.float64), span)) == pytest.approx(getattr(loss, key))
        ends = bounded(torch.tensor([-30.0, 30.0], dtype=torch.float64), span)
        assert span.low <= ends[0] < span.low + 1e-9
        assert ends[1] == pytest.approx(min(span.high, span.low + 30))


class Table:
    """Inputs that are vectors instead of photos."""

    def __init__(self, head: nn.Module, rows: Tensor) -> None:
        self.part, self.rows = head, rows

    def training(self, order: Sequence[NDArray[np.int64]], generator: torch.Generator) -> Iterator[Mixed]:
        return (Mixed(self.rows[torch.from_numpy(positions)], 1.0, positions) for positions in order)

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        yield self.rows[part]


def clusters(seed: int) -> Callable[[int, float], tuple[Tensor, Tensor, Tensor]]:
    """Function that draws vectors of ten classes, their labels with symmetric noise, and their true labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 20, generator=generator)

    def draw(count: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        true = torch.randint(10, (count,), generator=generator)
        wrong = torch.rand(count, generator=generator) < noise
        other = (true + torch.randint(1, 10, (count,), generator=generator)) % 10
        return centres[true] + torch.randn(count, 20, generator=generator), torch.where(wrong, other, true), true

    return draw


def trained(settings: Meta | None, *, seed: int) -> tuple[float, list[float]]:
    """Accuracy, and q after each epoch, of GCE from q = .1 under 40 % noise."""
    draw = clusters(seed)
    (x, y, _), (trusted, trusted_y, _), (x_test, _, y_test) = draw(1000, 0.4), draw(100, 0.0), draw(2000, 0.0)
    torch.manual_seed(seed)
    network = Network(nn.Identity(), width=20, num_classes=10, normalisation=Normalisation((0, 0, 0), (1, 1, 1)))
    optimizer = torch.optim.AdamW([p for p in network.head.parameters() if p.requires_grad], lr=2e-3)
    loss = build_loss("gce", 10, q=0.1)
    meta = Constant(loss)
    if settings:
        inputs = Table(network.head, trusted)
        meta = Adjuster(loss, settings, network=network, inputs=inputs, target=trusted_y.numpy(), seed=seed)
    q = []
    for _ in range(15):
        for positions in torch.randperm(len(y)).split(40):
            meta.step(x[positions], y[positions], optimizer)
            optimizer.zero_grad()
            loss(network.head(x[positions]).logits, y[positions]).mean().backward()
            optimizer.step()
        q.append(loss.q)
    with torch.no_grad():
        right = network.eval().head(x_test).logits.argmax(1) == y_test
    return float(right.double().mean()), q


@pytest.mark.parametrize("head_only", [True, False])
def test_under_noise_q_grows_and_the_network_is_better_for_it(head_only: bool) -> None:
    accuracy, q = trained(Meta(photos="val", every=5, head_only=head_only), seed=0)
    static, constant = trained(None, seed=0)
    assert constant == [0.1] * 15
    assert q[0] > 0.1
    assert q[-1] > 0.4
    assert accuracy > static + 0.01


def job(data: Path, recipe: Recipe, out: Path, meta: Meta, *, member: Member | None = None, **settings: Any) -> Job:
    out.mkdir(exist_ok=True)
    changed = dataclasses.replace(recipe, meta=meta, train=Train(**vars(recipe.train) | settings),
                                  members=(member or recipe.members[0],))  # fmt: skip
    return Job(data=data, recipe=changed, member=0, out=out)


def trajectory(out: Path, name: str = "q") -> list[float]:
    return [json.loads(line)[f"loss.params.{name}"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def result(out: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(out / "network.pt", weights_only=True)["state"]
    return found


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("head_only", [True, False])
def test_a_killed_training_goes_on_to_the_same_trajectory(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, head_only: bool
) -> None:
    meta = Meta(photos="val", every=2, batch_size=3, head_only=head_only)
    member = dataclasses.replace(recipe.members[0], args={"drop_rate": 0.1})
    whole, halved = (
        job(data, recipe, tmp_path / n, meta, member=member, backbone_lr_scale=scale, checkpoint_minutes=0)
        for n in ("whole", "halved")
    )
    train(whole)
    for last in (2, 3):  # killed twice, after an epoch was reported and before it was saved

        def report_and_die(out: Path, *, epoch: int, num_epochs: int, last: int = last, **figures: float) -> None:
            report(out, epoch=epoch, num_epochs=num_epochs, **figures)
            if epoch == last:
                raise KeyboardInterrupt

        monkeypatch.setattr(models.training.epochs, "report", report_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(halved)
        monkeypatch.undo()
    train(halved)
    values = trajectory(whole.out)
    assert trajectory(halved.out) == values
    assert len({*values, 0.7}) == 4, "q moves in every epoch"
    ours, theirs = result(whole.out), result(halved.out)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("head_only", [True, False])
def test_trusted_photos_are_not_trained_on_and_trials_leave_no_trace(
    data: Path, recipe: Recipe, tmp_path: Path, variant: Variant, head_only: bool
) -> None:
    """The network equals one trained without the trusted photos, if the outer rate is too small to move q."""
    manifest = read_manifest(data)
    trusted = np.flatnonzero(manifest.split == "train")[:6]
    (tmp_path / "ids").write_text("\n".join(manifest.id[trusted]))
    still = job(data, recipe, tmp_path / "still",
                Meta(photos=str(tmp_path / "ids"), lr=1e-300, every=1, head_only=head_only))  # fmt: skip
    fewer = variant(lambda manifest: {"kept": ~np.isin(np.arange(len(manifest)), trusted)})
    plain = job(fewer, recipe, tmp_path / "plain", Meta())
    for each in (plain, still):
        train(each)
    ours, theirs = result(plain.out), result(still.out)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert trajectory(still.out) == [0.7] * 3


def test_a_replay_follows_the_schedule(data: Path, recipe: Recipe, tmp_path: Path) -> None:
    first = job(data, recipe, tmp_path / "first", Meta(photos="val", every=1))
    train(first)
    replay = Meta(replay=str(first.out / "metrics.jsonl"))
    again, twice = (job(data, recipe, tmp_path / str(n), replay, epochs=n) for n in (3, 6))
    for each in (again, twice):
        train(each)
    assert trajectory(again.out) == trajectory(first.out)
    assert trajectory(twice.out) == [q for q in trajectory(first.out) for _ in range(2)]


@pytest.mark.parametrize(
    ("meta", "loss", "message"),
    [
        ({"photos": "ids"}, {}, r"ids: 2 of 4 ids are not in this data version, first 'unknown'; use ids of"),
        ({"photos": "tests"}, {}, r"tests: 1 ids are test photos, first '[0-9a-f]{16}'.* remove them"),
        ({"photos": "one"}, {}, r"meta.photos: .*one leaves 1 photos to learn from .* give at least 2"),
        ({"photos": "all"}, {}, r"meta.photos: .*all leaves 1 photos to train on, but training needs 2"),
        ({"photos": "none"}, {}, r"meta.photos: none: no such file; give a table"),
        ({"photos": "bad.csv"}, {}, r"meta.photos: .*bad.csv: column 'id' is missing; it has "),
        ({"photos": "ids.parquet"}, {}, r"meta.photos: .*ids.parquet: not a Parquet file that can be read"),
        ({"photos": "val"}, {"name": "mae"}, r"meta: MAE has no hyperparameter .*one of bi_tempered, gce, polysoft, sce, "),
        ({"photos": "val"}, {"params": {"q": 1.0}}, r"loss.params.q: meta cannot start from 1; set it inside \(0, 1\)"),
        ({"photos": "val"}, {"params": {"init_match": "batch"}}, r"loss.params.init_match: 'batch' rescales"),
        ({"replay": "none"}, {}, r"meta.replay: .*none is not a schedule of q \(FileNotFoundError: .*metrics.jsonl"),
        ({"replay": "plain"}, {}, r"meta.replay: .*plain is not a schedule of q \(KeyError: 'loss.params.q'\)"),
        ({"replay": "beyond"}, {}, r"meta.replay: .*beyond holds \{'q': 1.5\}; the bounds are q in \[0, 1\]"),
        ({"replay": "empty"}, {}, r"meta.replay: .*empty holds no epoch"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_training(
    data: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meta: dict[str, Any],
    loss: dict[str, Any], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_bad_files(read_manifest(data))
    changed = dataclasses.replace(recipe, meta=Meta(**meta), loss=Loss(**loss))
    with pytest.raises(ConfigError, match=message):
        check(changed, data=data)


def write_bad_files(manifest: Manifest) -> None:
    train, tests = manifest.id[manifest.split == "train"], manifest.id[manifest.split == "test"]
    files = {
        "ids": [*train[:2], "unknown", "nothing"],
        "tests": [*train[:2], tests[0]],
        "one": train[:1],
        "all": train[:-1],
        "bad.csv": ["name", "x"],
        "ids.parquet": ["torn"],
        "plain": ['{"epoch": 1, "loss": 2}'],
        "beyond": ['{"loss.params.q": 0.5}', '{"loss.params.q": 1.5}'],
        "empty": [],
    }
    for name, lines in files.items():
        Path(name).write_text("\n".join(lines))


def test_learning_and_following_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"meta\.replay: follows a schedule, but meta\.photos learns one"):
        Meta(photos="val", replay="metrics.jsonl")


def test_a_warm_up_learns_nothing() -> None:
    draw = clusters(0)
    x, y, _ = draw(40, 0.0)
    network = Network(nn.Identity(), width=20, num_classes=10, normalisation=Normalisation((0, 0, 0), (1, 1, 1)))
    optimizer = torch.optim.AdamW(network.head.parameters())
    loss = build_loss("gce", 10, q=0.5, warmup_ce_epochs=1)
    meta = Adjuster(loss, Meta(every=1), network=network, inputs=Table(network.head, x), target=y.numpy(), seed=0)
    meta.step(x, y, optimizer)
    assert loss.q == 0.5
    loss.start_epoch(1)
    meta.step(x, y, optimizer)
    assert loss.q != 0.5


def test_what_can_be_learnt_is_said_by_the_loss() -> None:
    assert {name for name in LOSSES.components if build_loss(name, 10).learnable()} == set(LEARNT)
