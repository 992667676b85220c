"""How many trainings run side by side, and where things are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows import settings
from flows.errors import InputError
from flows.settings import Settings, prepare_prefect
from serving.access import Access
from serving.repository.accelerator import CPU, Accelerator


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CLEANSHELF_")]:
        monkeypatch.delenv(name)


def test_one_training_per_core_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_num_gpus", lambda: 0)
    assert Settings().num_parallel() == os.cpu_count()


def test_one_training_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_num_gpus", lambda: 3)
    assert Settings().num_parallel() == 3
    assert Settings().num_parallel(workers=settings.num_workers(0)) == 1, "or all of them for one training"
    assert settings.num_workers(2) == 2


def test_the_environment_has_the_last_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(settings, "_num_gpus", lambda: 3)
    monkeypatch.setenv("CLEANSHELF_PARALLEL", "5")
    monkeypatch.setenv("CLEANSHELF_TRITON_ENV", str(tmp_path))
    assert Settings().num_parallel() == 5
    assert Settings().triton_env == tmp_path


def test_prefect_lives_in_the_workspace_and_tells_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare_prefect(tmp_path)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "prefect")
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_server_elsewhere_is_named_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().remote() is None
    for name, value in {"URL": "grpcs://shelf.example:443", "TOKEN": "ask", "CONTROL_TOKEN": "load"}.items():
        monkeypatch.setenv(f"CLEANSHELF_TRITON_{name}", value)
    assert Settings().remote() == Access("grpcs://shelf.example:443", "ask", "load")


def test_engines_of_tensorrt_belong_to_one_gpu_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().accelerator() == CPU
    monkeypatch.setenv("CLEANSHELF_TRITON_ACCELERATOR", "cuda")
    monkeypatch.setenv("CLEANSHELF_TRITON_GPU_MEMORY_MB", "2000")
    assert Settings().accelerator() == Accelerator("cuda", 2_000_000_000)
    monkeypatch.setenv("CLEANSHELF_TRITON_ACCELERATOR", "tensorrt-fp16")
    monkeypatch.setenv("CLEANSHELF_TRITON_GPU", "NVIDIA L4, 550.54.15")
    assert Settings().accelerator().engine_cache == "/var/cache/cleanshelf/NVIDIA-L4-550.54.15"
    monkeypatch.delenv("CLEANSHELF_TRITON_GPU")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="set CLEANSHELF_TRITON_GPU"):
        Settings().accelerator()
