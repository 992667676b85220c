"""Exports that the tests kill: `python -m tests.exporting VERB ...`.

`write GRAPH OUT`; `export WORKSPACE ARGUMENT...`, as a stage, with the arguments of `models.export` but for its folder.
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
    """The graph once more, its weights beside it as those of one that protobuf cannot hold."""
    onnx_file.LARGEST = SMALL
    onnx_file.save(onnx.load(graph), Path(out))


def export(root: str, *arguments: str) -> Path:
    """The stage's folder."""

    def work(out: Path) -> None:
        sys.argv[:] = ["models.export", *arguments, "--out", str(out)]
        command.main()

    return Run(Workspace(Path(root)), Recipe(name="killed"), id="killed").cached("export", work=work)


def main() -> None:
    """Runs one."""
    {"write": write, "export": export}[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
