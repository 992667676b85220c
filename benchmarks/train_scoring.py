"""Claim: a scoring pass takes as long as the bare forward, and its memory does not depend on the number of photos.

MobileNetV2 at 96 px with 50,030 classes: `score` over the same batches that a bare forward in inference mode gets, process
time, interleaved. Then the head alone scores 200,000 photos at 50,030 classes, of which the memory is watched. The allocator
is set as in trainings.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from figure import figure, header
from pace import environment
from torch import Tensor

from models.networks.inputs import EVAL_BATCH, FEATURES_BATCH, Features, inference
from models.networks.network import Head, Network, Output, build_network
from models.networks.predict import score
from models.recipe.config import Member

BACKBONE, SIZE, CLASSES = "mobilenetv2_100", 96, 50_030
BATCHES, ROUNDS = 4, 3
FEW, MANY = 20_000, 200_000
WIDTH = 8  # of the features whose scores fill memory


class Synthetic:
    """Batches that are in memory before a pass starts."""

    def __init__(self, network: Network) -> None:
        draw = torch.Generator().manual_seed(0)
        size = EVAL_BATCH["cpu"]
        self.part, self.batches = network, [
            torch.rand(size, SIZE, SIZE, 3, generator=draw).permute(0, 3, 1, 2) for _ in range(BATCHES)
        ]  # fmt: skip

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        """All batches."""
        return iter(self.batches)

    def forward(self, batch: Tensor) -> Output:
        """Logits and embeddings of a batch."""
        output: Output = self.part(batch)
        return output


class Narrow(Head):
    """A head whose classifier is cheap, so that its logits are most of the work."""

    def __init__(self) -> None:
        super().__init__(WIDTH, num_classes=CLASSES)
        self.classifier = torch.nn.Linear(WIDTH, CLASSES, bias=False)

    def embedding(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features


def main() -> None:
    """Measures speed and memory."""
    header("a scoring pass takes as long as the bare forward, and its memory does not depend on the number of photos")
    torch.set_num_threads(1)
    memory()  # first, because it compares peaks of this process
    speed()


def speed() -> None:
    """Figure of the speed of `score` over that of the bare forward."""
    member = Member(backbone=BACKBONE, size=SIZE)
    network = build_network(member, num_classes=CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    inputs: Any = Synthetic(network.eval())
    number = BATCHES * EVAL_BATCH["cpu"]
    ids, target = np.full(number, "a", object), np.arange(number)

    def bare() -> None:
        with inference(torch.device("cpu")):
            for batch in inputs.batches:
                network(batch)

    seconds: dict[str, list[float]] = {"bare": [], "score": []}
    for turn in range(ROUNDS + 1):
        for name, action in (("bare", bare), ("score", lambda: score(network, inputs, ids=ids, target=target))):
            taken = process_seconds(action)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    ratio = min(seconds["bare"]) / min(seconds["score"])
    figure(f"scoring pass over the bare forward, {BACKBONE} at {SIZE} px, {CLASSES:,} classes, photos/s", round(ratio, 3),
           target=">= 0.95", met=ratio >= 0.95, baseline=round(number / min(seconds["bare"])))  # fmt: skip


def process_seconds(action: Callable[[], object]) -> float:
    """Process time of an action."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def memory() -> None:
    """Figure of the growth of this process from a pass over FEW photos to one over MANY."""
    head = Narrow().eval()
    network: Any = torch.nn.Module()
    network.head, network.mean = head, torch.zeros(1)
    peaks = []
    for number in (FEW, MANY):
        features = torch.zeros(1, number, WIDTH).uniform_(generator=torch.Generator().manual_seed(0))
        held = features.nbytes
        scores = score(
            network, Features(features, head), ids=np.full(number, "a", object), target=np.zeros(number, np.int64)
        )
        held += scores.top.nbytes + scores.probs.nbytes
        peaks.append((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, held / 1e6))
    (before, few), (after, many) = peaks
    grown = after - before
    logits = FEATURES_BATCH["cpu"] * CLASSES * 4 / 1e6
    print(f"inputs and results take {few:.0f} and {many:.0f} MB, and the logits of a batch {logits:.0f} MB")
    figure(f"growth of a scoring pass from {FEW:,} to {MANY:,} photos at {CLASSES:,} classes, MB", round(grown, 1),
           target="<= 100", met=grown <= 100, baseline=round(before, 1))  # fmt: skip


if __name__ == "__main__":
    environment.enter()
    main()
