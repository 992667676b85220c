"""Clients of the pages in process: their application with three more routes, without a server or a browser."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.testclient import TestClient

from flows.pages.access import Decides, Looks, People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.workspace import Workspace

HERE = "http://127.0.0.1"


def client_of(workspace: Workspace, *, open_to_all: bool) -> TestClient:
    return TestClient(app_of(workspace, open_to_all=open_to_all), HERE if open_to_all else "https://shop.example")


def app_of(workspace: Workspace, *, open_to_all: bool) -> FastAPI:
    """The application with three routes of the tests: one per role that reads a body, and one that fails."""
    app = create_app(Site(workspace), People(workspace.state, open_to_all=open_to_all))

    @app.post("/api/test/decide")
    def decide(person: Decides, body: dict[str, str]) -> dict[str, str]:
        return {"who": person.name, **body}

    @app.get("/api/test/who")
    def who(person: Looks) -> str:
        return person.name

    @app.get("/test/broken")
    def broken(person: Looks) -> None:
        raise ZeroDivisionError("a secret of the server")

    return app


def bearer(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}
