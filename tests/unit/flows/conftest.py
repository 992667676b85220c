"""Clients of the pages in process: of one page's site, and of a workspace that is open to all or asks for tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site
from flows.workspace import Workspace
from tests.page_client import client_of


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    """A client of the module's fixture `site`, in which no decision stays pending."""
    people = People(site.workspace.state, open_to_all=True)
    with TestClient(create_app(site, people), base_url="http://127.0.0.1") as client:
        yield client
    site.decisions.forget(list(site.decisions.pending()))


@pytest.fixture(scope="module")
def alone(workspace: Workspace) -> TestClient:
    """A client on the loopback."""
    return client_of(workspace, open_to_all=True)


@pytest.fixture(scope="module")
def afar(workspace: Workspace) -> TestClient:
    """A client that needs a token."""
    return client_of(workspace, open_to_all=False)
