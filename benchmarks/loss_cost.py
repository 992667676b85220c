"""Claim: a robust loss costs less than cross-entropy, in time and in memory, at any number of classes.

For every stateless loss and C in 1,000, 10,000 and 50,030: forward and backward of 256 rows, in time and in peak memory beyond
the logits, as ratios to F.cross_entropy in the same run (one CPU thread; on a GPU also in bfloat16). Then classifier and loss
in pieces, 1,024 rows of 512 numbers at C = 50,030. `--names` and `--classes` restrict the run. The process keeps its memory as
trainings do (KEEP_MEMORY of flows.run.launch); otherwise F.cross_entropy would mostly wait for new pages.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from figure import figure, header
from torch import Tensor
from torch.nn import functional

from flows.run.launch import KEEP_MEMORY
from models.losses import LOSSES, Loss, build_loss
from models.losses.chunked import chunked_loss
from models.losses.softmax import SumLog

BATCH = 256
CLASSES = (1_000, 10_000, 50_030)
REPEATS = {1_000: 60, 10_000: 15, 50_030: 7}
HELD = "cpu float32, C = 50,030"  # where the targets hold
TARGETS: dict[
    str, tuple[float, float | None]
] = {  # upper bounds: share of cross-entropy's time, number of buffers of N x C
    "p_y alone": (1.0, 1.2),
    "NCE and NCE + X": (0.9, 1.2),
    "sparse regularisation": (3.0, 3.2),
    "bi-tempered": (12.0, None),
}

Step = Callable[[Tensor], Tensor]


@dataclass
class Cost:
    """Median seconds and peak bytes of one forward and backward."""

    seconds: float
    peak_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", nargs="*", default=names(), help="losses to measure")
    parser.add_argument("--classes", nargs="*", type=int, default=CLASSES)
    args = parser.parse_args(arguments)
    keep_memory()
    torch.set_num_threads(1)
    header("robust losses cost less than F.cross_entropy in time and memory, up to 50,030 classes")
    devices = [("cpu", torch.float32)]
    if torch.cuda.is_available():
        devices += [("cuda", torch.float32), ("cuda", torch.bfloat16)]
    for device, dtype in devices:
        for num_classes in args.classes:
            compare(args.names, num_classes, device=device, dtype=dtype)
    if not args.classes or max(args.classes) == max(CLASSES):
        chunked()


def keep_memory() -> None:
    """Starts this program again with the memory settings of trainings, which libc reads when a process starts."""
    if any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)


def names() -> list[str]:
    """Names of the losses without state."""
    return [name for name in LOSSES.components if not _needs_more(name)]


def _needs_more(name: str) -> bool:
    loss = build_loss(name, num_classes=10)
    return loss.needs_index or loss.needs_embedding


def compare(chosen: Sequence[str], num_classes: int, *, device: str, dtype: torch.dtype) -> None:
    """Measures every loss beside cross-entropy; rounds are interleaved, so that a slow moment hits all of them equally."""
    draw = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(BATCH, num_classes, generator=draw)).to(device, dtype)
    target = torch.randint(num_classes, (BATCH,), generator=draw).to(device)
    steps: dict[str, Step] = {"F.cross_entropy": lambda z: functional.cross_entropy(z, target, reduction="none")}
    for name in chosen:
        loss = build_loss(name, num_classes=num_classes)
        steps[name] = partial(_apply, loss, target)
    costs = measure(steps, logits, repeats=REPEATS.get(num_classes, 7))
    report(
        costs, size=BATCH * num_classes * 4, where=f"{device} {str(dtype).removeprefix('torch.')}, C = {num_classes:,}"
    )


def _apply(loss: Loss, target: Tensor, logits: Tensor) -> Tensor:
    values: Tensor = loss(logits, target)
    return values


def report(costs: dict[str, Cost], *, size: int, where: str) -> None:
    """Prints one line per loss, then one figure for the most expensive loss of each family."""
    reference = costs["F.cross_entropy"]
    print(f"\n| {where} | ms | time / F.cross_entropy | buffers of N x C |\n|---|--:|--:|--:|")
    dearest: dict[str, tuple[float, float]] = {}
    for name, cost in costs.items():
        ratio, buffers = cost.seconds / reference.seconds, cost.peak_bytes / size
        print(f"| `{name}` | {1e3 * cost.seconds:.2f} | {ratio:.2f} | {buffers:.1f} |")
        if cost is not reference:
            most = dearest.get(family(name), (0.0, 0.0))
            dearest[family(name)] = (max(most[0], ratio), max(most[1], buffers))
    print()
    for kind, (ratio, buffers) in dearest.items():
        bounds = TARGETS.get(kind, (None, None)) if where == HELD else (None, None)
        _figure(f"{kind}: time / cross-entropy, {where}", ratio, bounds[0], baseline=1.0)
        held = reference.peak_bytes / size
        _figure(f"{kind}: buffers of N x C, {where}", buffers, bounds[1], baseline=round(held, 2))


def family(name: str) -> str:
    """Family whose target a loss has to meet; the others have none."""
    loss = build_loss(name, num_classes=10)
    if name.endswith("+sr"):
        return "sparse regularisation"
    if name == "bi_tempered":
        return "bi-tempered"
    if not loss.terms and name != "eps_ce+mae":
        return "p_y alone"
    return "NCE and NCE + X" if set(loss.terms) == {SumLog()} else "other sums over classes"


def measure(steps: dict[str, Step], logits: Tensor, *, repeats: int) -> dict[str, Cost]:
    """Median process time of `repeats` interleaved rounds, and peak memory of one more."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            taken = once(step, logits)
            if turn:  # the first round warms up
                seconds[name].append(taken)
    return {name: Cost(statistics.median(seconds[name]), peak(step, logits)) for name, step in steps.items()}


