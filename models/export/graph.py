"""The graph that is served: uint8 photos in; ranked classes, their probabilities and an embedding out.

photo (B, S, S, 3) uint8
  per member: resize to enlarge x its size -> crops -> normalise -> backbone -> embedding -> tau-normalised classifier
              -> softmax -> mean over crops -> ten best classes kept
  weighted mean over members -> k best: ids (B, k) int64, probs (B, k) float32;  known (B, 1) float32: is it of the assortment?
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

from models.classifiers import tau_normalise
from models.config import Export
from models.errors import WeightsMismatch
from models.network import Head
from models.train import Trained


def in_use(networks: Sequence[Path], ensemble: Path) -> tuple[list[Path], list[float]]:
    """Files of the networks that count, and how much each does, by the weights in a JSON file."""
    weights = json.loads(ensemble.read_text(encoding="utf-8"))["weights"]
    used = [(path, weight) for path, weight in zip(networks, weights, strict=True) if weight]
    return [path for path, _ in used], [weight for _, weight in used]


def fold_head(head: Head, *, tau: float) -> tuple[nn.Linear, nn.Linear]:
    """Embedding with its neck folded in, and the tau-normalised classifier; exact up to float32 rounding.

    With g = gamma / sqrt(var + eps) the embedding's rows are scaled by g and shifted by beta - mean g. Tau is applied to the
    raw rows first: their norms would change once the neck were folded the other way, into the classifier.
    """
    neck = head.neck
    assert neck.running_var is not None
    assert neck.running_mean is not None
    gain = neck.weight.double() / (neck.running_var.double() + neck.eps).sqrt()
    shift = neck.bias.double() - neck.running_mean.double() * gain
    embed = nn.Linear(head.embed.in_features, head.embed.out_features)
    classifier = copy.deepcopy(head.classifier)  # with its bias, where re-balancing gave it one
    embed.weight.data = (head.embed.weight.double() * gain[:, None]).float()
    embed.bias.data = shift.float()
    classifier.weight.data = tau_normalise(head.classifier.weight.detach(), tau)
    return embed, classifier


def resize_matrix(source: int, target: int) -> Tensor:
    """(target, source) weights of an antialiased bilinear resize, so that the resize is two matrix products.

    Made by torch's own resize of the unit matrix. The ONNX operator Resize(antialias) differs from torch by up to 1e-4 and
    is missing in some runtimes; a product is the same everywhere.
    """
    eye = torch.eye(source, dtype=torch.float64)[None, None]
    rows = functional.interpolate(eye, size=(target, source), mode="bilinear", antialias=True, align_corners=False)
    return rows[0, 0].float()


def crop_boxes(full: int, size: int, crops: int) -> list[tuple[int, int, bool]]:
    """(top, left, mirrored) of 1, 2, 5 or 10 crops: the centre, then the corners, each followed by mirror images.

    Those that coincide come once: their mean is the same.
    """
    room = full - size
    centre = (room // 2, room // 2)
    corners = [(0, 0), (0, room), (room, 0), (room, room)]
    places = [centre] if crops <= 2 else [centre, *corners]
    mirrors = (False, True) if crops in (2, 10) else (False,)
    return list(dict.fromkeys((top, left, mirrored) for mirrored in mirrors for top, left in places))


class Branch(nn.Module):
    """One member inside the graph; of settings.enlarge the first ratio is used."""

    resize: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained, *, settings: Export) -> None:
        super().__init__()
        size = trained.member.size
        full = size + 2 * round(size * (settings.enlarge[0] - 1) / 2) if settings.crops > 1 else size  # with a centre
        self.size, self.crops = size, crop_boxes(full, size, settings.crops)
        self.register_buffer("resize", resize_matrix(settings.input_size, full))
        self.register_buffer("mean", trained.network.mean)
        self.register_buffer("std", trained.network.std)
        self.backbone = trained.network.backbone
        self.embed, self.classifier = fold_head(trained.network.head, tau=trained.tau)
        self.sphere = trained.network.head.sphere

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) in [0, 1] to probabilities (B, C) and the mean embedding (B, 512) over the crops."""
        full = self.resize @ pixels @ self.resize.T
        views = torch.cat([self._crop(full, *box) for box in self.crops])
        embedding = self.sphere(self.embed(self.backbone((views - self.mean) / self.std)))
        probabilities = self.classifier(embedding).softmax(1)
        return self._mean(probabilities, batch=pixels.shape[0]), self._mean(embedding, batch=pixels.shape[0])

    def _mean(self, answers: Tensor, *, batch: int) -> Tensor:
        """Over the crops, (crops x B, d) to (B, d); a reshape would write down how many classes there are."""
        return torch.stack([answers.narrow(0, i * batch, batch) for i in range(len(self.crops))]).mean(0)

    def _crop(self, full: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
        view = full[:, :, top : top + self.size, left : left + self.size]
        return view.flip(3) if mirrored else view


class Answers(NamedTuple):
    """What the graph gives, in the order of its outputs."""

    ids: Tensor  # (B, k) int64, best first; with fewer than k classes they end in -1
    probs: Tensor  # (B, k) float32
    known: Tensor  # (B, 1) float32: how sure it is that the photo shows one of its classes
    embedding: Tensor  # (B, 512) float32, of unit length


class DeployGraph(nn.Module):
    """Everything between a uint8 photo and the ranked classes.

    Args:
        weights: what each member counts, with the sum 1; None: alike.
    """

    weights: Tensor

    def __init__(self, members: Sequence[Trained], *, settings: Export, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if any(member.classes != members[0].classes for member in members):
            raise WeightsMismatch("networks of one graph must know the same classes; train them on one data version")
        self.keep, self.top_k = settings.keep, settings.top_k
        self.branches = nn.ModuleList(Branch(member, settings=settings) for member in members)
        parts = torch.tensor(weights or [1 / len(members)] * len(members))
        self.register_buffer("weights", parts.view(-1, 1, 1))

    def forward(self, image: Tensor) -> Answers:
        """(B, S, S, 3) uint8 photos to what is known of each."""
        pixels = image.permute(0, 3, 1, 2).to(next(self.parameters()).dtype) / 255
        answers = [branch(pixels) for branch in self.branches]
        total = (self.weights * torch.stack([self._kept(probabilities) for probabilities, _ in answers])).sum(0)
        probs, ids = total.topk(self.top_k)
        return Answers(ids.masked_fill(probs == 0, -1), probs, probs[:, :1].clone(), functional.normalize(answers[0][1]))

    def _kept(self, probabilities: Tensor) -> Tensor:
        """The best classes of one member, the others 0; a scatter keeps exactly `keep` of them even where they tie.

        Empty columns follow, so that there are enough to rank however few classes there are: no constant of the graph depends
        on their number, and a class can be added to the file (models.export.enrol).
        """
        columns = functional.pad(probabilities, (0, self.keep))
        best = columns.topk(self.keep)
        return torch.zeros_like(columns).scatter(1, best.indices, best.values)
