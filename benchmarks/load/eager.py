"""The same members in torch, photo by photo, with ten crops cut in Python, as in a notebook."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.export.graph import Branch, DeployGraph


def images_per_second(made: DeployGraph, images: NDArray[np.uint8], *, seconds: float, at_once: bool) -> float:
    """Rate for photos (N, S, S, 3), one after the other, on all cores; the crops of one photo `at_once`, or each alone."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    count, began = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() < began + seconds:
            answer(made, images[count % len(images)], at_once=at_once)
            count += 1
    return count / (time.perf_counter() - began)


def answer(made: DeployGraph, image: NDArray[np.uint8], *, at_once: bool = True) -> tuple[Tensor, Tensor]:
    """The best classes (k,) and their probabilities (k,)."""
    total = torch.zeros(made.num_classes)
    for weight, branch in zip(made.weights.flatten(), made.branches, strict=True):
        views = crops(branch, image)
        logits = [branch.classifier(branch.sphere(branch.embed(branch.backbone(part))))
                  for part in views.split(len(views) if at_once else 1)]  # fmt: skip
        best = torch.cat(logits).softmax(1).mean(0).topk(made.keep)
        total[best.indices] += weight * best.values
    found = total.topk(made.top_k)
    return found.indices, found.values


def crops(branch: Branch, image: NDArray[np.uint8]) -> Tensor:
    """(crops, 3, size, size) normalised, cut with Pillow and numpy."""
    full = branch.resize.target
    photo = np.asarray(Image.fromarray(image).resize((full, full), Image.Resampling.BILINEAR))
    views = []
    for top, left, mirrored in branch.crops:
        view = photo[top : top + branch.size, left : left + branch.size]
        views.append(view[:, ::-1] if mirrored else view)
    pixels = torch.from_numpy(np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))).float()
    return branch.normalised(pixels)
