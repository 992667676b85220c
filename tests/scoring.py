"""Scoring passes at 50,030 classes, in a process of their own: `python -m tests.scoring FEW MANY` prints the growth of each.

Passes: score, answers, embeddings, features, and the notes of a loss in training.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.losses import Samples, build_loss
from models.networks.inputs import extract
from models.networks.network import Head, Output
from models.networks.predict import answers, embeddings, score

CLASSES, WIDTH, BATCH = 50_030, 8, 64


class Endless:
    """Inputs whose photos are drawn as they are asked for, so that only the pass itself takes memory."""

    def __init__(self, num_batches: int) -> None:
        self.head, self.num_batches = Head(WIDTH, num_classes=CLASSES), num_batches

    def __len__(self) -> int:
        return BATCH * self.num_batches

    def evaluation(self, part: slice) -> Iterator[Tensor]:
        for number in range(self.num_batches):
            yield torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(number))

    @property
    def part(self) -> Any:
        """The head, except that embeddings need a large buffer."""
        return self

    def __call__(self, batch: Tensor) -> Output:
        output: Output = self.head(batch)
        return output

    def embedding(self, batch: Tensor) -> Tensor:
        return self.head.embedding(batch.repeat_interleave(64, 0))[::64]

    def in_order(self, batch_size: int, *, part: slice = slice(None)) -> Iterator[Tensor]:
        for _ in range(self.num_batches):
            yield torch.zeros(BATCH, 32, 32, 3, dtype=torch.uint8)

    def features(self, pixels: Tensor) -> Tensor:
        """Features whose computation needs a large buffer."""
        return (pixels.flatten(1)[:, :1] + torch.zeros(CLASSES))[:, :WIDTH].clone()


def note(inputs: Any) -> None:
    """Steps of a training whose loss keeps state per photo."""
    loss = build_loss("marvel", num_classes=CLASSES)
    ids, target = np.array([f"{i:06d}" for i in range(len(inputs))], object), np.zeros(len(inputs), np.int64)
    loss.begin(Samples(id=ids, target=target, classes=[f"{i:06d}" for i in range(CLASSES)]))
    loss.start_epoch(0)
    for number, batch in enumerate(inputs.evaluation(slice(None))):
        index = torch.arange(BATCH) + number * BATCH
        logits, embedding = inputs.part(batch)
        loss(logits, torch.from_numpy(target)[index], index, embedding).sum().backward()


def passes(inputs: Any) -> dict[str, Callable[[], object]]:
    """Every pass over these inputs."""
    target = np.zeros(len(inputs), np.int64)
    network: Any = SimpleNamespace(eval=inputs.head.eval, head=inputs.head, mean=torch.zeros(1), backbone=inputs.head,
                                   features=inputs.features)  # fmt: skip
    return {
        "score": lambda: score(network, inputs, ids=np.full(len(inputs), "a", object), target=target),
        "answers": lambda: answers(network, inputs, target=target),
        "embeddings": lambda: embeddings(network, inputs),
        "features": lambda: extract(inputs, network, size=32),
        "notes": lambda: note(inputs),
    }


def growth_mb(name: str, few: int, many: int) -> int:
    """Growth of the peak from a pass over a few batches to the same pass over many."""
    torch.set_num_threads(1)
    peaks = []
    for number in (few, many):
        passes(Endless(number))[name]()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    return peaks[1] - peaks[0]


def main() -> None:
    """Prints the growth of every pass, each in a fork of this process, which has imported everything."""
    few, many = (int(number) for number in sys.argv[1:3])
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        names = list(passes(Endless(few)))
        grown = pool.starmap(growth_mb, [(name, few, many) for name in names], chunksize=1)
    print(json.dumps(dict(zip(names, grown, strict=True))))


if __name__ == "__main__":
    main()
