"""Requests that are refused before a route of the pages sees it, and what every answer carries."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from flows.pages.access import Looks
from flows.pages.guard import MAX_BODY, MAX_SIGN_IN
from flows.workspace import Workspace
from tests.page_client import HERE, app_of, bearer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.init(tmp_path_factory.mktemp("access") / "shop")


# --- who asks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:8080", 200),
        ("LOCALHOST:1", 200),
        ("localhost.", 200),
        ("[::1]:8080", 200),
        ("shop.example", 400),
        ("shop.example:8080", 400),
        ("127.0.0.1.shop.example", 400),
        ("ana@127.0.0.1", 400),
        ("127.0.0.1/x", 400),
        ("[::ffff:127.0.0.1]", 400),
        ("[::1", 400),
        ("::1", 400),
        ("0.0.0.0", 400),
        ("127.0.0.1:123456", 400),
        ("", 400),
    ],
)
def test_only_names_of_the_loopback_are_answered_without_tokens(alone: TestClient, host: str, status: int) -> None:
    assert alone.get("/api/test/who", headers={"host": host}).status_code == status


@pytest.mark.parametrize("hosts", [[], [b"127.0.0.1", b"shop.example"]], ids=["no host", "two hosts"])
@pytest.mark.anyio
async def test_a_request_has_one_host(alone: TestClient, hosts: list[bytes]) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "path": "/", "scheme": "http", "http_version": "1.0", "query_string": b""}
    await alone.app(scope | {"headers": [(b"host", host) for host in hosts]}, receive, send)

    assert sent[0]["status"] == 400


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": HERE}, 200),
        ({"sec-fetch-site": "same-origin", "origin": HERE}, 200),
        ({"origin": "http://shop.example"}, 403),
        ({"origin": "https://127.0.0.1"}, 403),
        ({"origin": "http://127.0.0.1:9"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site", "origin": HERE}, 403),
    ],
)
def test_other_sites_cannot_change_anything(alone: TestClient, headers: dict[str, str], status: int) -> None:
    assert alone.post("/api/test/decide", json={}, headers=headers).status_code == status


# --- bodies, answers, paths ----------------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_refused_however_it_is_sent(alone: TestClient) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        yield b'{"a": "'
        for _ in range(size // 2**20 + 1):
            yield b"x" * 2**20

    chunked = alone.post("/api/test/decide", content=chunks(MAX_BODY), headers={"content-type": "application/json"})
    assert (chunked.status_code, "64 MB" in chunked.text) == (413, True)
    for length in (str(MAX_BODY + 1), "9" * 5000, "-1", "x", "\N{FULLWIDTH DIGIT ONE}"):
        told = alone.post("/api/test/decide", content=b"{}", headers={"content-length": length.encode()})
        assert told.status_code == 413, length


def test_the_body_of_a_stranger_is_not_read(afar: TestClient) -> None:
    read = []

    def body(size: int) -> Iterator[bytes]:
        for _ in range(size):
            read.append(size)
            yield b"x"

    asked = afar.post("/api/test/decide", content=body(9), headers=bearer("forged"))
    entered = afar.post(
        "/enter", content=b"token=" + b"x" * MAX_SIGN_IN, headers={"content-type": "application/x-www-form-urlencoded"}
    )

    assert asked.status_code == 403
    assert (entered.status_code, "4 KB" in entered.text) == (413, True)


@pytest.mark.parametrize(
    "way", ["/enter", "/static/page.js", "/nowhere", "/api/nowhere", "/test/broken", "/photos/a/b/96"]
)
def test_every_answer_carries_the_headers_of_safety(alone: TestClient, way: str) -> None:
    answer = alone.get(way)

    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cache-control"] in ("no-store", "no-cache")


def test_an_unexpected_error_keeps_its_secrets(alone: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="cleanshelf"):
        answer = alone.get("/test/broken")

    assert (answer.status_code, "secret" in answer.text, "its log says what" in answer.text) == (500, False, True)
    assert "a secret of the server" in caplog.text


def test_a_line_break_in_a_path_stays_in_its_line_of_the_log(
    alone: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    app = app_of(alone.app.state.site.workspace, open_to_all=True)  # type: ignore[attr-defined]  # any ASGI application, to Starlette

    @app.get("/test/x/{name}")
    def named(person: Looks, name: str) -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, logger="cleanshelf"):
        TestClient(app, HERE).get("/test/x/a%0A%1B[2JERROR%20forged")

    assert "\n" not in caplog.messages[0]
    assert "\x1b" not in caplog.messages[0]


@pytest.mark.parametrize(
    "way",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..%5capp.py",
        "/photos/..%2f..%2fetc/passwd/96",
        "/photos/selected/..%2f..%2fdata.dvc/96",
    ],
)
def test_no_path_leads_out_of_the_folder(alone: TestClient, way: str) -> None:
    assert alone.get(way).status_code == 404


def test_head_asks_for_the_headers_of_get(alone: TestClient) -> None:
    for way in ("/enter", "/static/style.css", "/api/test/who"):
        got, head = alone.get(way), alone.head(way)
        assert (head.status_code, head.content, head.headers) == (got.status_code, b"", got.headers)


def test_many_ranges_of_a_file_cost_no_more_than_the_file(alone: TestClient) -> None:
    ranges = ",".join(f"{at}-{at}" for at in range(0, 2000, 2))
    answer = alone.get("/static/style.css", headers={"range": f"bytes={ranges}"})

    assert len(answer.content) < 300 * len(alone.get("/static/style.css").content)


def test_an_error_of_the_api_has_one_form(alone: TestClient) -> None:
    for answer in (
        alone.get("/api/nowhere"),
        alone.put("/api/overview"),
        alone.post("/api/test/decide", content=b"{", headers={"content-type": "application/json"}),
        alone.post("/api/test/decide", content=b'{"\\ud800": 3}', headers={"content-type": "application/json"}),
        alone.get("/photos/selected/x/7"),
        alone.get("/photos/selected/x/96"),
    ):
        assert set(answer.json()["error"]) == {"kind", "message"}, answer.url
    assert alone.put("/api/overview").headers["allow"] == "GET"


def test_websockets_are_refused(alone: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), alone.websocket_connect("/api/overview"):
        pass
