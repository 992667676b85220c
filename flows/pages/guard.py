"""Checks before any route: where a request comes from, who sends a body, and how large it is; headers of every answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract import CleanShelfError
from flows.pages.access import People, caller
from serving.access import LOOPBACK

MAX_BODY = 64 * 1024 * 1024  # bytes of one request
MAX_SIGN_IN = 4096  # bytes of a request that anyone may send
OPEN = ("/enter", "/leave")  # signing in and out
SAFE = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(?::\d{1,5})?", re.ASCII | re.IGNORECASE)
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # else other sites could show our photos, and measure them
}
Failed = Callable[[Request, Exception], Awaitable[Response]]


class Guard:
    """Refuses requests that another site made a browser send, and bodies that are too large; sets headers of safety.

    A browser tells where a request comes from (Origin, Sec-Fetch-Site); programs that send neither carry a token, or are
    on this machine. Without tokens, other names than the loopback's are refused, since any site can point its own name
    at 127.0.0.1. A body is read before FastAPI knows the caller, so the token of a request with one is checked here.

    Args:
        failed: the answer to an error that no handler of the application expects.
    """

    def __init__(self, app: ASGIApp, *, people: People, failed: Failed) -> None:
        self.app, self.people, self.failed = app, people, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "websocket":  # browsers open them from any site
            return await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        answer = _Answer(scope, send)
        if refusal := self._refusal(scope, Headers(scope=scope)):
            return await _refused(*refusal)(scope, receive, answer)
        limit = MAX_SIGN_IN if scope["path"] in OPEN else MAX_BODY
        try:  # HEAD is answered as GET, whose headers it asks for
            await self.app({**scope, "method": answer.method}, _limited(receive, limit), answer)
        except Exception as error:
            if answer.has_begun:
                raise
            await (await self.failed(Request(scope), error))(scope, receive, answer)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if self.people.open_to_all and (len(hosts) != 1 or _name(hosts[0]) not in LOOPBACK):
            return 400, f"this server answers on this machine only, and not as {', '.join(hosts)!r}"
        if scope["method"] in SAFE:
            return None
        if not _same_site(headers, f"{scope['scheme']}://{''.join(hosts)}"):
            return 403, "another site sent this request, so nothing was done; use the page itself"
        if not _fits(headers.get("content-length", "0"), MAX_BODY):
            return 413, _too_large(MAX_BODY)
        return None if scope["path"] in OPEN else self._stranger(scope)

    def _stranger(self, scope: Scope) -> tuple[int, str] | None:
        try:
            caller(Request(scope))
        except CleanShelfError as error:
            return 403, str(error)
        return None


class _Answer:
    """Sends an answer with the headers of safety; without its body to HEAD."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.is_head, self.path, self.send, self.has_begun = scope["method"] == "HEAD", scope["path"], send, False
        self.method = "GET" if self.is_head else scope["method"]

    async def __call__(self, message: Message) -> None:
        """Sends one message of ASGI."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            found = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                found.setdefault(name, value)
            # A page never shows what was decided long ago; scripts are asked for again and answered by 304.
            found.setdefault("cache-control", "no-cache" if self.path.startswith("/static/") else "no-store")
        elif self.is_head:
            message = {**message, "body": b""}
        await self.send(message)


def _limited(receive: Receive, limit: int) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return limited


def _same_site(headers: Headers, own: str) -> bool:
    site = headers.get("sec-fetch-site")
    return site in ("same-origin", "none") if site is not None else headers.get("origin", own) == own


def _name(host: str) -> str:
    found = HOST.fullmatch(host)
    return found[1].lower().removesuffix(".") if found else ""


def _fits(length: str, limit: int) -> bool:
    return length.isascii() and length.isdigit() and len(length) < 20 and int(length) <= limit


def _too_large(limit: int) -> str:
    shown = f"{limit // 1024**2} MB" if limit >= 1024**2 else f"{limit // 1024} KB"
    return f"more than {shown} in one request; send fewer or smaller photos"


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"kind": "Refused", "message": message}}, status)
