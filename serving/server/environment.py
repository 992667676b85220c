"""Private Python environment of the server: its requirements, its installation and its environment variables.

The server's Python stub is built for numpy 1. With numpy 2, inputs silently arrive as zeros and outputs leave empty, while
the rest of CleanShelf needs a newer numpy. Python 3.13 has no numpy 1; there our backend exchanges tensors by DLPack, which
does not depend on numpy's layout. The requirements name every package and are installed without dependencies, because the
wheel's metadata forbid numpy 2 even where it works.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from contract.environment import process_variables
from durable import sha256, write
from serving.errors import BadEnvironment

REQUIREMENTS = Path(__file__).parents[1] / "triton-requirements.txt"
MARKER = "requirements.sha256"
PROBE_TIMEOUT_S = 60.0
REMEDY = "remove that directory and run `make setup`"

NEEDED = {
    "nvidia-pytriton": "wheel",
    "onnxruntime-gpu": "onnxruntime",
    "numpy": "numpy",
    "pillow": "pillow",
    "simplejpeg": "simplejpeg",
}

# Run by the environment's own interpreter, with -I because the stub is isolated too.
PROBE = """
import ctypes, importlib.metadata as metadata, importlib.util as util, json, os, sys, sysconfig
def version(name):
    try: return metadata.version(name)
    except metadata.PackageNotFoundError: return ""
def loads(library):
    try: return bool(ctypes.CDLL(library))
    except OSError: return False
python = "%d.%d" % sys.version_info[:2]
libpython, libdir = "libpython" + python + ".so.1.0", sysconfig.get_config_var("LIBDIR") or ""
print(json.dumps({
    "python": python, "numpy": version("numpy"), "onnxruntime": version("onnxruntime-gpu") or version("onnxruntime"),
    "wheel": version("nvidia-pytriton"), "pillow": version("pillow"), "simplejpeg": version("simplejpeg"),
    "site": sysconfig.get_path("platlib"), "libdir": libdir,
    "libpython": os.path.exists(os.path.join(libdir, libpython)) or loads(libpython),
}))
"""


@dataclass(frozen=True)
class Environment:
    """Environment that was inspected and found suitable."""

    path: Path
    python: str  # such as "3.11"
    site: Path  # site-packages
    libdir: Path  # directory of libpython

    @property
    def wheel(self) -> Path:
        """Server directory of the wheel: bin/, backends/, python_backend_stubs/."""
        return self.site / "pytriton" / "tritonserver"

    @property
    def stub(self) -> Path:
        """Executable that runs Python backends, for this version of Python."""
        return self.wheel / "python_backend_stubs" / self.python / "triton_python_backend_stub"

    @property
    def passes_bytes(self) -> bool:
        """True if the stub can pass bytes, hence encoded photos; with numpy 2, as on Python 3.13, it crashes."""
        return _minor(self.python) < 13

    def variables(self) -> dict[str, str]:
        """Environment variables of the server process.

        The stub takes site-packages from the first python3 on PATH, and libpython has to belong to that interpreter.
        """
        ours = process_variables()
        del ours["PYTHONPATH"]  # the packages of the environment only
        return {
            **ours,
            "PATH": f"{self.path / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": f"{self.site / 'nvidia_pytriton.libs'}:{self.libdir}",
        }


def inspect(path: Path) -> Environment:
    """Checks the environment at `path` with its own interpreter.

    Raises:
        BadEnvironment: it is missing, lacks the server or ONNX Runtime, has numpy >= 2 before Python 3.13, or has no stub
            for its Python or no libpython.
    """
    found = _probe(path)
    environment = Environment(path.absolute(), found["python"], Path(found["site"]), Path(found["libdir"]))
    for package, version in NEEDED.items():
        if not found[version]:
            raise BadEnvironment(f"{path} lacks {package}; {REMEDY}")
    if int(found["numpy"].split(".")[0]) >= 2 and _minor(found["python"]) < 13:
        raise BadEnvironment(f"{path} has numpy {found['numpy']}, the server needs numpy<2; {REMEDY}")
    if not environment.stub.is_file():
        stubs = ", ".join(sorted(path.name for path in environment.stub.parents[1].glob("3.*")))
        raise BadEnvironment(f"{path} is Python {found['python']}, the server has stubs for {stubs}; use one of these")
    if not found["libpython"]:
        library = f"libpython{found['python']}.so.1.0"
        raise BadEnvironment(f"{path}: {library} is not found; install it (Debian: libpython{found['python']})")
    return environment


def ensure_environment(path: Path, *, requirements: Path = REQUIREMENTS) -> Environment:
    """Environment at `path`, which is installed from `requirements` unless it is complete already.

    It is complete if the marker, which is written last, holds the hash of these requirements. An incomplete one, as left
    by a killed installation, is cleared and installed again. An installation takes about 40 s and 0.7 GB.

    Raises:
        BadEnvironment: it could not be installed, or is not suitable for the server.
    """
    marker, wanted = path / MARKER, sha256(requirements).encode()
    if marker.is_file() and marker.read_bytes().strip() == wanted:
        return inspect(path)
    if not (path / "pyvenv.cfg").exists() and any(each.is_file() for each in path.rglob("*")):
        raise BadEnvironment(f"{path} holds files and is not a Python environment; name another folder")
    _run([sys.executable, "-I", "-m", "venv", "--clear", str(path)])
    options = ["--no-input", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(requirements)]
    _run([str(path / "bin" / "python"), "-I", "-m", "pip", "install", *options])
    environment = inspect(path)
    write(marker, wanted)
    return environment


def _minor(python: str) -> int:
    """Minor version, such as 11 for "3.11"."""
    return int(python.partition(".")[2])


def _probe(path: Path) -> dict[str, str]:
    python = path / "bin" / "python"
    try:
        run = subprocess.run(
            [python, "-I", "-c", PROBE],
            capture_output=True,
            check=True,
            timeout=PROBE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
        return dict(json.loads(run.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BadEnvironment(f"{python} does not run ({error}); {REMEDY}") from None


def _run(command: list[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadEnvironment(
            f"`{' '.join(command)}` failed ({last}); check that the package index is reachable and try again"
        )


def main() -> None:
    """Installs the environment, or exits with the reason: `python -m serving.server.environment PATH`."""
    try:
        ensure_environment(Path(sys.argv[1]))
    except BadEnvironment as error:
        sys.exit(f"triton environment: {error}")


if __name__ == "__main__":
    main()
