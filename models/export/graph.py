"""The served graph: from uint8 photos to ranked classes, their probabilities, the score `known` and an embedding.

photo (B, S, S, 3) uint8
  per member: resize to enlarge x its size -> crops -> normalise -> backbone -> embedding -> tau-normalised classifier,
              divided by the temperature -> softmax -> mean over crops -> ten best classes kept
  weighted mean over members -> k best: ids (B, k) int64, probs (B, k) float32
  a score of logits and embeddings (models.export.ood) -> known (B, 1) float32: is it a product of the assortment?
  embedding (B, 512) float32 of the first member
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract import ACCEPTED, PADDING
from models.errors import WeightsMismatch
from models.export.ood import UNCALIBRATED, Calibration, KnownScore, MemberOutput
from models.export.resize import Resize
from models.export.stem import with_scale_folded
from models.networks.network import Head
from models.recipe.config import Export
from models.training.classifiers import tau_normalise
from models.training.train import Trained


def used_networks(networks: Sequence[Path], ensemble: Path) -> tuple[list[Path], list[float]]:
    """Files of the networks with a positive weight, and their weights, from the JSON file of an ensemble."""
    weights = json.loads(ensemble.read_text(encoding="utf-8"))["weights"]
    used = [(path, weight) for path, weight in zip(networks, weights, strict=True) if weight]
    return [path for path, _ in used], [weight for _, weight in used]


def fold_head(head: Head, *, tau: float, temperature: float = 1.0) -> tuple[nn.Linear, nn.Linear]:
    """Embedding layer with the neck folded in, and tau-normalised classifier divided by its temperature.

    Exact up to float32 rounding. With g = gamma / sqrt(var + eps), the embedding's rows are scaled by g and shifted by
    beta - mean g. The neck is folded into the embedding and not into the classifier, where it would change the norms
    that tau uses.
    """
    neck = head.neck
    assert neck.running_var is not None
    assert neck.running_mean is not None
    gain = neck.weight.double() / (neck.running_var.double() + neck.eps).sqrt()
    shift = neck.bias.double() - neck.running_mean.double() * gain
    embed = nn.Linear(head.embed.in_features, head.embed.out_features)
    classifier = copy.deepcopy(head.classifier)  # with its bias, if re-balancing added one
    embed.weight.data = (head.embed.weight.double() * gain[:, None]).float()
    embed.bias.data = shift.float()
    classifier.weight.data = tau_normalise(head.classifier.weight.detach(), tau) / temperature
    if classifier.bias is not None:
        classifier.bias.data = classifier.bias.data / temperature
    return embed, classifier


def crop_boxes(full: int, size: int, crops: int) -> list[tuple[int, int, bool]]:
    """(top, left, mirrored) boxes of 1, 2, 5 or 10 crops: the centre, then the corners, then their mirror images.

    Coinciding crops are listed once, which does not change their mean.
    """
    room = full - size
    centre = (room // 2, room // 2)
    corners = [(0, 0), (0, room), (room, 0), (room, room)]
    origins = [centre] if crops <= 2 else [centre, *corners]
    mirrors = (False, True) if crops in (2, 10) else (False,)
    return list(dict.fromkeys((top, left, mirrored) for mirrored in mirrors for top, left in origins))


class Branch(nn.Module):
    """One member inside the graph; uses the first ratio of settings.enlarge."""

    mean: Tensor
    scale: Tensor

    def __init__(self, trained: Trained, *, settings: Export, temperature: float = 1.0) -> None:
        super().__init__()
        size = trained.member.size
        # an even margin, so that the centre crop is exactly in the centre
        full = size + 2 * round(size * (settings.enlarge[0] - 1) / 2) if settings.crops > 1 else size
        self.size, self.crops = size, crop_boxes(full, size, settings.crops)
        self.resize = Resize(settings.input_size, full)
        # a row of a view: int8 graphs keep pixels in (S, S, 3), where ONNX Runtime subtracts three numbers very slowly
        self.register_buffer("mean", 255 * trained.network.mean.expand(1, 3, 1, size).clone())
        self.register_buffer("scale", 1 / (255 * trained.network.std))
        folded = with_scale_folded(trained.network.backbone, self.scale, size=size)
        self.is_folded, self.backbone = folded is not None, folded or trained.network.backbone
        self.embed, self.classifier = fold_head(trained.network.head, tau=trained.tau, temperature=temperature)
        self.sphere = trained.network.head.sphere

    def forward(self, pixels: Tensor) -> MemberOutput:
        """Logits and embeddings of each crop of pixels (B, 3, S, S) in [0, 255]."""
        embedding = self.embedding(self.pooled(pixels, self.crops))
        n = len(self.crops)
        return MemberOutput(self.classifier(embedding).unflatten(0, (n, -1)), embedding.unflatten(0, (n, -1)))

    def pooled(self, pixels: Tensor, crops: Sequence[tuple[int, int, bool]]) -> Tensor:
        """(n B, d) features of the backbone for n crops of pixels (B, 3, S, S)."""
        full = self.resize(pixels)
        views = torch.cat([self._crop(full, *box) for box in crops])
        features: Tensor = self.backbone(self.normalised(views))
        return features

    def embedding(self, features: Tensor) -> Tensor:
        """(N, 512) inputs of the classifier."""
        embedding: Tensor = self.sphere(self.embed(features))
        return embedding

    def normalised(self, views: Tensor) -> Tensor:
        """Pixels in [0, 255] as this backbone takes them; its first convolutions scale them if they can."""
        centred = views - self.mean
        return centred if self.is_folded else centred * self.scale

    def _crop(self, full: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
        view = full[:, :, top : top + self.size, left : left + self.size]
        return view.flip(3) if mirrored else view


class GraphOutput(NamedTuple):
    """Outputs of the graph, in order."""

    ids: Tensor  # (B, k) int64, best first; padded by -1; all -1 for photos that export.reject rejects
    probs: Tensor  # (B, k) float32
    known: Tensor  # (B, 1) float32 in [0, 1]: score that the photo shows a product of the assortment; accepted from 0.5
    embedding: Tensor  # (B, 512) float32, of unit length


class DeployGraph(nn.Module):
    """Module that computes everything between a uint8 photo and the ranked classes.

    Only the classifiers, the reshape of their logits by crops and, if `known` uses them, the discriminants depend on the
    number of classes.

    Args:
        weights: weights of the members, with sum 1; None: equal weights.
    """

    weights: Tensor

    def __init__(
        self, members: Sequence[Trained], *, settings: Export, weights: Sequence[float] | None = None,
        calibration: Calibration = UNCALIBRATED,
    ) -> None:  # fmt: skip
        super().__init__()
        if any(member.classes != members[0].classes for member in members):
            raise WeightsMismatch("the networks of a graph know different classes; train them on the same data version")
        self.num_classes = len(members[0].classes)
        self.keep, self.top_k = settings.keep, settings.top_k
        self.reject = settings.reject
        self.branches = nn.ModuleList(
            Branch(member, settings=settings, temperature=calibration.temperature_of(number))
            for number, member in enumerate(members)
        )
        parts = torch.tensor(weights or [1 / len(members)] * len(members))
        self.register_buffer("weights", parts.view(-1, 1, 1))
        self.known = KnownScore(calibration)

    @property
    def members(self) -> list[Branch]:
        """Branches of the members."""
        return [each for each in self.branches if isinstance(each, Branch)]

    def forward(self, image: Tensor) -> GraphOutput:
        """Answers to uint8 photos (B, S, S, 3)."""
        outputs = self.output(image)
        mean = self.mean(outputs)
        known = self.known(outputs, mean, self.weights)
        probs, ids = functional.pad(mean, (0, self.top_k), value=-1.0).topk(self.top_k)
        ids = ids.where(probs >= 0, -1)
        ids = ids.where(known >= ACCEPTED, PADDING) if self.reject else ids
        return GraphOutput(ids, probs.clamp_min(0), known, functional.normalize(outputs[0].embedding.mean(0)))

    def output(self, image: Tensor) -> list[MemberOutput]:
        """Output of each member for uint8 photos (B, S, S, 3)."""
        pixels = self.pixels(image)
        return [branch(pixels) for branch in self.branches]

    def pixels(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) values in [0, 255] of uint8 photos (B, S, S, 3)."""
        return image.permute(0, 3, 1, 2).to(next(self.parameters()).dtype)

    def mean(self, outputs: Sequence[MemberOutput]) -> Tensor:
        """(B, C) weighted mean of the members' probabilities, each the mean over its crops, cut to its best classes."""
        return (self.weights * torch.stack([self._kept(output.logits.softmax(2).mean(0)) for output in outputs])).sum(0)

    def _kept(self, probabilities: Tensor) -> Tensor:
        """Probabilities of the best classes of one member, 0 for the others; exactly `keep` of them, even with ties."""
        columns = functional.pad(probabilities, (0, self.keep))  # enough to rank, even with few classes
        best = columns.topk(self.keep)
        # zeros_like would write the number of classes into the graph as a constant
        return (columns * 0).scatter(1, best.indices, best.values)[:, : -self.keep]
