"""The network: a timm backbone, a 512-d embedding with a BNNeck, and a bias-free classifier.

backbone -> pooled feature (d) -> Linear(d, 512) -> BatchNorm1d(512, shift fixed at 0) -> Linear(512, C, no bias)

The neck follows Luo et al. 2019 (BNNeck). The 512-d layer keeps the classifier small at 50,030 classes, as in the
AliProducts report (arXiv 2106.10683, section 2.1). Without a bias, tau-normalisation of the classifier is exact; only
re-balancing may add a bias (models.training.classifiers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from durable import sha256
from models.errors import ConfigError, WeightsMismatch
from models.networks.backbones import unknown_backbone
from models.networks.margins import Angular, Sphere
from models.networks.pretrained import settings_of, weights_file
from models.networks.weights import load_weights
from models.recipe.config import Member
from models.recipe.learning import PRETRAINED

EMBEDDING = 512
LINEAR = Member()


class Output(NamedTuple):
    """Logits (N, C), and the embedding (N, 512) after the neck."""

    logits: Tensor
    embedding: Tensor


class Head(nn.Module):
    """Embedding, neck and classifier of the kind that the member names; works on pooled features (N, d)."""

    sphere: nn.Module
    classifier: nn.Linear

    def __init__(self, num_features: int, *, num_classes: int, member: Member = LINEAR) -> None:
        super().__init__()
        self.embed = nn.Linear(num_features, EMBEDDING, bias=False)
        self.neck = nn.BatchNorm1d(EMBEDDING)
        self.neck.bias.requires_grad_(False)
        self.sphere, self.classifier = nn.Identity(), nn.Linear(EMBEDDING, num_classes, bias=False)
        if member.head == "arcface":
            self.sphere = Sphere()
            self.classifier = Angular(EMBEDDING, num_classes, scale=member.scale, centres=member.centres)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def embedding(self, features: Tensor) -> Tensor:
        """(N, 512) embedding after the neck; of length sqrt(512) for an angular classifier."""
        embedding: Tensor = self.sphere(self.neck(self.embed(features)))
        return embedding

    @property
    def rows(self) -> Tensor:
        """(C, 512) rows that multiply the embedding; an angular classifier may have several adjacent rows per class."""
        return self.classifier.rows if isinstance(self.classifier, Angular) else self.classifier.weight

    def forward(self, features: Tensor) -> Output:
        """Logits and embeddings of pooled features (N, d)."""
        embedding = self.embedding(features)
        return Output(self.classifier(embedding), embedding)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each RGB channel, for values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Network(nn.Module):
    """Whole network: pixels (N, 3, size, size) in [0, 1] to Output; it normalises pixels as its backbone expects."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        width: int,
        num_classes: int,
        normalisation: Normalisation,
        member: Member = LINEAR,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalisation.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(normalisation.std).view(1, 3, 1, 1), persistent=False)
        self.backbone = backbone
        self.head = Head(width, num_classes=num_classes, member=member)

    def features(self, pixels: Tensor) -> Tensor:
        """Pooled features (N, d)."""
        pooled: Tensor = self.backbone((pixels - self.mean) / self.std)
        return pooled

    def embedding(self, pixels: Tensor) -> Tensor:
        """(N, 512) embeddings, without computing the logits."""
        return self.head.embedding(self.features(pixels))

    def forward(self, pixels: Tensor) -> Output:
        """Logits and embeddings of pixels (N, 3, size, size)."""
        output: Output = self.head(self.features(pixels))
        return output


def build_network(member: Member, *, num_classes: int) -> Network:
    """A member's network with its starting weights, on the CPU.

    Weights are loaded at the backbone's native size; position embeddings are then resized to the member's size. Those of a
    file of another size are resized when they are loaded.

    Raises:
        ConfigError: timm has no such backbone or weights, or the backbone does not accept the arguments or the size.
        WeightsMismatch: the weights are not available, or do not fit the backbone, or are not those of the run.
    """
    backbone = _backbone(member)
    if member.weights:
        path = start_file(member)
        load_weights(backbone, path, name=member.backbone, resize=lambda: set_size(backbone, member))
    width = set_size(backbone, member)
    normalisation = _normalisation(member, backbone)
    return Network(backbone, width=width, num_classes=num_classes, normalisation=normalisation, member=member)


def start_file(member: Member) -> Path:
    """The file of the weights that a member starts from.

    Raises:
        ConfigError, WeightsMismatch: there is none on this machine, or one that is not that of the run.
    """
    path = weights_file(member.backbone) if member.weights == PRETRAINED else Path(member.weights)
    if member.weights_sha256 and path.is_file() and (found := sha256(path)) != member.weights_sha256:
        raise WeightsMismatch(
            f"members.weights: {path} has the SHA-256 {found[:12]}..., but members.weights_sha256 demands "
            f"{member.weights_sha256[:12]}..., because all trainings of a run start from the same weights; copy the file that the "
            "run was started with, or start the run again"
        )
    return path


def set_size(backbone: nn.Module, member: Member) -> int:
    """Adapts a backbone to photos of the member's size; returns the width of its pooled feature.

    timm resizes position embeddings and windows. The width is measured, because timm's num_features is wrong for
    backbones with a convolutional head.

    Raises:
        ConfigError: the backbone does not accept the size.
    """
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1, 1))[0]
    with _config_error(f"members.args or members.size: {member.backbone} at {member.size} px"), torch.no_grad():
        if member.size % patch:
            raise ValueError(f"its patches of {patch} px would not cover the photo")
        if callable(resize := getattr(backbone, "set_input_size", None)):
            resize(img_size=(member.size, member.size))
        width: int = backbone.eval()(torch.zeros(1, 3, member.size, member.size)).shape[1]
    return width


@contextmanager
def _config_error(field: str) -> Iterator[None]:
    """Turns any exception that a timm model raises for unsuitable arguments into a ConfigError about `field`."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{field}: {_first_line(error)}; correct them") from None


def feature_width(member: Member) -> int:
    """Width of the pooled features of a member's backbone, without its weights.

    Raises:
        ConfigError: as `build_network`.
    """
    return set_size(_backbone(member), member)


def _backbone(member: Member) -> nn.Module:
    if not timm.is_model(member.backbone):
        raise unknown_backbone(member.backbone, timm.list_models())
    if "." in member.backbone:
        settings_of(member.backbone)  # refuses a tag that timm does not have
    with _config_error(f"members.args or members.size: {member.backbone} at {member.size} px"):
        backbone: nn.Module = timm.create_model(member.backbone, pretrained=False, num_classes=0, **member.args)
    return backbone


def _normalisation(member: Member, backbone: nn.Module) -> Normalisation:
    own: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]  # timm's, read as a mapping
    return Normalisation(tuple(member.mean or own["mean"]), tuple(member.std or own["std"]))


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(threads: int) -> None:
    """Sets the number of CPU threads that torch uses; 0 keeps torch's default."""
    torch.set_num_threads(threads or torch.get_num_threads())


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def count_parameters(module: nn.Module) -> int:
    """Number of trainable scalars."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
