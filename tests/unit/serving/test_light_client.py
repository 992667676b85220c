"""Packages that a client over the network installs and imports."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PACKAGES = {
    "grpcio", "ml-dtypes", "numpy", "packaging", "pillow", "protobuf", "python-rapidjson", "simplejpeg", "tritonclient",
    "typing-extensions", "urllib3",
}  # fmt: skip


def closure(requirements: list[str]) -> set[str]:
    """Names of all packages that the requirements need, by the metadata of the installed ones."""
    todo, seen = [Requirement(text) for text in requirements], set[tuple[str, frozenset[str]]]()
    while todo:
        wanted = todo.pop()
        key = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if key in seen:
            continue
        seen.add(key)
        for text in requires(wanted.name) or []:
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                todo.append(further)
    return {name for name, _ in seen}


def test_the_client_needs_eleven_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert closure([*project["dependencies"], *project["optional-dependencies"]["client"]]) == PACKAGES


def test_the_client_loads_nothing_else() -> None:
    script = """
import sys
import serving
assert not {"numpy", "PIL", "tritonclient"} & set(sys.modules), "loaded by `import serving`"
from serving import Access, AsyncRecognizer, BadPhoto, Recognition, Recognizer, ServingError
Recognizer("host:1").close()
loaded = {n.partition(".")[0] for n, m in sys.modules.items() if "site-packages" in (getattr(m, "__file__", None) or "")}
print(*sorted(loaded))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name for name in run.stdout.split() if not name.startswith("_")}
    assert {"grpc", "numpy", "tritonclient"} <= found
    allowed = {
        "PIL",
        "simplejpeg",
        "google",
        "grpc",
        "ml_dtypes",
        "numpy",
        "packaging",
        "rapidjson",
        "tritonclient",
        "typing_extensions",
    }
    assert found <= allowed | {"urllib3"}


def test_every_name_that_serving_offers_is_there() -> None:
    import serving

    assert [name for name in serving.__all__ if not isinstance(getattr(serving, name), type)] == []
    assert not hasattr(serving, "nothing")
