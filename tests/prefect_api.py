"""Reads the state of a Prefect server over its API."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import Request, urlopen


def post_json(url: str, body: dict[str, Any]) -> Any:
    """JSON that Prefect's API answers to a POST request."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def events(url: str, *, about: str = "") -> dict[str, dict[str, Any]]:
    """CleanShelf's events on the server, by name; the latest of each name.

    about: kind and name of a resource, such as run.NAME, whose events alone are returned: tests of several files share a
    server.
    """
    prefix = f"cleanshelf.{about}"
    found = post_json(f"{url}/events/filter", {"filter": {"event": {"prefix": ["cleanshelf."]}}})["events"]
    ours = [each for each in found if each["resource"]["prefect.resource.id"].startswith(prefix)]
    return {each["event"]: each for each in sorted(ours, key=lambda each: each["occurred"])}
