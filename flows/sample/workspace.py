"""The workspace of the demo."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.endpoint.server import stop_endpoint
from flows.errors import InputError
from flows.workspace import Workspace


def fresh_workspace(root: Path) -> Workspace:
    """Makes an empty workspace; stops and replaces that of an earlier demo.

    Raises:
        InputError: the folder holds other files.
    """
    mark = root / "state" / "demo"
    if mark.exists():
        workspace = Workspace.find(root)
        with workspace.idle("demo"):
            stop_endpoint(workspace)
            shutil.rmtree(root)
    elif root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is not empty and was not made by the demo; choose another folder with --workspace")
    workspace = Workspace.init(root)
    mark.touch()
    return workspace
