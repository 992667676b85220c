"""Reports of a running flow to Prefect beside its state: events and texts. Imports Prefect only within a flow."""

from __future__ import annotations

import sys

from flows.orchestrator.events import Event


def in_flow() -> bool:
    """True within a Prefect flow; without an import of Prefect there is none."""
    context = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None


def emit(event: Event) -> None:
    """Sends an event of the running flow to the server that it reports to; Prefect adds the run. Nothing outside a flow."""
    if in_flow():
        from prefect.events import emit_event

        emit_event(event.name, resource=event.resource, payload=event.payload)


def show_text(markdown: str, *, key: str, description: str) -> None:
    """Makes a Markdown text an artifact of the running flow. Nothing outside a flow."""
    if in_flow():
        from prefect.artifacts import create_markdown_artifact

        create_markdown_artifact(markdown, key=key, description=description)
