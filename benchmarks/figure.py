"""Output of a benchmark: `header` first, then one JSON line per figure. Every file in benchmarks/ uses it.

A benchmark runs alone (`python benchmarks/demo.py`) and together with the others (`make bench`).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

PRINTED: list[dict[str, Any]] = []  # every figure of this process, as `figure` printed it
PARTS = ("cleanshelf", "numpy", "torch", "timm", "onnx", "onnxruntime-gpu", "tritonclient", "dvc", "prefect")


def header(claim: str) -> None:
    """Prints the claim of the benchmark, and the hardware and versions that it was measured on."""
    print(f"claim: {claim}")
    print(f"hardware: {hardware()}, load {os.getloadavg()[0]:.1f}")
    print(f"versions: {versions()}", flush=True)


def hardware() -> str:
    """Processor, cores that this process may use, GPU."""
    return f"{_cpu()}, {len(os.sched_getaffinity(0))} cores, GPU {_gpu()}"


def versions() -> str:
    """Python and the installed parts; a benchmark of one package needs no others."""
    installed = {part.metadata["Name"].lower(): part.version for part in importlib.metadata.distributions()}
    return ", ".join(
        [f"python {platform.python_version()}", *(f"{name} {installed[name]}" for name in PARTS if name in installed)]
    )


def item(fact: str) -> str:
    """Item of a Markdown list, wrapped at 120 characters."""
    return textwrap.fill(f"- {fact}", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def figure(name: str, value: float, *, target: float | str, met: bool, baseline: float | str | None) -> None:
    """Prints one figure as a JSON line.

    Args:
        name: what was measured, with its unit ("image to answer, p50 ms").
        value: finite.
        target: what it should be ("<= 240" for a bound; "told" if no target was set).
        met: True if it is.
        baseline: what it is compared with; None if there is nothing to compare.

    Raises:
        ValueError: a number is not finite.
    """
    line = {"figure": name, "value": value, "target": target, "met": met, "baseline": baseline}
    print(json.dumps(line, ensure_ascii=False, allow_nan=False), flush=True)
    PRINTED.append(line)


def unmeasured(name: str, reason: str) -> None:
    """Prints that a figure was not measured, and why."""
    print(f"unmeasured: {name}: {reason}", flush=True)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none"
    asked = [tool, "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")
    return " + ".join(name.strip() for name in names if name.strip()) or "none"
