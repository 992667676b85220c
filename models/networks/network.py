"""The network: a timm backbone, a 512-d embedding behind a BNNeck, a bias-free classifier.

backbone -> pooled feature (d) -> Linear(d, 512) -> BatchNorm1d(512, shift fixed at 0) -> Linear(512, C, no bias)

The neck follows Luo et al. 2019 (BNNeck); the 512-d layer keeps the classifier small at 50,030 classes, as in the
AliProducts report (arXiv 2106.10683, section 2.1). Without bias, tau-normalisation of the classifier is exact; a bias comes
from re-balancing alone (models.training.classifiers).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ConfigError, WeightsMismatch
from models.networks.margins import Angular, Sphere
from models.recipe.config import Member

EMBEDDING = 512
LINEAR = Member()


class Output(NamedTuple):
    """logits (N, C) and the embedding (N, 512) behind the neck."""

    logits: Tensor
    embedding: Tensor


class Head(nn.Module):
    """Embedding, neck and classifier, which a member says the kind of; works on pooled features (N, d)."""

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
        """(N, 512) behind the neck; of length sqrt(512) for a classifier of angles."""
        embedding: Tensor = self.sphere(self.neck(self.embed(features)))
        return embedding

    @property
    def rows(self) -> Tensor:
        """(C, 512) that the embedding is multiplied by; of an angular classifier several for a class, side by side."""
        return self.classifier.rows if isinstance(self.classifier, Angular) else self.classifier.weight

    def forward(self, features: Tensor) -> Output:
        embedding = self.embedding(features)
        return Output(self.classifier(embedding), embedding)


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation per RGB channel, of values in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Network(nn.Module):
    """Pixels in [0, 1], (N, 3, size, size), to Output; normalises for its own backbone."""

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
        """(N, 512), without the logits."""
        return self.head.embedding(self.features(pixels))

    def forward(self, pixels: Tensor) -> Output:
        output: Output = self.head(self.features(pixels))
        return output


def build_network(member: Member, *, num_classes: int) -> Network:
    """The member's network with its starting weights, on the CPU.

    Weights are loaded at the size that the backbone is made for, and position embeddings then resized to the member's.

    Raises:
        ConfigError: timm has no such backbone, or it does not take the arguments or the size.
        WeightsMismatch: the weights file does not fit the backbone.
    """
    backbone = _backbone(member)
    if member.weights:
        _load_backbone(backbone, Path(member.weights), name=member.backbone)
    width = set_size(backbone, member)
    normalisation = _normalisation(member, backbone)
    return Network(backbone, width=width, num_classes=num_classes, normalisation=normalisation, member=member)


def set_size(backbone: nn.Module, member: Member) -> int:
    """Makes a backbone take photos of the member's size; the width of its pooled feature.

    Position embeddings and windows follow by timm's own rules. The width is measured, as timm's num_features misses it where a
    conv head follows.

    Raises:
        ConfigError: the backbone does not take the size.
    """
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", (1, 1))[0]
    with _blaming(f"members.args or members.size: {member.backbone} at {member.size} px"), torch.no_grad():
        if member.size % patch:
            raise ValueError(f"its patches of {patch} px would leave a margin out")
        if callable(resize := getattr(backbone, "set_input_size", None)):
            resize(img_size=(member.size, member.size))
        width: int = backbone.eval()(torch.zeros(1, 3, member.size, member.size)).shape[1]
    return width


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    """ConfigError about `what` for whatever timm's models raise on arguments that do not fit."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{what}: {_first_line(error)}; correct them") from None


def _backbone(member: Member) -> nn.Module:
    if not timm.is_model(member.backbone):
        near = difflib.get_close_matches(member.backbone, timm.list_models(), n=3)
        hint = f" (did you mean {', '.join(near)}?)" if near else "; timm.list_models() names them"
        raise ConfigError(f"members.backbone: timm {timm.__version__} has no model {member.backbone!r}{hint}")
    with _blaming(f"members.args or members.size: {member.backbone} at {member.size} px"):
        backbone: nn.Module = timm.create_model(member.backbone, pretrained=False, num_classes=0, **member.args)
    return backbone


def _normalisation(member: Member, backbone: nn.Module) -> Normalisation:
    own: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]  # timm's, read as a mapping
    return Normalisation(tuple(member.mean or own["mean"]), tuple(member.std or own["std"]))


def _load_backbone(backbone: nn.Module, path: Path, *, name: str) -> None:
    """Loads all weights of the backbone; only the file's own classifier may be left over."""
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, weights_only=True, map_location="cpu")
        )
    except FileNotFoundError:
        raise WeightsMismatch(
            f"members.weights: {path} does not exist; correct it, or leave it out to start at random"
        ) from None
    except Exception as error:  # safetensors and torch have no common error for a broken file
        raise WeightsMismatch(
            f"members.weights: {path} cannot be read ({type(error).__name__}); take a .safetensors or torch file of weights alone"
        ) from None
    if not isinstance(tensors, Mapping):
        raise WeightsMismatch(
            f"members.weights: {path} holds a {type(tensors).__name__}, want named tensors (a state_dict)"
        )
    own = backbone.state_dict()
    wrong = [key for key, value in own.items() if key not in tensors or tensors[key].shape != value.shape]
    wrong += [key for key in tensors if key not in own and key.split(".")[0] not in _classifier(backbone)]
    if wrong:
        raise WeightsMismatch(
            f"members.weights: {path} does not fit {name}: {len(wrong)} tensors are missing, left over or of "
            f"another shape, first {wrong[0]!r}; take the weights of {name}, or set members.backbone to theirs"
        )
    backbone.load_state_dict({key: tensors[key] for key in own})


def _classifier(backbone: nn.Module) -> set[str]:
    """First words of the names under which the backbone's own classifier lies in a file, such as fc or head."""
    names = backbone.pretrained_cfg["classifier"]  # type: ignore[index]  # timm's, one name or several
    return {name.split(".")[0] for name in ([names] if isinstance(names, str) else names)}


def best_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def count_parameters(module: nn.Module) -> int:
    """Number of scalars that learning may change."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
