"""Reads the state of a Prefect server over its API."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen


def ask(url: str, body: dict[str, Any]) -> Any:
    """Answer of Prefect's API."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def events(url: str) -> dict[str, dict[str, Any]]:
    """Ours, by their names."""
    found = ask(f"{url}/events/filter", {"filter": {"event": {"prefix": ["cleanshelf."]}}})["events"]
    return {each["event"]: each for each in found}
