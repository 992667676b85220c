"""Performs runs on inputs that are on the device: in this process, or in several that share the card."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.networks.network import best_device
from noisy.photos import PhotoSet
from noisy.results import Result, Run
from noisy.training import Task, Trainer, on_device


@dataclass(frozen=True)
class Material:
    """A photo set, and the input of the networks: the photos themselves, or features (N, d)."""

    photos: PhotoSet
    train: NDArray[np.generic]
    test: NDArray[np.generic]


class Workshop:
    """The material on the device."""

    def __init__(self, material: Material) -> None:
        torch.set_num_threads(1)  # a run is measured on one CPU thread, and several runs share the cores
        torch.backends.cudnn.benchmark = True  # every batch has the same shape
        self.photos, self.device = material.photos, best_device()
        self.train, self.test = on_device(material.train, self.device), on_device(material.test, self.device)

    def perform(self, run: Run) -> Result:
        """Result of one training."""
        photos = self.photos
        given, label, test_label = (
            on_device(labels, self.device)
            for labels in (run.noise.given_labels(photos), photos.label, photos.test_label)
        )
        task = Task(train=self.train, given=given, label=label, test=self.test, test_label=test_label,
                    classes=photos.classes)  # fmt: skip
        outcome = Trainer(task, run.protocol, run.method, seed=run.seed).run()
        return Result.of(run, outcome, device=device_name(self.device), torch=torch.__version__)


def device_name(device: torch.device) -> str:
    """Name of the card, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def perform(runs: Sequence[Run], material: Material, *, parallel: int) -> Iterator[tuple[Run, Result]]:
    """Each run with its result, as they finish."""
    if parallel == 1 or len(runs) < 2:
        workshop = Workshop(material)
        yield from ((run, workshop.perform(run)) for run in runs)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(parallel, mp_context=context, initializer=_open, initargs=(material,)) as pool:
        started = {pool.submit(_perform, run): run for run in runs}
        try:
            for future in as_completed(started):
                yield started[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


_workshops: list[Workshop] = []  # the only workshop of a worker process


def _open(material: Material) -> None:
    _workshops.append(Workshop(material))


def _perform(run: Run) -> Result:
    return _workshops[0].perform(run)
