"""No training step waits for the device: each loss, augmentation, head and stage, on a pretend card in bfloat16.

A step follows another of the same epoch: what happens once an epoch may wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException
from torch.nn.modules.batchnorm import _BatchNorm

import models.training.train
import models.training.watch
from models import distributed
from models.cleaning import Noise
from models.data.augment import draw_views, random_view, whole_view
from models.data.mixing import Mixed, labels_of, mix_batch, needed_positions
from models.data.samplers import Sampler
from models.data.transfer import Batch, Cuda
from models.errors import BatchError
from models.losses import LOSSES, Loss, Samples, build_loss
from models.losses.correction import Correction
from models.losses.distilled import Distilled
from models.networks.inputs import Features, view_size
from models.networks.margins import margin_of
from models.networks.network import LINEAR, Head, Network, build_network
from models.recipe.config import Augment, Member, Meta, Train
from models.training.epochs import initial_state, size_share, train_mode
from models.training.finetune import freeze_all_but_norms
from models.training.meta import Adjuster, Constant
from models.training.sample_weights import SampleWeights
from models.training.step import take_step
from models.training.train import to_device
from tests.unit.models.pretend_card import CARD, Card, pretend_card, run_backward

# Places that may wait for the device, in one of meta.every steps, and why.
ALLOWED_IN_META = {
    "models.training.hypergradient._dot": "lengths and angles of gradients decide on the CPU",
    "models.training.hypergradient._hyperparameter_gradient": "hyperparameters are numbers on the CPU",
}
ALLOWED_IN_WATCH = {"models.training.watch.LossWatch.check": "losses that are not finite are named, once in many steps"}
PLAIN = Augment()
N, CLASSES, WIDTH, BATCH = 20, 11, 6, 6
# Parameters with which a loss does all that it can from the first epoch on.
ACTIVE: dict[str, dict[str, Any]] = {
    "marvel": {"start_epoch": 0},
    "marvel+": {"start_epoch": 0, "margin": "probability", "gain": 1.0},
    "truncated_gce": {"start_epoch": 0},
    "car": {"start_epoch": 0, "every": 1, "beta": 0.1},
}


@pytest.fixture
def card() -> Iterator[Card]:
    with pretend_card() as card:
        yield card


def loss_of(name: str, **params: Any) -> Loss:
    """A loss on the card after `begin` with N samples of CLASSES classes."""
    given = ACTIVE.get(name, {}) | params
    loss = build_loss(name, num_classes=CLASSES, **given)
    ids = np.array([f"s{number}" for number in range(N)], object)
    loss.begin(Samples(ids, np.arange(N) % 4, [f"c{number}" for number in range(CLASSES)]))
    loss.start_epoch(0)
    return loss.to(CARD).train()


class Pixels:
    """Inputs of a whole network, of which a step needs no more than that."""

    def __init__(self, network: Network) -> None:
        self.part = network


def network_of(member: Member) -> Network:
    """A member's network on the card."""
    network = build_network(member, num_classes=CLASSES).to(CARD)
    assert network.mean.device == CARD
    return network


def frozen(head: Head, augment: Augment) -> Features:
    """Features of N photos on the card."""
    return Features(torch.randn(2, N, WIDTH).to(CARD), head.to(CARD), augment=augment)


def waits_of_steps(
    card: Card, network: Any, loss: Loss, inputs: Any, draw: Callable[[], Mixed], *,
    settings: Train, meta: Constant | None = None, har: bool = False,
) -> dict[str, set[str]]:  # fmt: skip
    """Waits of one of two steps, by place; the first only prepares the second."""
    weights, target = SampleWeights(torch.ones(N), torch.ones(CLASSES) if har else None), torch.arange(N) % CLASSES
    sampler = Sampler(target=target.numpy(), score=np.zeros(N, np.float32), settings=settings, seed=0)
    state = initial_state(network, loss, inputs, ids=[f"s{number}" for number in range(N)], sample_weights=weights,
                          meta=meta or Constant(loss), sampler=sampler, steps=2)  # fmt: skip
    for _ in range(2):
        card.waits.clear()
        batch, share, *_ = draw()
        labels = labels_of(np.arange(BATCH), target, share=share, device=CARD)
        values = take_step(state, batch, labels, size=BATCH, settings=settings)
        state.watch.add(values, np.arange(BATCH), lr=0.1)
    return dict(card.waits)


def waits_with_features(
    card: Card, loss: Loss, *, augment: Augment = PLAIN, member: Member = LINEAR, **settings: Any
) -> dict[str, set[str]]:
    """Waits of a step on features of a frozen backbone."""
    head = Head(WIDTH, num_classes=CLASSES, member=member)
    inputs = frozen(head, augment)
    har = bool(settings.get("har"))
    return waits_of_steps(
        card, _Frozen(head), loss, inputs, lambda: next(inputs.training([np.arange(BATCH)], torch.Generator())),
        settings=Train(backbone_lr_scale=0, **settings), har=har,
    )  # fmt: skip


