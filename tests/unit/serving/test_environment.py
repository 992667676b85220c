from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from durable import sha256
from serving.errors import BadEnvironment
from serving.server.environment import MARKER, ensure_environment, inspect

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
FIT = {
    "nvidia_pytriton": "0.7.0",
    "onnxruntime_gpu": "1.31.1",
    "numpy": "1.26.4",
    "pillow": "13.0.0",
    "simplejpeg": "1.9.0",
}


def environment(path: Path, packages: dict[str, str], *, stub: str = PYTHON) -> Path:
    """Makes an environment with a real interpreter whose site-packages list `packages` as installed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    site = path / "lib" / f"python{PYTHON}" / "site-packages"
    for name, version in packages.items():
        folder = site / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    stubs = site / "pytriton" / "tritonserver" / "python_backend_stubs" / stub
    stubs.mkdir(parents=True)
    (stubs / "triton_python_backend_stub").write_bytes(b"")
    return path


def test_a_fit_environment_gives_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    found = inspect(environment(tmp_path / "env", FIT))
    variables = found.variables()
    assert found.python == PYTHON
    assert variables["PATH"].startswith(f"{tmp_path}/env/bin:")
    assert variables["LD_LIBRARY_PATH"] == f"{found.site}/nvidia_pytriton.libs:{found.libdir}"
    assert "PYTHONPATH" not in variables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"numpy": "2.4.6"},
            r"numpy 2\.4\.6, the server needs numpy<2",
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 has no numpy 1; DLPack is used"),
        ),
        ({"numpy": ""}, "lacks numpy"),
        ({"nvidia_pytriton": ""}, "lacks nvidia-pytriton"),
        ({"onnxruntime_gpu": ""}, "lacks onnxruntime-gpu"),
        ({"pillow": ""}, "lacks pillow"),
        ({"simplejpeg": ""}, "lacks simplejpeg"),
    ],
)
def test_an_unfit_environment_is_refused(tmp_path: Path, change: dict[str, str], message: str) -> None:
    packages = {name: version for name, version in {**FIT, **change}.items() if version}
    with pytest.raises(BadEnvironment, match=f"{message}.*make setup"):
        inspect(environment(tmp_path / "env", packages))


def test_a_python_without_stub_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadEnvironment, match=rf"Python {PYTHON}, the server has stubs for 3\.99"):
        inspect(environment(tmp_path / "env", FIT, stub="3.99"))


def test_no_environment_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadEnvironment, match="does not run"):
        inspect(tmp_path / "absent")


def test_a_complete_environment_is_left_alone(tmp_path: Path) -> None:
    path, requirements = environment(tmp_path / "env", FIT), tmp_path / "requirements.txt"
    requirements.write_text("cannot-be-installed==0\n")
    (path / MARKER).write_text(sha256(requirements) + "\n")
    assert ensure_environment(path, requirements=requirements) == inspect(path)


@pytest.mark.faults
@pytest.mark.parametrize("broken", [b"0" * 64, b"", b"\xff" * 64], ids=["another", "empty", "no text"])
def test_a_half_made_environment_is_made_again(tmp_path: Path, broken: bytes) -> None:
    path, requirements = environment(tmp_path / "env", FIT), tmp_path / "requirements.txt"
    requirements.write_text("--no-index\ncannot-be-installed==0\n")
    (path / MARKER).write_bytes(broken)
    with pytest.raises(BadEnvironment, match="cannot-be-installed"):
        ensure_environment(path, requirements=requirements)
    assert not (path / "lib" / f"python{PYTHON}" / "site-packages" / "pytriton").exists()
    assert not (path / MARKER).exists()


def test_a_folder_with_other_files_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("cannot-be-installed==0\n")
    with pytest.raises(BadEnvironment, match="holds files and is not a Python environment"):
        ensure_environment(tmp_path, requirements=tmp_path / "requirements.txt")
    assert (tmp_path / "requirements.txt").exists()
