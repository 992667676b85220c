"""What the tests kill of export and publication: `python -m tests.graph_verbs VERB ...`.

`write GRAPH OUT`; `export WORKSPACE ARGUMENT...`, as a stage, with the arguments of `models.export` but for its folder;
`stage REPOSITORY GRAPH VERSION`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

from flows.run import Run
from flows.workspace import Workspace
from models.config import Recipe
from models.export import __main__ as exporting
from models.export import onnx_file
from serving.repository import ModelRepository
from tests.graphs import LABELS, golden_images

SMALL = 1 << 10  # bytes


def write(graph: str, out: str) -> None:
    """The graph once more, its weights beside it as those of one that protobuf cannot hold."""
    onnx_file.LARGEST = SMALL
    onnx_file.save(onnx.load(graph), Path(out))


def export(root: str, *arguments: str) -> Path:
    """The stage's folder."""

    def work(out: Path) -> None:
        sys.argv[:] = ["models.export", *arguments, "--out", str(out)]
        exporting.main()

    return Run(Workspace(Path(root)), Recipe(name="killed"), id="killed").stage("export", work=work)


def stage(root: str, graph: str, version: str) -> None:
    """The graph as a version that could be served."""
    repository = ModelRepository(Path(root))
    repository.stage(Path(graph), version=int(version), labels=LABELS, record={"run": "a"}, golden=golden_images())


def main() -> None:
    """Runs one."""
    {"write": write, "export": export, "stage": stage}[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
