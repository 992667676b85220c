"""Protocols of training: the sources' own, and two reduced ones for a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.networks.network import Head, Output


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """SGD with momentum .9, cosine to 0 per epoch, gradients clipped to norm 5; accuracy is that of the last epoch."""

    name: str
    network: str  # cnn8, cnn5 or head
    epochs: int
    lr: float
    batch_size: int = 128
    weight_decay: float = 1e-4
    num_train: int = 0  # photos, an equal share of every class; 0: all
    num_test: int = 0
    crop_px: int = 0  # random shift, over black
    flip: bool = False
    photo_px: int = 0  # of the frozen backbone
    weights: str = ""  # sha256 of the frozen backbone's file, so that another file is another protocol
    measured: bool = True

    @property
    def is_full(self) -> bool:
        """True if published figures are comparable."""
        return self.name == "full"


PROTOCOLS = {
    # Zhou et al., ICML 2021, and eps-softmax, NeurIPS 2024: their code for CIFAR-10
    "full": Protocol(name="full", network="cnn8", epochs=120, lr=0.01, crop_px=4, flip=True, measured=False),
    # chosen on cross-entropy against gce and agce at symmetric .4
    "small": Protocol(name="small", network="cnn5", epochs=12, lr=0.02, num_train=10_000, num_test=5_000, flip=True),
    "features": Protocol(
        name="features", network="head", epochs=60, lr=0.05, num_train=10_000, num_test=5_000, photo_px=96
    ),
}


class Net(nn.Module):
    """Convolutions, then a hidden layer whose output is the embedding, then the classifier."""

    def __init__(self, body: nn.Sequential, *, width: int, num_hidden: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(width, num_hidden), nn.BatchNorm1d(num_hidden), nn.ReLU())
        self.classifier = nn.Linear(num_hidden, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, pixels: Tensor) -> Output:
        embedding = self.hidden(self.body(pixels))
        return Output(self.classifier(embedding), embedding)


def build_net(kind: str, *, num_features: int, num_classes: int) -> nn.Module:
    """Network of the protocol with random weights.

    cnn8: the sources' 8 layers: 64, 64 / 128, 128 / 196, 196 convolutions, 256 hidden, classifier.
    cnn5: 5 layers for one CPU thread: 32 (stride 2), 64 / 128 convolutions, 128 hidden, classifier.
    head: embedding, neck and classifier of models.networks.network, on features of a frozen backbone.
    """
    if kind == "head":
        return Head(num_features, num_classes=num_classes)
    if kind == "cnn8":
        body = nn.Sequential(
            *_conv(3, 64), *_conv(64, 64), nn.MaxPool2d(2),
            *_conv(64, 128), *_conv(128, 128), nn.MaxPool2d(2),
            *_conv(128, 196), *_conv(196, 196), nn.MaxPool2d(2),
        )  # fmt: skip
        net = Net(body, width=196 * 16, num_hidden=256, num_classes=num_classes)
    else:
        body = nn.Sequential(*_conv(3, 32, stride=2), *_conv(32, 64), nn.MaxPool2d(2), *_conv(64, 128), nn.MaxPool2d(2))
        net = Net(body, width=128 * 16, num_hidden=128, num_classes=num_classes)
    return net.to(memory_format=torch.channels_last)


def _conv(num_in: int, num_out: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(num_in, num_out, 3, stride, padding=1), nn.BatchNorm2d(num_out), nn.ReLU(inplace=True)
