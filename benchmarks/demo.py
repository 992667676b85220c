"""The main job and its endpoint: duration, accuracy, latency.

Runs the demo in a folder of its own, then asks its endpoint photo by photo. The baseline of the latency is ONNX Runtime on
the same graph in this process, on all cores, without a server.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from figure import figure, header

from flows.endpoint.server import stop_endpoint
from flows.registry.repository import repository
from flows.workspace import Workspace
from models.data.manifest import read_manifest
from serving import LocalRecognizer, Recognizer
from serving.server.server import running

REQUESTS = 100
CLAIM = "the demo ends within 4 minutes on 2 cores, finds most planted errors, each step gains, a photo is answered in 100 ms"


def main() -> None:
    """Runs the demo and prints its figures."""
    header(CLAIM)
    with TemporaryDirectory() as folder:
        root = Path(folder) / "demo"
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "demo", "--workspace", root], text=True, capture_output=True
        )
        seconds = time.perf_counter() - began
        print(done.stdout)
        done.check_returncode()
        workspace = Workspace.find(root)
        try:
            server_ms, local_ms = latencies(workspace)
        finally:
            stop_endpoint(workspace)
    figure("demo_s", round(seconds, 1), target="<= 240", met=seconds <= 240, baseline=None)
    recall, precision = (int(share) / 100 for share in re.findall(r"(\d+)%", done.stdout.partition("Cleaning:")[2])[:2])
    figure("planted_errors_found", recall, target="> 0.5", met=recall > 0.5, baseline=None)
    figure("precision_of_dropped", precision, target="> 0.5", met=precision > 0.5, baseline=None)
    for name, gain in gains(done.stdout).items():
        figure(f"mean_class_gain_{name}", gain, target="> 0", met=gain > 0, baseline=0.0)
    figure(
        "photo_to_answer_p50_ms", round(server_ms, 1), target="< 100", met=server_ms < 100, baseline=round(local_ms, 1)
    )


def gains(output: str) -> dict[str, float]:
    """Change of mean-class accuracy by each step, from the demo's own table."""
    steps = {
        "cleaning": "after cleaning",
        "balance_tau": "re-balanced",
        "ensemble": "ensemble of",
        "crops": "with crops",
    }
    found = {}
    for name, words in steps.items():
        line = next(line for line in output.splitlines() if words in line)
        found[name] = float(re.findall(r"[+-]\d\.\d+", line)[0])
    return found


def latencies(workspace: Workspace) -> tuple[float, float]:
    """Median milliseconds from JPEG bytes to an answer, one photo at a time: over gRPC, and from the file in this process."""
    server, versions = running(workspace.state), repository(workspace)
    assert server is not None
    manifest = read_manifest(next(path for path in workspace.versions.iterdir() if path.is_dir()))
    photos = [manifest.read_photo(row) for row in range(REQUESTS)]
    (served,) = versions.configured()
    with Recognizer(server.access, labels=versions.labels) as remote:
        return _median(remote, photos), _median(LocalRecognizer(versions.path(served) / "model.onnx"), photos)


def _median(recognizer: Recognizer | LocalRecognizer, photos: list[bytes]) -> float:
    recognizer.recognise(photos[:1])
    times = []
    for photo in photos:
        began = time.perf_counter()
        recognizer.recognise([photo])
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times)


if __name__ == "__main__":
    main()
