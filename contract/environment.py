"""Environment variables of every process of ours, to be set before the libraries and interpreters that read them start."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]  # the folder of our packages
ADDRESSES = ("localhost", "127.0.0.1", "::1")
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"  # ONNX Runtime leaves a device id in the home folder when it is loaded without
PRIVATE = {  # no library reports the use that is made of it, or looks for a newer version
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    TELEMETRY_OFF: "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
}
# Of the variables that Python reads, those that decide neither which code runs nor when it fails.
HARMLESS = (
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONPYCACHEPREFIX",
    "PYTHONUNBUFFERED",
    "PYTHONUTF8",
)
SIDE_BY_SIDE = "CLEANSHELF_SIDE_BY_SIDE"  # number of trainings that share the cores of this machine
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
NO_PROXY = ("no_proxy", "NO_PROXY")
NAMES_OF_SERVERS = ("PREFECT_API_URL", "CLEANSHELF_TRITON_URL")


def process_variables(**more: str) -> dict[str, str]:
    """Variables for a Python process that runs our code and no other, and `more`.

    Neither the current folder nor the user's PYTHON* variables decide what is imported; libraries report nothing to anyone;
    no proxy is asked for an address of this machine.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON") or name in HARMLESS}
    ours = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    return kept | PRIVATE | ours | direct(os.environ) | more


def direct(variables: Mapping[str, str]) -> dict[str, str]:
    """`no_proxy` in both spellings: the user's own entries, and the names and addresses of this machine.

    Entries that httpx cannot parse are left out: it would refuse to send anything at all.
    """
    if not _has_proxy(variables) and not any(variables.get(name) for name in NO_PROXY):
        return {}
    own = ",".join(variables.get(name, "") for name in NO_PROXY).split(",")
    servers = [_host(variables.get(name, "")) for name in NAMES_OF_SERVERS]
    here = [host for host in servers if host and is_here(host)]
    parsed = [entry for each in own if (entry := each.strip().strip("[]")) and not (":" in entry and "/" in entry)]
    value = ",".join(dict.fromkeys([*parsed, *ADDRESSES, platform.node(), *_own_addresses(), *here]))
    return dict.fromkeys(NO_PROXY, value)


def is_direct(host: str) -> bool:
    """True if no proxy may be asked for the host, as it is this machine. Names are only resolved if there is a proxy."""
    return host.strip("[]") in ADDRESSES or (_has_proxy(os.environ) and is_here(host))


def is_here(host: str) -> bool:
    """True if the name or address is one of this machine, to which a socket can be bound."""
    host = host.strip("[]")
    if host in ADDRESSES or host.endswith(".localhost"):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_can_bind(family, address) for family, *_, address in found)


def _own_addresses() -> list[str]:
    """IPv4 addresses of this machine's interfaces, as Linux lists them in its routing table."""
    try:
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
    except OSError:
        return []
    return [line.split()[-1] for line, kind in pairwise(lines) if "host LOCAL" in kind]


def _has_proxy(variables: Mapping[str, str]) -> bool:
    return any(variables.get(name) for name in (*PROXIES, "grpc_proxy"))


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _host(url: str) -> str:
    """Host in the URL, or in an address such as host:port; "" if there is none."""
    try:
        return urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:
        return ""
