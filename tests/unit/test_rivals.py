"""Alternatives that the fused graph is benchmarked against give its answers, so that speeds can be compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from load import eager, ensemble, networks

from models.export.graph import DeployGraph


def small_graph() -> DeployGraph:
    return networks.graph(("test_resnet", "test_resnet"), crops=10, num_classes=30)


@pytest.mark.parametrize(
    ("network", "combine"),
    [(ensemble.OneNetwork, ensemble.Combine), (ensemble.TunedNetwork, ensemble.TunedCombine)],
)
def test_the_steps_of_the_ensemble_give_the_answers_of_the_graph(
    network: type[ensemble.OneNetwork], combine: type[ensemble.Combine]
) -> None:
    graph, photos = small_graph(), torch.from_numpy(networks.photos(3))
    with torch.inference_mode():
        views = ensemble.Prepare(graph)(photos)
        members = zip(views, graph.branches, strict=True)
        outputs = [part for view, branch in members for part in network(branch, keep=graph.keep)(view)]
        ids, probs = combine(graph)(*outputs)
        whole = graph(photos)
    assert torch.equal(ids, whole.ids)
    torch.testing.assert_close(probs, whole.probs)


@pytest.mark.parametrize("at_once", [True, False])
def test_ten_crops_in_python_give_the_answers_of_the_graph_except_for_rounding(at_once: bool) -> None:
    graph, photos = small_graph(), networks.photos(2)
    with torch.inference_mode():
        whole = graph(torch.from_numpy(photos))
        for number, photo in enumerate(photos):
            ids, probs = eager.answer(graph, photo, at_once=at_once)
            assert np.array_equal(ids[:1], whole.ids[number][:1])
            torch.testing.assert_close(probs, whole.probs[number], rtol=0.02, atol=0)
