"""A graph above protobuf's limit of 2 GB: written, stamped, made a model version, served, and found damaged."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from durable import sha256
from models.export.graph import DeployGraph
from models.export.onnx_file import write_onnx
from models.export.patch import external_files, read_metadata, stamp
from models.networks.network import EMBEDDING, build_network
from models.recipe.config import Export, Member
from models.training.train import Trained
from serving.errors import CorruptVersion
from serving.repository.repository import ModelRepository
from serving.server.control import Endpoint
from serving.server.server import LocalServer
from serving.wire import connect, infer
from tests.graphs import golden_images

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.timeout(1200)]
MEMBERS, CLASSES, SIDE = 3, 355_000, 32  # classifiers of 0.73 GB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of model.onnx, whose weights are in a file beside it."""
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    labels = [str(number) for number in range(CLASSES)]
    members = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        member = Member(backbone="test_resnet", size=SIDE)
        members.append(Trained(build_network(member, num_classes=CLASSES).eval(), member, labels, 0.0))
    graph = DeployGraph(members, settings=Export(input_size=SIDE, crops=1))
    del members
    write_onnx(graph, path, input_size=SIDE, metadata={"data_version": "large"})
    del graph
    gc.collect()
    return path


def test_the_weights_lie_beside_the_graph(large: Path) -> None:
    assert {path.name for path in large.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert external_files(large) == ["model.onnx.data"]
    assert large.stat().st_size < 1e8
    weights = large.with_name("model.onnx.data")
    assert weights.stat().st_size > max(2**31, MEMBERS * CLASSES * EMBEDDING * 4)
    before = weights.stat().st_mtime_ns
    stamp(large, {"metrics": "{}"})
    metadata = read_metadata(large)
    assert metadata["weights_sha256"] == sha256(weights)
    assert (metadata["metrics"], metadata["data_version"]) == ("{}", "large")
    assert weights.stat().st_mtime_ns == before


def test_a_model_version_of_it_is_served(large: Path, tmp_path: Path, local_server: Callable[..., LocalServer]) -> None:
    repository = ModelRepository(tmp_path / "repository", joined=2, instances=1)
    labels = [str(number) for number in range(CLASSES)]
    version = repository.write(large, version=1, labels=labels, lineage={}, golden=golden_images(2, size=SIDE))
    assert set(repository.lineage(1)["files"]) == {"model.onnx", "model.onnx.data", "labels.txt", "golden.npz"}
    repository.verify(1)
    repository.configure([1])
    server = local_server(repository.root, tmp_path / "state")
    try:
        access = server.start().access
        with Endpoint(access) as endpoint:
            endpoint.golden_check(repository, 1)
        golden = repository.golden(1)
        with connect(access) as client:
            found = infer(
                client, golden.image, url=access.url, model="products", outputs=["ids", "probs"], timeout_s=60
            ).arrays
        assert np.array_equal(found["ids"], golden.ids)
        assert len(np.unique(golden.ids)) > 5
    finally:
        server.stop()
    with (version / "model.onnx.data").open("r+b") as file:  # one bit of two gigabytes
        file.seek(2**31)
        byte = file.read(1)[0]
        file.seek(2**31)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptVersion, match=r"model\.onnx\.data"):
        repository.verify(1)
