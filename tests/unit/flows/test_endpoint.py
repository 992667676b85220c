"""The server and the accelerator that the settings name."""

from __future__ import annotations

import os

import pytest

from flows.endpoint.server import remote
from flows.errors import InputError
from flows.registry.repository import accelerator
from flows.settings import Settings
from serving.access import Access
from serving.repository.accelerator import CPU, Accelerator


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CLEANSHELF_")]:
        monkeypatch.delenv(name)


def test_a_server_elsewhere_is_named_by_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote(Settings()) is None
    for name, value in {"URL": "grpcs://shelf.example:443", "TOKEN": "ask", "CONTROL_TOKEN": "load"}.items():
        monkeypatch.setenv(f"CLEANSHELF_TRITON_{name}", value)
    assert remote(Settings()) == Access("grpcs://shelf.example:443", "ask", "load")


def test_engines_of_tensorrt_belong_to_one_gpu_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator(Settings()) == CPU
    monkeypatch.setenv("CLEANSHELF_TRITON_ACCELERATOR", "cuda")
    monkeypatch.setenv("CLEANSHELF_TRITON_GPU_MEMORY_MB", "2000")
    assert accelerator(Settings()) == Accelerator("cuda", 2_000_000_000)
    monkeypatch.setenv("CLEANSHELF_TRITON_ACCELERATOR", "tensorrt-fp16")
    monkeypatch.setenv("CLEANSHELF_TRITON_GPU", "NVIDIA L4, 550.54.15")
    assert accelerator(Settings()).engine_cache == "/var/cache/cleanshelf/NVIDIA-L4-550.54.15"
    monkeypatch.delenv("CLEANSHELF_TRITON_GPU")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="set CLEANSHELF_TRITON_GPU"):
        accelerator(Settings())
