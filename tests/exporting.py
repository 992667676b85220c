"""Exports for tests that kill them: `python -m tests.exporting VERB ...`.

`write GRAPH OUT`; `export WORKSPACE ARGUMENT...`, as a step, with the arguments of `models.export` except --out.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

from flows.run.run import Run
from flows.workspace import Workspace
from models.export import __main__ as command
from models.export import onnx_file
from models.recipe.config import Recipe

SMALL = 1 << 10  # bytes


def write(graph: str, out: str) -> None:
    """Writes a copy of the graph with external weights, like one that is too large for protobuf."""
    onnx_file.MAX_BYTES = SMALL
    onnx_file.save(onnx.load(graph), Path(out))


def export(root: str, *arguments: str) -> Path:
    """Runs an export as a step, and returns its folder."""

    def work(out: Path) -> None:
        sys.argv[:] = ["models.export", *arguments, "--out", str(out)]
        command.main()

    return Run(Workspace(Path(root)), Recipe(name="killed"), id="killed").cached(
        "export", files=["model.onnx"], work=work
    )


def main() -> None:
    """Runs the export named on the command line."""
    {"write": write, "export": export}[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
