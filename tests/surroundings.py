"""Rough surroundings of a command: packages of the user's under our names, a proxy that hangs, and another Prefect."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import create_server

import pytest

# A module of the user's, which leaves a trace when it runs, and does not do what ours does.
THEIRS = "from pathlib import Path\nPath(__file__).resolve().parents[{up}].joinpath('ran').write_text(__name__)\n"
NAMES = ("models", "pixels", "durable", "contract", "serving", "flows")
LOOPBACK = re.compile(r'"(?:127\.|::1"|::ffff:127\.)')
SETTINGS = """\
PREFECT_API_URL=http://127.0.0.1:9/api
PREFECT_SERVER_DATABASE_CONNECTION_URL=sqlite+aiosqlite:///{database}
PREFECT_PROFILES_PATH=/none
"""


def own_packages(folder: Path) -> Path:
    """A folder of a user who has packages called as ours, with a module of the same name, and a random.py."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(THEIRS.format(up=1))
    (folder / "models" / "train.py").write_text(THEIRS.format(up=1))
    (folder / "random.py").write_text(THEIRS.format(up=0))
    return folder


@contextmanager
def rough(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A current folder and variables with which everything worked before, except in ways that only such a user sees.

    The folder holds packages under our names and Prefect's settings files. A proxy never answers; at the end of the block it
    has not been asked.
    """
    here, strange = own_packages(folder), folder / "strange.db"
    (here / ".env").write_text(SETTINGS.format(database=strange))
    (here / "prefect.toml").write_text("[server.api]\nbase_path = '/strange'\n")
    (here / "pyproject.toml").write_text("[tool.prefect\n")
    with create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        variables = {
            "ALL_PROXY": proxy.replace("http", "socks"),
            "HTTPS_PROXY": proxy,
            "http_proxy": proxy,
            "no_proxy": "corp.example,[fe80::1],fe80::/10",
            "PREFECT_HOME": str(folder / "strange"),
            "PREFECT_LOGGING_LEVEL": "LOUD",
            "PREFECT_PROFILE": "strange",
            "PREFECT_SERVER_API_AUTH_STRING": "strange:secret",
            "PREFECT_SERVER_API_BASE_PATH": "/strange",
            "PYTHONWARNINGS": "error",
            "prefect_server_database_connection_url": f"sqlite+aiosqlite:///{strange}",
        }
        yield here, variables
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.accept()


def traced(log: Path) -> list[str]:
    """Start of a command line that writes the connections of the command to `log`; empty where strace cannot trace."""
    command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect", "-o", str(log)]
    is_possible = shutil.which("strace") and not subprocess.run([*command, "true"], check=False).returncode
    return command if is_possible else []


def elsewhere(log: Path) -> list[str]:
    """Lines of the log with a connection to another machine."""
    return [line for line in log.read_text().splitlines() if "AF_INET" in line and not LOOPBACK.search(line)]
