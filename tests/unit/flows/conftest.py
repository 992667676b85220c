"""A client of the pages' JSON API in process, for the tests of single pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from flows.pages.access import People
from flows.pages.app import create_app
from flows.pages.site import Site


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    """A client of the module's fixture `site`, in which no decision stays pending."""
    people = People(site.workspace.state, open_to_all=True)
    with TestClient(create_app(site, people), base_url="http://127.0.0.1") as client:
        yield client
    site.decisions.forget(list(site.decisions.pending()))