class _Frozen(torch.nn.Module):
    """The parts that a step needs of a network whose backbone is frozen."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.backbone, self.head, self.mean = torch.nn.Identity(), head, torch.zeros(1, device=CARD)


@pytest.mark.parametrize("name", sorted(LOSSES.components))
def test_no_loss_waits(card: Card, name: str) -> None:
    assert waits_with_features(card, loss_of(name)) == {}


def test_the_loss_of_a_student_does_not_wait(card: Card) -> None:
    classes, probs = torch.zeros(N, 3, dtype=torch.int32), torch.ones(N, 4, dtype=torch.float16)
    assert waits_with_features(card, Distilled(CLASSES, classes, probs).to(CARD).train()) == {}


@pytest.mark.parametrize("name", ["ce", "ce+sr", "bi_tempered", "aum", "car", "marvel+"])
def test_no_loss_in_pieces_waits(card: Card, name: str) -> None:
    assert waits_with_features(card, loss_of(name), head_rows=4) == {}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("gce", {"logit_bias": 3.0, "logit_adjustment": 1.0}),
        ("gce", {"init_match": "batch"}),
        ("gce", {"init_match": "initial"}),
        ("gce", {"warmup_ce_epochs": 1}),
        ("gce", {"blend_epochs": 3}),
        ("ce", {"label_smoothing": 0.1}),
        ("ce+sr", {"l2_normalise": False, "floor": 1e-7, "logit_adjustment": 1.0}),
        ("bi_tempered", {"num_iters": 5}),
        ("eps_ce+mae", {"floor": 1e-8}),
        ("aum", {"decision_epoch": 1, "warmup_ce_epochs": 1}),
        ("car", {"start_epoch": 5}),
        ("marvel", {"base": "nce+agce", "logit_adjustment": 1.0}),
    ],
    ids=str,
)
def test_no_option_waits(card: Card, name: str, params: dict[str, Any]) -> None:
    assert waits_with_features(card, loss_of(name, **params)) == {}


def test_decided_losses_do_not_wait(card: Card) -> None:
    loss = loss_of("aum", decision_epoch=1)
    assert waits_with_features(card, loss) == {}
    loss.start_epoch(1)
    assert waits_with_features(card, loss) == {}


def test_forward_correction_does_not_wait(card: Card) -> None:
    loss, true = loss_of("gce"), np.array([1, 2, 2])
    noise = Noise(0.1, CLASSES, np.full(CLASSES, 0.9), true, true + 1, np.full(3, 0.05), np.full(CLASSES, 0.01))
    loss.correction = Correction(noise).to(CARD)
    assert waits_with_features(card, loss) == {}


HEADS = [Member(), Member(head="arcface"), Member(head="arcface", centres=3)]


@pytest.mark.parametrize("rows", [0, 4], ids=["whole", "pieces"])
@pytest.mark.parametrize("member", HEADS, ids=["linear", "arcface", "centres"])
def test_no_head_waits(card: Card, member: Member, rows: int) -> None:
    loss = loss_of("nce+agce")
    loss.margin = margin_of(member)
    assert waits_with_features(card, loss, member=member, head_rows=rows) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"optimizer": "lamb"},
        {"l1": 1e-3},
        {"har": 0.1},
        {"ema": 0.9},
        {"soup_epochs": 2},
        {"schedule": "step"},
    ],
    ids=str,
)
def test_no_setting_of_training_waits(card: Card, settings: dict[str, Any]) -> None:
    assert waits_with_features(card, loss_of("gce"), **settings) == {}


def test_losses_are_looked_at_once_in_many_steps(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.training.watch, "EVERY", 2)
    with pytest.raises(BatchError, match="not finite"):  # what is copied from a pretend card is zero, here False
        waits_with_features(card, loss_of("gce"))
    assert card.waits.keys() == ALLOWED_IN_WATCH.keys()


@pytest.mark.parametrize("is_finished", [True, False])
def test_the_host_waits_for_photos_that_the_card_decodes_alone(
    card: Card, monkeypatch: pytest.MonkeyPatch, is_finished: bool
) -> None:
    """Their copy is there before nvJPEG writes into it; of all others the card itself waits for the copy."""
    stream, present, used = mock.Mock(), mock.Mock(), list[Any]()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: present)
    monkeypatch.setattr(Tensor, "record_stream", lambda _, by: used.append(by))
    finish = mock.Mock()
    batch = Batch(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), np.arange(2), None if is_finished else finish)
    photos = Cuda(CARD).send(batch)()
    assert photos.device == CARD
    assert card.waits == {}
    assert stream.synchronize.called == finish.called == (not is_finished)
    present.wait_event.assert_called_once_with(stream.record_event())
    assert used == [present]


def test_the_gpus_of_a_training_share_batch_norm(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.training.train, "best_device", lambda: CARD)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    network = to_device(build_network(Member(backbone="test_resnet", size=32), num_classes=CLASSES))
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


def test_mixed_features_do_not_wait(card: Card) -> None:
    assert waits_with_features(card, loss_of("gce"), augment=Augment(mixup=0.5).of_features) == {}


AUGMENTS = {
    "plain": Augment(),
    "all": Augment(blur=1.0, hue_deg=20.0, flip_vertical=True, erase=1.0, holes=3),
    "some": Augment(blur=0.5, hue_deg=20.0, erase=0.5),
    "none": Augment(zoom=0, rotate_deg=0, colour=0, flip=False, erase=0),
    "mixup": Augment(mixup=0.5),
    "cutmix": Augment(cutmix=0.5),
    "both": Augment(mixup=0.5, cutmix=0.5),
}


def views(augment: Augment, *, size: int) -> Callable[[], Mixed]:
    """Draws random views of photos on the card, mixed as augment says."""
    photos = torch.zeros(N, 40, 40, 3, dtype=torch.uint8).to(CARD)
    generator = torch.Generator()

    def draw() -> Mixed:
        own = torch.from_numpy(needed_positions(BATCH, augment))
        draws = draw_views(BATCH, augment=augment, generator=generator)[own]
        batch = random_view(photos[: len(own)], size, draws)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        return mix_batch(batch, np.arange(BATCH), augment, generator)

    return draw


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=list(AUGMENTS))
def test_no_augmentation_waits(card: Card, augment: Augment) -> None:
    draw = views(augment, size=32)
    card.waits.clear()
    batch, *_ = draw()
    assert batch.shape == (BATCH, 3, 32, 32)
    assert card.waits == {}


def test_whole_views_do_not_wait(card: Card) -> None:
    photos = torch.zeros(N, 40, 40, 3, dtype=torch.uint8).to(CARD)
    card.waits.clear()
    for size in (40, 32):
        assert whole_view(photos, size).is_contiguous(memory_format=torch.channels_last)
    assert card.waits == {}


STAGES: dict[str, tuple[Member, dict[str, Any], dict[str, Any]]] = {
    "all": (Member(backbone="test_resnet", size=32), {}, {}),
    "growing": (Member(backbone="test_resnet", size=32), {"start_size": 0.5}, {}),
    "mixed": (Member(backbone="test_resnet", size=32, head="arcface", centres=2), {"ema": 0.9}, {"mixup": 0.5, "cutmix": 0.5}),
    "transformer": (Member(backbone="test_vit", size=32, args={"img_size": 32}), {"har": 0.1, "l1": 1e-3}, {}),
    "norms": (Member(backbone="test_resnet", size=32), {"head_rows": 4}, {}),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_of_a_whole_network_waits(card: Card, stage: str) -> None:
    member, given, augment = STAGES[stage]
    settings = Train(**given)
    network, loss = network_of(member), loss_of("nce+agce")
    if stage == "norms":
        freeze_all_but_norms(network)
    loss.margin = margin_of(member)
    train_mode(network, frozen=False)
    size = view_size(member.size, size_share(0, settings))
    draw = views(Augment(**augment), size=size)
    assert waits_of_steps(card, network, loss, Pixels(network), draw, settings=settings, har=settings.har > 0) == {}


@pytest.mark.parametrize("head_only", [True, False])
def test_learning_of_hyperparameters_waits_for_numbers_alone(card: Card, head_only: bool) -> None:
    head, loss = Head(WIDTH, num_classes=CLASSES), loss_of("gce")
    inputs = frozen(head, Augment())
    network = _Frozen(head)
    meta = Adjuster(
        loss, Meta(photos="val", every=1, batch_size=4, head_only=head_only), network=network, inputs=inputs,  # type: ignore[arg-type]
        target=np.arange(N) % CLASSES, seed=1,
    )  # fmt: skip
    found = waits_of_steps(
        card, network, loss, inputs, lambda: next(inputs.training([np.arange(BATCH)], torch.Generator())),
        settings=Train(backbone_lr_scale=0), meta=meta,
    )  # fmt: skip
    assert found.keys() == ALLOWED_IN_META.keys()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: x.cpu(),
        lambda x: torch.zeros(4).to(CARD),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: torch.zeros(4).copy_(x),
        lambda x: x[torch.tensor([1, 2])],
        lambda x: x.__setitem__(x > 0, x),
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).any()),
    ],
)
def test_the_card_notices_waits(card: Card, wait: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(4, device=CARD)
    x + x.flip(0) * 2
    torch.zeros(4).to(CARD, non_blocking=True)
    assert card.waits == {}
    wait(x)
    assert len(card.waits) == 1


def test_the_card_refuses_two_devices_and_unknown_shapes(card: Card) -> None:
    x = torch.zeros(4, device=CARD)
    with pytest.raises(RuntimeError, match="cuda:0 and cpu"):
        x + torch.ones(4)
    with pytest.raises(DynamicOutputShapeException):
        x.nonzero()


def test_backward_passes_on_the_card_are_those_of_torch() -> None:
    """The order of nodes, sums over paths, broadcasts and gradients of parts, compared on the CPU."""
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    c = (a * b).relu()
    value = (c.log_softmax(1) * c).sum() + (b**2).sum()
    expected = torch.autograd.grad(value, [a, b, c], retain_graph=True)
    found = run_backward([value], [torch.ones(())], True, False, [a, b, c])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
