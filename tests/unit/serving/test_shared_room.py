"""Shared memory of a server: what it needs, and a container that has less."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving.errors import BadEnvironment
from serving.repository.accelerator import CPU
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from serving.server.shared_room import REGION, needed_bytes, require_shared_memory
from tests.graphs import write_graph

CORES = CPU.instances
SMALL = """
import sys
from pathlib import Path
from serving.errors import BadEnvironment
from serving.repository.repository import ModelRepository
from serving.server.shared_room import require_shared_memory
try:
    require_shared_memory(ModelRepository(Path(sys.argv[1])), passes_bytes=False)
except BadEnvironment as error:
    print(error)
"""


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Repository whose model has 32 instances."""
    made = ModelRepository(tmp_path / "repository")
    config = TritonConfig.from_onnx(write_graph(tmp_path / "model.onnx"), versions=(1,), instances=32)
    made.model.mkdir(parents=True)
    (made.model / "config.pbtxt").write_text(config.to_pbtxt())
    return made


def test_every_instance_has_a_region_with_room_for_its_largest_batch(repository: ModelRepository) -> None:
    config = TritonConfig.parse(repository.configuration())
    side = config.signature.inputs[0].dims[0]
    each = REGION + config.max_batch_size * side * side * 3
    assert needed_bytes(repository, passes_bytes=False) == 2 * 32 * each
    assert needed_bytes(repository, passes_bytes=True) == 2 * 32 * each + CORES * REGION


def test_a_repository_without_a_version_needs_the_decoders_alone(tmp_path: Path) -> None:
    assert needed_bytes(ModelRepository(tmp_path), passes_bytes=True) == CORES * REGION
    require_shared_memory(ModelRepository(tmp_path), passes_bytes=False)


def test_what_dockers_shared_memory_cannot_hold_is_refused(repository: ModelRepository) -> None:
    mounted = "mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 99"
    command = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'{mounted}; exec "$0" -c "$1" "$2"',
        sys.executable,
        SMALL,
        repository.root,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine permits no mounts")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/dev/shm: 67 MB are free, and the server's models need at least ")
    assert "--shm-size=1g" in done.stdout


def test_the_figure_is_told_with_the_way_out(repository: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.server.shared_room.REGION", 1 << 60)
    with pytest.raises(BadEnvironment, match=r"MB are free, and the server's models need at least \d+ MB there; give"):
        require_shared_memory(repository, passes_bytes=True)
