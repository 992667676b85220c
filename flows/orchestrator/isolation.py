"""The surroundings of Prefect: its home in the workspace, and nothing of the user's own Prefect but a server named on purpose.

Prefect reads PREFECT_* variables, and `.env`, `prefect.toml` and `pyproject.toml` of the current folder. They may name another
database, in which Prefect would then mark runs of other people, or settings with which a private server cannot be reached.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tomllib
from contextlib import chdir
from pathlib import Path
from urllib.parse import urlsplit

from contract.environment import PRIVATE, PROXIES, direct
from flows.errors import DiskFull

PREFECT_BYTES = 8_000_000  # a fresh database and its log take 5.5 MB
NAMED = "PREFECT_API_URL"
# Variables with which a client reaches a server that PREFECT_API_URL names.
ACCESS = (
    NAMED,
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_API_SSL_CERT_FILE",
    "PREFECT_API_TLS_INSECURE_SKIP_VERIFY",
    "PREFECT_CLIENT_CUSTOM_HEADERS",
)
FILES = (".env", "prefect.toml", "pyproject.toml")
SCHEMES = ("http", "https", "socks5", "socks5h")  # of proxies that httpx knows


def prepare_prefect(state: Path) -> None:
    """Sets the environment variables that Prefect reads; must be called before Prefect is imported.

    Prefect's home lies in the workspace, it sends nothing to anyone, and its local server may take long to start: 9 to
    25 s were measured on two busy cores, more than Prefect's own limit of 20 s.

    Raises:
        DiskFull: its server could not write its database, and would report that only after the time limit.
    """
    free = shutil.disk_usage(state).free
    if free < PREFECT_BYTES:
        raise DiskFull(
            f"{state}: {free / 1e6:.0f} MB are free, {PREFECT_BYTES / 1e6:.0f} are needed; "
            "free some space and run the command again"
        )
    for name in _not_ours():
        del os.environ[name]
    os.environ |= PRIVATE | direct(os.environ) | _settings(state / "prefect")
    if any(Path(name).is_file() and _concerns_prefect(Path(name)) for name in FILES):
        _import_prefect_without_files(state)


def _settings(home: Path) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
        "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",  # we report a failure once, without Prefect's traceback
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "cleanshelf",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
    }


def _not_ours() -> list[str]:
    """Variables of the user's that Prefect or its client must not see; Prefect ignores the case of its variables."""
    named = bool(os.environ.get(NAMED, "").strip())
    foreign = [name for name in os.environ if name.upper().startswith("PREFECT_") and not (named and name in ACCESS)]
    return foreign + [name for name in PROXIES if name in os.environ and not _is_usable(os.environ[name])]


def _is_usable(proxy: str) -> bool:
    """True if httpx, with which Prefect's client calls its server, accepts the proxy; otherwise it sends no request."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        port = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return False
    has_socks = importlib.util.find_spec("socksio") is not None
    return parts.scheme in SCHEMES and port != 0 and (has_socks or not parts.scheme.startswith("socks"))


def _concerns_prefect(path: Path) -> bool:
    """True if Prefect would take settings from the file, or fail because it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == "pyproject.toml":
            return "prefect" in tomllib.loads(text).get("tool", {})
        return path.suffix == ".toml" or "prefect" in text.lower()
    except (OSError, ValueError, TypeError):
        return True


def _import_prefect_without_files(elsewhere: Path) -> None:
    """Imports Prefect in a folder without its files, and keeps it from reading those of any other folder later."""
    with chdir(elsewhere):
        from prefect.settings import sources
    # Prefect has no setting that turns its files off, so the two methods that read them are replaced.
    sources.TomlConfigSettingsSourceBase._read_file = lambda self, path: {}  # type: ignore[method-assign]  # on purpose
    sources.FilteredDotEnvSettingsSource._read_env_files = lambda self: {}  # type: ignore[method-assign]  # on purpose
