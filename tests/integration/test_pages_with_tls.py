"""Pages behind TLS, with a token per person: over the wire, and in a browser."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browser.chromium import chromium, served_pages

from flows.pages.access import COOKIE, ROLES, People
from flows.pages.guard import MAX_BODY
from flows.workspace import Workspace
from tests.certificates import certificate

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.init(tmp_path_factory.mktemp("tls") / "shop")


@pytest.fixture(scope="module")
def tokens(shop: Workspace) -> dict[str, str]:
    people = People(shop.state, open_to_all=False)
    return {role: people.invite(f"Ana {role}", role) for role in ROLES}


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("pems") / "own")


@pytest.fixture(scope="module")
def address(shop: Workspace, pems: tuple[Path, Path]) -> Iterator[str]:
    with served_pages(shop.root, "--tls-cert", str(pems[0]), "--tls-key", str(pems[1])) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str, pems: tuple[Path, Path]) -> Iterator[httpx.Client]:
    context = ssl.create_default_context(cafile=str(pems[0]))
    with httpx.Client(base_url=address, verify=context, trust_env=False) as client:
        yield client


def test_each_token_opens_what_its_role_may(client: httpx.Client, tokens: dict[str, str]) -> None:
    assert str(client.base_url).startswith("https://127.0.0.1:")
    assert client.get("/api/overview").status_code == 403
    for role, token in tokens.items():
        answer = client.get("/api/overview", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()["role"]) == (200, role)


def test_the_connection_needs_the_certificate(client: httpx.Client, address: str) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(address, trust_env=False)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(address.replace("https", "http"), trust_env=False)


def test_a_chunked_body_over_the_limit_is_answered_with_the_reason(client: httpx.Client) -> None:
    """The rest of the body is read and dropped: a browser whose connection is closed shows no reason."""
    chunks = (b"x" * 2**20 for _ in range(MAX_BODY // 2**20 + 1))
    answer = client.post("/enter", content=chunks, headers={"content-type": "application/x-www-form-urlencoded"})

    assert (answer.status_code, "4 KB in one request" in answer.text) == (413, True)


def test_an_invitation_signs_in_and_the_button_out(address: str, tokens: dict[str, str]) -> None:
    with chromium() as browser:
        page = browser.new_page(base_url=address, ignore_https_errors=True)
        page.goto("/")
        assert "sign in first" in page.inner_text("main")
        page.goto(f"/enter#{tokens['look']}")
        page.wait_for_url(f"{address}/")
        assert tokens["look"] not in page.url
        (cookie,) = page.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"]) == (COOKIE, True, True)
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/enter")
        assert page.context.cookies() == []


def test_a_forged_token_opens_nothing_and_says_so(address: str, tokens: dict[str, str]) -> None:
    """A token that was never given, one that a letter was changed in, and a cookie that someone made up."""
    real = tokens["operate"]
    changed = real[:-1] + ("A" if real[-1] != "A" else "B")
    with chromium() as browser:
        page = browser.new_page(base_url=address, ignore_https_errors=True)
        for forged in ("x" * len(real), changed):
            page.goto("/api")  # from /enter itself, another fragment would load nothing
            page.goto(f"/enter#{forged}")
            page.get_by_text("this token is not valid").wait_for()
            assert page.context.cookies() == []
            assert forged not in page.url
        page.context.add_cookies([{"name": COOKIE, "value": changed, "url": address, "secure": True}])
        answer = page.goto("/versions")
        assert answer
        assert (answer.status, "sign in first" in page.inner_text("main")) == (403, True)
        assert page.evaluate("fetch('/api/overview').then((answer) => answer.status)") == 403
