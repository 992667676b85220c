"""A single worker; several workers are tested with real processes in tests/integration/test_workers.py."""

from __future__ import annotations

import torch

from models.distributed import any_of, average_buffers, gather, part, rank, summed, total, world


def test_alone_everything_works_without_torchrun() -> None:
    assert (rank(), world(), part(5)) == (0, 1, slice(0, 5))
    index, value = gather(torch.tensor([2, 1, 2]), torch.tensor([5.0, 7.0, 4.0]))
    assert index.tolist() == [1, 2, 2]
    assert value.tolist() == [7, 4, 5]
    assert summed(torch.ones(2)).tolist() == [1, 1]
    assert total(2.5) == 2.5
    assert any_of(True, False) == (True, False)
    average_buffers(torch.nn.BatchNorm1d(1))
