"""People who may use the pages: roles of routes, tokens, and the file of people; in process, without a browser."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from flows.errors import CorruptObject, InputError
from flows.pages.access import CALLED, COOKIE, NAME, Decides, Looks, People, role_needed
from flows.pages.app import create_app
from flows.pages.documentation import operations, routes
from flows.pages.site import Site
from flows.web import _bound, _check_certificate, _shown, people_of
from flows.workspace import Workspace
from serving.errors import BadRequest
from serving.server.command import Listening
from tests.certificates import certificate
from tests.page_client import bearer, client_of

# Routes that ask for no role: signing in and out change nothing but the cookie of who asks.
OPEN = {("/enter", "GET"), ("/enter", "POST"), ("/leave", "POST")}
# Questions that need a body, as a photo or many ids do; they change nothing that another request could see.
QUESTIONS = ("/api/recognise", "/api/recognise/nearest", "/api/review/selections", "/api/map/selection")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.init(tmp_path_factory.mktemp("access") / "shop")


@pytest.fixture(scope="module")
def tokens(workspace: Workspace) -> dict[str, str]:
    people = People(workspace.state, open_to_all=False)
    return {role: people.invite(f"Ana {role}", role) for role in ("look", "decide", "operate")}


# --- routes --------------------------------------------------------------------------------------------------------


def faults_of_routes(app: FastAPI) -> list[str]:
    """Routes that ask for no role, or that change something by GET or for people who may only look."""
    faults = []
    for route in routes(app):
        for method in route.methods - {"HEAD"}:
            role = role_needed(route)
            if (route.path, method) in OPEN:
                continue
            if role is None:
                faults.append(f"{method} {route.path} asks for no role")
            elif method not in ("GET", "POST", "PUT", "DELETE"):
                faults.append(f"{method} {route.path}: no such method here")
            elif (method == "GET") != (role == "look") and not (route.path in QUESTIONS and role == "look"):
                faults.append(f"{method} {route.path} asks for {role}")
    return faults


def test_every_route_asks_for_a_role_and_only_those_who_decide_change_something(workspace: Workspace) -> None:
    app = create_app(Site(workspace), People(workspace.state, open_to_all=True))
    others = [each for each in app.routes if not isinstance(each, FastAPI) and getattr(each, "path", None)]

    assert len(list(routes(app))) > 5
    assert faults_of_routes(app) == []
    assert [each.path for each in others] == ["/static"], "what is not a route of FastAPI has no role"


def test_a_route_without_a_role_is_found() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/api/all", lambda: None, methods=["DELETE"])

    def looks_and_changes(person: Looks) -> None: ...

    def decides_by_get(person: Decides) -> None: ...

    app.add_api_route("/api/a", looks_and_changes, methods=["POST"])
    app.add_api_route("/api/b", decides_by_get, methods=["GET"])

    assert [fault.split(" asks")[0] for fault in faults_of_routes(app)] == [
        "DELETE /api/all",
        "POST /api/a",
        "GET /api/b",
    ]


def test_the_documentation_names_every_operation_with_its_role(alone: TestClient) -> None:
    document = alone.get("/api/openapi.json").json()
    listed = list(operations(document))
    pages = [re.sub("</?b>", "", alone.get(address).text) for address in ("/api", "/llms.txt")]
    own = {(each.path, method) for each in routes(alone.app) if each.include_in_schema for method in each.methods}  # type: ignore[arg-type]

    assert {(each["path"], each["method"]) for each in listed} == own
    for each in listed:
        assert each["says"], each["path"]
        assert all(f"{each['method']} {each['path']}" in page for page in pages), each["path"]
    assert all("4XX" in answer["responses"] for way in document["paths"].values() for answer in way.values())


def test_roles_include_those_before_them(afar: TestClient, tokens: dict[str, str]) -> None:
    looked = {role: afar.get("/api/test/who", headers=bearer(token)).status_code for role, token in tokens.items()}
    decided = {
        role: afar.post("/api/test/decide", json={}, headers=bearer(token)).status_code
        for role, token in tokens.items()
    }

    assert looked == {"look": 200, "decide": 200, "operate": 200}
    assert decided == {"look": 403, "decide": 200, "operate": 200}


@pytest.mark.parametrize("token", ["", "x", "x" * 43, "é", "' OR 1=1", "Bearer Bearer"])
@pytest.mark.parametrize("way", ["/", "/api", "/api/overview", "/api/openapi.json", "/llms.txt", "/photos/a/b/96"])
def test_a_forged_token_shows_nothing(afar: TestClient, way: str, token: str) -> None:
    answer = afar.get(way, headers={"authorization": f"Bearer {token}".encode()})

    assert (answer.status_code, "sign in first" in answer.text, "shop" in answer.text) == (403, True, False)


def test_a_cookie_signs_in_and_out(workspace: Workspace, tokens: dict[str, str]) -> None:
    with client_of(workspace, open_to_all=False) as browser:
        refused = browser.post("/enter", data={"token": "forged"})
        entered = browser.post("/enter", data={"token": f" {tokens['decide']}\n"}, follow_redirects=False)
        kept = entered.headers["set-cookie"]
        assert (refused.status_code, COOKIE in refused.headers.get("set-cookie", "")) == (403, False)
        assert entered.status_code == 303
        assert all(flag in kept for flag in ("__Host-", "HttpOnly", "Secure", "SameSite=strict", "Path=/"))
        assert "Domain" not in kept
        assert browser.get("/api/test/who").json() == "Ana decide"
        assert browser.post("/api/test/decide", json={}, headers={"origin": "http://x.example"}).status_code == 403
        browser.post("/leave", headers={"origin": "https://shop.example"})
        assert browser.get("/api/test/who").status_code == 403


def test_a_new_or_removed_token_ends_the_old_one(workspace: Workspace, afar: TestClient) -> None:
    people = People(workspace.state, open_to_all=False)
    first, second = (people.invite(" Zoë ", role) for role in ("operate", "look"))
    assert [afar.get("/api/test/who", headers=bearer(token)).status_code for token in (first, second)] == [403, 200]

    people.remove("Zoë ")
    assert afar.get("/api/test/who", headers=bearer(second)).status_code == 403
    with pytest.raises(InputError, match="'Zoë' is not among the people"):
        people.remove("Zoë")


@pytest.mark.parametrize(("name", "role"), [("", "look"), ("a\nb", "look"), ("x" * 81, "look"), ("Ana", "admin")])
def test_wrong_invitations_are_refused(workspace: Workspace, name: str, role: str) -> None:
    with pytest.raises(InputError):
        People(workspace.state, open_to_all=False).invite(name, role)


def test_the_file_of_people_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        modes.append(stat.S_IMODE(os.stat(source).st_mode))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    token = People(tmp_path, open_to_all=False).invite("Ana", "look")

    assert modes == [0o600]
    assert token not in (tmp_path / NAME).read_text()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"Ana": 3}', '{"Ana": {}}', '{"Ana": {"role": "root", "sha256": "' + "0" * 64 + '"}}', "\xff"],
)
def test_a_damaged_file_of_people_lets_nobody_in(tmp_path: Path, content: str) -> None:
    shop = Workspace.init(tmp_path / "shop")
    (shop.state / NAME).write_bytes(content.encode("latin-1"))
    client = client_of(shop, open_to_all=False)
    answers = [client.get(way, headers=bearer("x")) for way in ("/", "/api/overview")]
    answers.append(client.post("/enter", data={"token": "x"}))

    assert [answer.status_code for answer in answers] == [500, 500, 500]
    assert all("delete it and invite everyone again" in answer.text for answer in answers)
    assert client.get("/enter").status_code == 200
    with pytest.raises(CorruptObject):
        People(shop.state, open_to_all=False).invite("Ana", "look")


def test_on_the_loopback_a_browser_may_carry_a_name(alone: TestClient) -> None:
    def who(name: str) -> str:
        return str(alone.get("/api/test/who", headers={"cookie": f"{CALLED}={name}"}).json())

    assert who("Zo%C3%AB") == "Zoë"
    assert who("a%0Ab") == who("") == who("x" * 81)


# --- addresses -----------------------------------------------------------------------------------------------------


def test_tokens_are_needed_off_the_loopback_and_with_tls(workspace: Workspace, tmp_path: Path) -> None:
    pem = tmp_path / "a.pem"
    pem.touch()
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert people_of(workspace, Listening(host)).open_to_all
        assert not people_of(workspace, Listening(host, pem, pem)).open_to_all
    for host in ("0.0.0.0", "::", "", "::ffff:127.0.0.1", "127.0.0.1.shop.example"):
        assert not people_of(workspace, Listening(host, pem, pem)).open_to_all
        with pytest.raises(BadRequest, match="tokens would cross the network"):
            Listening(host)


def test_a_certificate_with_another_key_is_refused(tmp_path: Path) -> None:
    (cert, key), (_, other) = (certificate(tmp_path / name) for name in "ab")
    (text := tmp_path / "text.pem").write_text("no certificate")

    _check_certificate(Listening("0.0.0.0", cert, key))
    for pair in ((cert, other), (text, key)):
        with pytest.raises(InputError, match="give a PEM certificate and the key that belongs to it"):
            _check_certificate(Listening("0.0.0.0", *pair))


def test_addresses_are_shown_as_a_browser_takes_them() -> None:
    assert [_shown(host) for host in ("localhost", "[::1]", "::", "10.0.0.7")] == [
        "127.0.0.1",
        "[::1]",
        "[::]",
        "10.0.0.7",
    ]
    with _bound("localhost", 0) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"
        with socket.create_connection(bound.getsockname()), bound.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # else answers wait 40 ms
    with pytest.raises(InputError, match="cannot listen on 192"):
        _bound("192.0.2.1", 0)


def test_the_people_are_kept_as_hashes(workspace: Workspace, tokens: dict[str, str]) -> None:
    kept = json.loads((workspace.state / NAME).read_bytes())

    assert set(kept["Ana look"]) == {"role", "sha256"}
    assert not any(token in json.dumps(kept) for token in tokens.values())
