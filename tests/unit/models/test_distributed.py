"""Real workers on one machine, without a batch too many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.distributed import gather, part, rank, sum_gradients, world

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys, torch
from pathlib import Path
from models.distributed import agree, average_buffers, gather, part, rank, sum_gradients, total, workers, world

with workers():
    index = torch.tensor([7, 3, 3, 9, 0, 3, 5])
    value = torch.tensor([.5, 3., 1., .25, 4., 2., 8.])
    own = part(len(index))
    both = gather(index[own], value[own])
    rows = gather(index[own], torch.stack([index, value.long()], 1)[own])
    flags = gather(index[own], (value > 1)[own])
    none = gather(index[:0], value[:0])
    p, unused = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    x = torch.arange(6.).view(2, 3)[part(2)]  # the third of three workers has nothing
    if len(x):
        ((x @ p).sum() / 2).backward()
    sum_gradients([p, unused])
    statistics = torch.nn.BatchNorm1d(1)
    statistics.running_mean += rank()
    average_buffers(statistics)
    result = (both, rows, flags, none, p.grad, unused.grad, total(own.stop - own.start), agree(rank() == 0),
              float(statistics.running_mean) - (world() - 1) / 2)
    torch.save(result, Path(sys.argv[1]) / f"{world()}-{rank()}.pt")
"""


@pytest.mark.parametrize("count", [2, 3])
def test_what_is_gathered_and_summed_is_the_same_for_any_number_of_workers(tmp_path: Path, count: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    subprocess.run([*launch, program, tmp_path], check=True, timeout=120, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    for number in range(count):
        both, rows, flags, none, grad, unused, length, agreed, off = torch.load(tmp_path / f"{count}-{number}.pt")
        assert both[0].tolist() == [0, 3, 3, 3, 5, 7, 9]
        assert both[1].tolist() == [4, 1, 2, 3, 8, 0.5, 0.25]
        assert rows[1].tolist() == [[0, 4], [3, 1], [3, 2], [3, 3], [5, 8], [7, 0], [9, 0]]
        assert flags[1].tolist() == [True, False, True, True, True, False, False]
        assert len(none[0]) == len(none[1]) == 0
        assert grad.tolist() == [1.5, 2.5, 3.5], "mean of the two rows"
        assert unused is None
        assert length == 7
        assert agreed is True
        assert off == 0


def test_alone_everything_works_without_torchrun() -> None:
    assert (rank(), world(), part(5)) == (0, 1, slice(0, 5))
    index, value = gather(torch.tensor([2, 1, 2]), torch.tensor([5.0, 7.0, 4.0]))
    assert index.tolist() == [1, 2, 2]
    assert value.tolist() == [7, 4, 5]
    parameter = torch.nn.Parameter(torch.ones(2))
    sum_gradients([parameter])
    assert parameter.grad is None
