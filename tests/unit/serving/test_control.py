"""Control of a server: the questions that a candidate has to answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.errors import ModelNotReady
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint


class Asked(Endpoint):
    """Endpoint that answers up to `largest` photos, and remembers the batches."""

    def __init__(self, *, largest: int) -> None:
        super().__init__("127.0.0.1:1")
        self.largest, self.batches = largest, list[NDArray[np.uint8]]()

    def ask(self, images: NDArray[np.uint8], version: int) -> tuple[NDArray[Any], NDArray[Any]]:
        self.batches.append(images)
        if len(images) > self.largest:
            raise ModelNotReady("out of memory")
        return np.zeros((len(images), 5), np.int64), np.zeros((len(images), 5), np.float32)


@pytest.mark.parametrize(("joined", "sizes"), [(1, [1, 8]), (8, [1, 2, 4, 8]), (24, [1, 2, 4, 8, 16, 24])])
def test_a_candidate_is_asked_in_each_batch_that_its_version_will_compute(
    joined: int, sizes: list[int], staged: ModelRepository
) -> None:
    repository, endpoint = replace(staged, joined=joined), Asked(largest=64)
    endpoint._ask_in_batches(repository, 1)
    assert [len(batch) for batch in endpoint.batches] == sizes
    repository.configure((1,))
    assert sizes == TritonConfig.parse(repository.configuration()).batches, "the version's warm-up"
    golden = staged.golden(1).image
    assert all(np.array_equal(batch, np.resize(golden, batch.shape)) for batch in endpoint.batches)


def test_a_batch_that_the_server_cannot_compute_refuses_the_candidate(staged: ModelRepository) -> None:
    endpoint = Asked(largest=4)
    with pytest.raises(ModelNotReady, match="out of memory"):
        endpoint._ask_in_batches(staged, 1)
    assert [len(batch) for batch in endpoint.batches] == [1, 2, 4, 8]
