"""Environment of our processes: their packages are ours, no proxy is asked for this machine, and no library reports anything."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract.environment import (
    ADDRESSES,
    NO_PROXY,
    PRIVATE,
    PROXIES,
    direct,
    is_direct,
    is_here,
    process_variables,
)
from tests.surroundings import own_packages

ROOT = Path(__file__).resolve().parents[2]
PROXY = "http://proxy.example:3128"
# As pip writes the console script.
COMMAND = "import re\nimport sys\nfrom flows import main\nif __name__ == '__main__':\n    sys.exit(main())\n"


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies, to which a test adds variables."""
    for name in (*PROXIES, *NO_PROXY, "grpc_proxy", "PREFECT_API_URL", "CLEANSHELF_TRITON_URL"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_what_a_user_tells_python_does_not_reach_our_processes(surroundings: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT"):
        surroundings.setenv(name, "theirs")
    surroundings.setenv("PYTHONDONTWRITEBYTECODE", "1")
    surroundings.setenv("PYTHONPYTHON", "a later Python may have it")
    found = {name: value for name, value in process_variables(PYTHONUNBUFFERED="1").items() if "PYTHON" in name}
    assert found == {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
    }
    assert process_variables().items() >= PRIVATE.items()
    assert process_variables()["PATH"] == os.environ["PATH"]


def test_without_a_proxy_nothing_is_said_about_proxies(surroundings: pytest.MonkeyPatch) -> None:
    assert direct(os.environ) == {}
    surroundings.setenv("NO_PROXY", "[::1],corp.example")
    entries = direct(os.environ)["no_proxy"].split(",")
    assert entries[:4] == ["::1", "corp.example", "localhost", "127.0.0.1"], "httpx would refuse the brackets"
    assert not is_direct("192.0.2.1")
    assert all(is_direct(host) for host in (*ADDRESSES, "[::1]")), "a proxy may be set later"


@pytest.mark.parametrize("name", [*PROXIES, "grpc_proxy"])
def test_no_proxy_is_asked_for_this_machine(surroundings: pytest.MonkeyPatch, name: str) -> None:
    surroundings.setenv(name, PROXY)
    found = direct(os.environ)
    assert found["no_proxy"] == found["NO_PROXY"]
    entries = found["no_proxy"].split(",")
    assert entries[:4] == [*ADDRESSES, platform.node()]
    assert len({*entries}) == len(entries)
    assert all(is_here(each) for each in entries[4:]), "addresses of interfaces"


def test_own_exceptions_stay_and_servers_of_this_machine_are_added(surroundings: pytest.MonkeyPatch) -> None:
    surroundings.setenv("https_proxy", PROXY)
    surroundings.setenv("no_proxy", " corp.example , 10.0.0.0/8,localhost,[::1]")
    surroundings.setenv("NO_PROXY", "corp.example,fe80::/10,.other")
    surroundings.setenv("PREFECT_API_URL", "http://127.0.0.2:4200/api")
    surroundings.setenv("CLEANSHELF_TRITON_URL", "grpcs://192.0.2.1:8001")
    value = direct(os.environ)["no_proxy"]
    assert value.startswith("corp.example,10.0.0.0/8,localhost,::1,.other,127.0.0.1,")
    assert value.endswith(",127.0.0.2")
    surroundings.setenv("CLEANSHELF_TRITON_URL", "127.0.0.3:8001")
    assert direct(os.environ)["no_proxy"] == f"{value},127.0.0.3"
    surroundings.setenv("CLEANSHELF_TRITON_URL", "http://[::1")
    assert direct(os.environ)["no_proxy"] == value, "an address that cannot be parsed is reported where it is used"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "shop.localhost"])
def test_addresses_of_this_machine(host: str) -> None:
    assert is_here(host)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid", "", "a b"])
def test_addresses_elsewhere(host: str) -> None:
    assert not is_here(host) or not host


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONPATH": "{theirs}"},
        {"PYTHONPATH": ":{theirs}"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONOPTIMIZE": "2", "PYTHONSTARTUP": "{theirs}/random.py"},
    ],
)
def test_the_command_runs_our_packages_wherever_it_is_called(tmp_path: Path, variables: dict[str, str]) -> None:
    theirs, script = own_packages(tmp_path / "theirs"), tmp_path / "cleanshelf"
    shutil.rmtree(theirs / "flows")  # before the command's own name nothing of ours has run
    script.write_text(COMMAND)
    given = {name: value.format(theirs=theirs) for name, value in variables.items()}
    given["PYTHONPATH"] = os.pathsep.join(filter(None, [given.get("PYTHONPATH"), str(ROOT)]))
    command = [sys.executable, "-P", str(script), "losses", "--markdown"]
    done = subprocess.run(command, cwd=theirs, env=os.environ | given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("|") or done.stdout.startswith("#"), done.stdout[:200]
    assert not (theirs / "ran").exists()


@pytest.mark.parametrize("module", ["serving.client.local", "models.export.session", "serving.repository.version"])
def test_onnx_runtime_leaves_nothing_in_the_home_folder(tmp_path: Path, module: str) -> None:
    script = f"import {module}, onnxruntime; onnxruntime.SessionOptions()"
    inherited = {name: value for name, value in os.environ.items() if name not in PRIVATE}
    env = inherited | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-P", "-c", script], env=env, check=True)
    assert sorted(tmp_path.rglob("*")) == []
