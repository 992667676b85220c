"""Checks before any route: where a request comes from, and how large it is; and headers of every answer."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.pages.access import People

MAX_BODY = 64 * 1024 * 1024  # bytes of one request
SAFE = ("GET", "HEAD", "OPTIONS")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """Refuses requests that another site made a browser send, and bodies over MAX_BODY; sets headers of safety.

    A browser tells where a request comes from (Origin, Sec-Fetch-Site); programs that send neither carry a token, or are
    on this machine. On the loopback, other names than the loopback's are refused, since any site can point its own name
    at 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, *, people: People) -> None:
        self.app, self.people = app, people

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if refusal := self._refusal(scope, headers):
            return await _refused(*refusal)(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    found.setdefault(name, value)
                # A page never shows what was decided long ago; scripts are asked for again and answered by 304.
                found.setdefault("cache-control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        await self.app(scope, _limited(receive), with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.people.open_to_all and _name(host) not in LOOPBACK:
            return 400, f"this server answers on this machine only, and not as {host!r}"
        if scope["method"] not in SAFE and not _same_site(headers, host):
            return 403, "another site sent this request, so nothing was done; use the page itself"
        if int(headers.get("content-length") or 0) > MAX_BODY:
            return 413, _too_large()
        return None


def _limited(receive: Receive) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise HTTPException(413, _too_large())
        return message

    return limited


def _same_site(headers: Headers, host: str) -> bool:
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == host


def _name(host: str) -> str:
    return urlsplit(f"//{host}").hostname or ""


def _too_large() -> str:
    return f"more than {MAX_BODY // 1024**2} MB in one request; send fewer or smaller photos"


def _refused(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"kind": "Refused", "message": message}}, status)
