"""The command of assistants: mcp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import At, app, find, log_to_stderr


@app.command()
def mcp(
    workspace: At = Path("."),
    decide: Annotated[
        bool, typer.Option("--decide", help="Also offer tools that decide about labels; without it, look only.")
    ] = False,
    name: Annotated[str, typer.Option(help="Name of the assistant; its decisions are by `agent NAME`.")] = "assistant",
) -> None:
    """Answer a coding assistant on stdin and stdout (Model Context Protocol), until it closes them."""
    from flows.errors import InputError
    from flows.pages.access import is_name

    if not is_name(name) or len(name) > 60:
        raise InputError(f"--name {name!r}: give 1 to 60 characters that can be shown")
    try:
        from flows.mcp import serve_agents
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("mcp", "mcp_types"):
            raise
        raise InputError(
            "`cleanshelf mcp` needs the extra agents, which is not installed: pip install -c constraints.txt -e '.[agents]'"
        ) from None
    found = find(workspace)
    log_to_stderr()
    serve_agents(found, decides=decide, name=name)
