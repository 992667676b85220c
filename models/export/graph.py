"""The graph that is served: uint8 photos in; ranked classes, their probabilities and an embedding out.

photo (B, S, S, 3) uint8
  per member: resize to enlarge x its size -> crops -> normalise -> backbone -> embedding -> tau-normalised classifier, divided by
              the temperature -> softmax -> mean over crops -> ten best classes kept
  weighted mean over members -> k best: ids (B, k) int64, probs (B, k) float32
  a score of logits and embeddings (models.export.unknown) -> known (B, 1) float32: is it of the assortment?
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
from models.networks.network import Head
from models.recipe.config import Export
from models.training.classifiers import tau_normalise
from models.training.train import Trained


def in_use(networks: Sequence[Path], ensemble: Path) -> tuple[list[Path], list[float]]:
    """Files of the networks that count, and how much each does, by the weights in a JSON file."""
    weights = json.loads(ensemble.read_text(encoding="utf-8"))["weights"]
    used = [(path, weight) for path, weight in zip(networks, weights, strict=True) if weight]
    return [path for path, _ in used], [weight for _, weight in used]


def fold_head(head: Head, *, tau: float, temperature: float = 1.0) -> tuple[nn.Linear, nn.Linear]:
    """Embedding with its neck folded in, and the tau-normalised classifier over its temperature; exact up to float32 rounding.

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
    classifier.weight.data = tau_normalise(head.classifier.weight.detach(), tau) / temperature
    if classifier.bias is not None:
        classifier.bias.data = classifier.bias.data / temperature
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

    def __init__(self, trained: Trained, *, settings: Export, temperature: float = 1.0) -> None:
        super().__init__()
        size = trained.member.size
        full = size + 2 * round(size * (settings.enlarge[0] - 1) / 2) if settings.crops > 1 else size  # with a centre
        self.size, self.crops = size, crop_boxes(full, size, settings.crops)
        self.is_resized = full != settings.input_size  # else a product with a unit matrix, a tenth of a small network
        self.register_buffer("resize", resize_matrix(settings.input_size, full))
        self.register_buffer("mean", trained.network.mean)
        self.register_buffer("std", trained.network.std)
        self.backbone = trained.network.backbone
        self.embed, self.classifier = fold_head(trained.network.head, tau=trained.tau, temperature=temperature)
        self.sphere = trained.network.head.sphere

    def forward(self, pixels: Tensor) -> MemberOutput:
        """(B, 3, S, S) in [0, 1] to logits and embeddings of each crop."""
        full = self.resize @ pixels @ self.resize.T if self.is_resized else pixels
        views = torch.cat([self._crop(full, *box) for box in self.crops])
        embedding = self.sphere(self.embed(self.backbone((views - self.mean) / self.std)))
        n = len(self.crops)
        return MemberOutput(self.classifier(embedding).unflatten(0, (n, -1)), embedding.unflatten(0, (n, -1)))

    def _crop(self, full: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
        view = full[:, :, top : top + self.size, left : left + self.size]
        return view.flip(3) if mirrored else view


class GraphOutput(NamedTuple):
    """What the graph gives, in the order of its outputs."""

    ids: Tensor  # (B, k) int64, best first; with fewer than k classes they end in -1; all -1 where rejected, if asked for
    probs: Tensor  # (B, k) float32
    known: Tensor  # (B, 1) float32: how sure it is that the photo shows one of its classes; accepted from 0.5 on
    embedding: Tensor  # (B, 512) float32, of unit length


class DeployGraph(nn.Module):
    """Everything between a uint8 photo and the ranked classes. Beside the classifiers only the reshape of their logits by crops
    says how many classes there are.

    Args:
        weights: what each member counts, with the sum 1; None: alike.
    """

    weights: Tensor

    def __init__(
        self, members: Sequence[Trained], *, settings: Export, weights: Sequence[float] | None = None,
        calibration: Calibration = UNCALIBRATED,
    ) -> None:  # fmt: skip
        super().__init__()
        if any(member.classes != members[0].classes for member in members):
            raise WeightsMismatch("networks of one graph must know the same classes; train them on one data version")
        self.num_classes = len(members[0].classes)
        self.keep, self.top_k = settings.keep, settings.top_k
        self.reject = settings.reject
        self.branches = nn.ModuleList(
            Branch(member, settings=settings, temperature=calibration.of(number))
            for number, member in enumerate(members)
        )
        parts = torch.tensor(weights or [1 / len(members)] * len(members))
        self.register_buffer("weights", parts.view(-1, 1, 1))
        self.known = KnownScore(calibration)

    def forward(self, image: Tensor) -> GraphOutput:
        """(B, S, S, 3) uint8 photos to what is known of each."""
        outputs = self.output(image)
        mean = self.mean(outputs)
        known = self.known(outputs, mean, self.weights)
        probs, ids = functional.pad(mean, (0, self.top_k), value=-1.0).topk(self.top_k)
        ids = ids.where(probs >= 0, -1)
        ids = ids.where(known >= ACCEPTED, PADDING) if self.reject else ids
        return GraphOutput(ids, probs.clamp_min(0), known, functional.normalize(outputs[0].embedding.mean(0)))

    def output(self, image: Tensor) -> list[MemberOutput]:
        """What each member sees in (B, S, S, 3) uint8 photos."""
        pixels = image.permute(0, 3, 1, 2).to(next(self.parameters()).dtype) / 255
        return [branch(pixels) for branch in self.branches]

    def mean(self, outputs: Sequence[MemberOutput]) -> Tensor:
        """(B, C) weighted mean over the members of their best classes' probabilities, each the mean over its crops."""
        return (self.weights * torch.stack([self._kept(output.logits.softmax(2).mean(0)) for output in outputs])).sum(0)

    def _kept(self, probabilities: Tensor) -> Tensor:
        """The best classes of one member, the others 0; a scatter keeps exactly `keep` of them even where they tie."""
        columns = functional.pad(probabilities, (0, self.keep))  # enough to rank, however few classes there are
        best = columns.topk(self.keep)
        return (columns * 0).scatter(1, best.indices, best.values)[:, : -self.keep]  # zeros_like would fix their number