def once(step: Step, logits: Tensor) -> float:
    """Seconds of one forward and backward."""
    leaf = logits.detach().clone().requires_grad_()
    if logits.is_cuda:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step(leaf).mean().backward()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3
    begun = time.process_time()
    step(leaf).mean().backward()
    return time.process_time() - begun


def peak(step: Step, logits: Tensor) -> int:
    """Most bytes held at once beyond the logits, the gradient included."""
    leaf = logits.detach().clone().requires_grad_()
    return peak_of(lambda: step(leaf).mean().backward(), cuda=logits.is_cuda)


def peak_of(action: Callable[[], object], *, cuda: bool = False) -> int:
    """Most bytes held at once by what `action` allocates; on the CPU counted from torch's own allocator."""
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        action()
    held = most = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def chunked(batch: int = 1_024, num_classes: int = 50_030, width: int = 512, rows: int = 128) -> None:
    """Figures of classifier and loss in pieces of rows, beside the usual way."""
    draw = torch.Generator().manual_seed(0)
    weight = (0.05 * torch.randn(num_classes, width, generator=draw)).requires_grad_()
    embedding = torch.randn(batch, width, generator=draw).requires_grad_()
    target = torch.randint(num_classes, (batch,), generator=draw)
    loss = build_loss("agce", num_classes=num_classes)

    def whole() -> None:
        loss(embedding @ weight.T, target).mean().backward()

    def pieces() -> None:
        chunked_loss(loss, weight, embedding, target, rows=rows).mean().backward()

    found = {}
    own = 4 * (weight.numel() + embedding.numel())  # the gradients themselves
    for name, step in (("whole", whole), ("pieces", pieces)):
        weight.grad = embedding.grad = None
        bytes_held = peak_of(step) - own
        begun = time.process_time()
        step()
        found[name] = Cost(time.process_time() - begun, bytes_held)
    where = f"{batch:,} x {num_classes:,}, {width}-d, cpu"
    _figure(f"classifier and agce in pieces of {rows} rows, MB over parameters and gradients, {where}",
            found["pieces"].peak_bytes / 1e6, 150, baseline=round(found["whole"].peak_bytes / 1e6, 1))  # fmt: skip
    _figure(f"classifier and agce in pieces of {rows} rows, time / whole, {where}",
            found["pieces"].seconds / found["whole"].seconds, None, baseline=1.0)  # fmt: skip


def _figure(name: str, value: float, target: float | None, *, baseline: float) -> None:
    bound = "none" if target is None else f"<= {target}"
    figure(name, round(value, 3), target=bound, met=target is None or value <= target, baseline=baseline)


if __name__ == "__main__":
    main()
