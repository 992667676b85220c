"""One run: a network, a loss, given labels; the accuracy of the last epoch. The whole set is on the device."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models.losses import LOSSES, Samples, build_loss
from noisy.protocol import Protocol, build_net
from noisy.spec import Method

CLIP = 5.0
EVAL_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Task:
    """Inputs on the device: photos (N, 32, 32, 3) uint8 or features (N, d) float32; labels (N,) int64."""

    train: Tensor
    given: Tensor
    label: Tensor
    test: Tensor
    test_label: Tensor
    classes: tuple[str, ...]

    @property
    def samples(self) -> Samples:
        """Everything that a loss may know about the samples."""
        ids = np.array([f"{i:08d}" for i in range(len(self.given))], dtype=object)
        return Samples(id=ids, target=self.given.cpu().numpy(), classes=list(self.classes))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Shares in %. accuracy: on test photos; memorised: wrong labels that the network reproduces; nan if there are none."""

    accuracy: float
    memorised: float
    seconds: float


class Trainer:
    """A network with its optimiser and schedule."""

    def __init__(self, task: Task, protocol: Protocol, method: Method, *, seed: int) -> None:
        torch.manual_seed(seed)
        self.task, self.protocol, self.seed = task, protocol, seed
        device, num_classes = task.train.device, len(task.classes)
        self.net = build_net(protocol.network, num_features=task.train.shape[-1], num_classes=num_classes).to(device)
        own = dict(method.params)
        classifier = self.net.get_submodule("classifier")
        if "width" in LOSSES.find(method.loss).parameters and isinstance(classifier, nn.Linear):
            own.setdefault("width", classifier.in_features)
        self.loss = build_loss(method.loss, num_classes=num_classes, **own).to(device)
        self.l1 = method.training.get("l1", 0.0)
        self.lr = method.training.get("lr", protocol.lr)
        decay = method.training.get("weight_decay", protocol.weight_decay)
        self.parameters = [p for p in (*self.net.parameters(), *self.loss.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.SGD(self.parameters, lr=self.lr, momentum=0.9, weight_decay=decay)
        self.normalise = Normalise(task.train)

    def run(self) -> Outcome:
        """Trains to the end."""
        started = time.perf_counter()
        self.loss.begin(self.task.samples)
        for epoch in range(self.protocol.epochs):
            if self.loss.wants_answers(epoch):
                self.loss.take_answers(self.log_p(), accuracy=math.nan)  # test photos must not be used
            self.loss.start_epoch(epoch)
            self._epoch(epoch)
            self.loss.end_epoch()
        return self._outcome(time.perf_counter() - started)

    def _epoch(self, epoch: int) -> None:
        task, protocol = self.task, self.protocol
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.5 * self.lr * (1 + math.cos(math.pi * epoch / protocol.epochs))
        self.net.train()
        order = torch.randperm(len(task.given), generator=draw).to(task.train.device)
        for index in order.split(protocol.batch_size):
            if len(index) < 2:  # batch norm needs two samples
                continue
            inputs = task.train[index]
            if inputs.dtype == torch.uint8:
                inputs = random_view(inputs, crop_px=protocol.crop_px, flip=protocol.flip, draw=draw)
            self._step(inputs, task.given[index], index)

    def _step(self, inputs: Tensor, target: Tensor, index: Tensor) -> None:
        device = inputs.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits, embedding = self.net(self.normalise(inputs))
        value = self.loss(logits, target, index, embedding).mean()
        if self.l1:
            value = value + self.l1 * sum(p.abs().sum() for p in self.net.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()

    @torch.no_grad()
    def _logits(self, inputs: Tensor) -> Tensor:
        self.net.eval()
        return torch.cat([self.net(self.normalise(part)).logits for part in inputs.split(EVAL_BATCH)])

    def log_p(self) -> Tensor:
        """(N,) log-probability of the given labels of the training photos, as they are."""
        log_p = functional.log_softmax(self._logits(self.task.train), dim=1)
        return log_p.gather(1, self.task.given[:, None])[:, 0].cpu()

    def _outcome(self, seconds: float) -> Outcome:
        task = self.task
        right = (self._logits(task.test).argmax(1) == task.test_label).float().mean().item()
        answer, wrong = self._logits(task.train).argmax(1), task.given != task.label
        memorised = (answer == task.given)[wrong].float().mean().item()
        return Outcome(accuracy=100 * right, memorised=100 * memorised, seconds=seconds)


class Normalise:
    """Turns photos into (N, 3, 32, 32) with the training photos' mean 0 and deviation 1 per channel; features stay as they are."""

    def __init__(self, train: Tensor) -> None:
        if train.dtype == torch.uint8:
            values = train[:EVAL_BATCH].float()
            self.mean, self.std = values.mean((0, 1, 2)), values.std((0, 1, 2)) + 1e-6

    def __call__(self, inputs: Tensor) -> Tensor:
        if inputs.dtype != torch.uint8:
            return inputs
        return ((inputs.float() - self.mean) / self.std).permute(0, 3, 1, 2)  # in memory channels last


def random_view(photos: Tensor, *, crop_px: int, flip: bool, draw: torch.Generator) -> Tensor:
    """(N, S, S, 3) uint8, each shifted by up to crop_px over black and mirrored half the time, all in one gather."""
    n, side = photos.shape[:2]
    mirrored = (torch.rand(n, generator=draw) < 0.5) & flip
    rows, columns = (torch.arange(side) + torch.randint(0, 2 * crop_px + 1, (n, 1), generator=draw) for _ in range(2))
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = functional.pad(photos, (0, 0, crop_px, crop_px, crop_px, crop_px))
    at, rows, columns = (i.to(photos.device) for i in (torch.arange(n), rows, columns))
    return padded[at[:, None, None], rows[:, :, None], columns[:, None, :]]


def on_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Tensor on the device."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
