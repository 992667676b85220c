"""Access to a server: its address, two tokens, and the certificate authority that it is verified by.

The tokens are the keys of Triton's restricted APIs. One allows inference, the other allows changes to the server. A
client that only requests inference needs the first one only.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import InferenceServerClientPlugin

from contract.environment import is_direct
from serving.errors import BadRequest

TOKEN_HEADER = "cleanshelf-token"
CONTROL_HEADER = "cleanshelf-control-token"
GRPC_PREFIX = "triton-grpc-protocol-"  # Triton puts it before the names of restricted headers
SCHEME = "grpcs://"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
TOKEN_BYTES = 32
TOKEN = re.compile(rb"[!-~]+")  # made by `keep_token`, or chosen by the owner
RECONNECT_MS = (100, 1000)  # pause before the first attempt, and the longest pause


@dataclass(frozen=True)
class Access:
    """Everything needed to talk to one server.

    Args:
        url: host:port of its gRPC, or grpcs://host:port for TLS.
        token: allows inference; "" if the server requires none.
        control_token: allows loading models; clients leave it empty.
        ca: PEM file of the authority that signed the server's certificate; None for the authorities of the system.
    """

    url: str
    token: str = field(default="", repr=False)
    control_token: str = field(default="", repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        if self.ca and not self.is_tls:
            raise BadRequest(
                f"url {self.url}: a certificate authority is given, but the url has no TLS; write {SCHEME}{self.url}"
            )
        if self.ca and not self.ca.is_file():
            raise BadRequest(f"ca {self.ca}: no such file; name the PEM file of the server's certificate authority")

    @classmethod
    def of(cls, server: Access | str) -> Access:
        """Access without tokens for a bare url; an Access is returned unchanged."""
        return server if isinstance(server, Access) else cls(server)

    @property
    def is_tls(self) -> bool:
        """True if the connection is encrypted and the server has to present a certificate."""
        return self.url.startswith(SCHEME)

    @property
    def address(self) -> str:
        """Address as host:port, without the scheme."""
        return self.url.removeprefix(SCHEME)

    def headers(self) -> dict[str, str]:
        """Headers that every gRPC call carries: the tokens."""
        tokens = {TOKEN_HEADER: self.token, CONTROL_HEADER: self.control_token}
        return {GRPC_PREFIX + name: token for name, token in tokens.items() if token}

    def options(self) -> dict[str, Any]:
        """Keyword arguments for a gRPC client of tritonclient, sync or async, in addition to `address`.

        The client reaches a restarted server within a second, even if another client of this process failed before.
        A proxy named in the environment is not used for addresses of this machine.
        """
        channel: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ]
        if is_direct(self.address.rpartition(":")[0]):
            channel.append(("grpc.enable_http_proxy", 0))
        return {"channel_args": channel, "ssl": self.is_tls, "root_certificates": self.ca}


class Tokens(InferenceServerClientPlugin):  # type: ignore[misc]  # tritonclient has no types
    """Plugin that adds the tokens to every call of a tritonclient client, sync or async."""

    def __init__(self, access: Access) -> None:
        self._headers = access.headers()

    def __call__(self, request: Any) -> None:
        """Adds the headers; tritonclient calls this before each request."""
        request.headers = {**request.headers, **self._headers}


def keep_token(path: Path) -> str:
    """Token in the file at `path`; only the owner can read the file.

    A new token is written if the file is missing or does not hold a valid token. A running server requires the former
    token until it is restarted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # if two processes get here, the first one's token wins
        if not path.exists() or not TOKEN.fullmatch(path.read_bytes().strip()):
            _make_token(path)
        return path.read_text().strip()
    finally:
        os.close(folder)


def _make_token(path: Path) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # readable by the owner only
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
