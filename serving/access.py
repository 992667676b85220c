"""How to reach a server and prove who asks: its address, two tokens and the authority that vouches for it.

The tokens are the keys of Triton's restricted APIs. One lets through inference, the other what changes the server; a
client that only asks needs the first alone.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonclient.grpc import InferenceServerClientPlugin

from serving.errors import BadRequest

TOKEN_HEADER = "cleanshelf-token"
CONTROL_HEADER = "cleanshelf-control-token"
GRPC_PREFIX = "triton-grpc-protocol-"  # Triton's own, of the headers of restricted protocols
SCHEME = "grpcs://"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
TOKEN_BYTES = 32
TOKEN = re.compile(rb"[!-~]+")  # as made here, or the owner's own
RECONNECT_MS = (100, 1000)  # of the first try, and at most


@dataclass(frozen=True)
class Access:
    """Everything needed to talk to one server.

    Args:
        url: host:port of its gRPC, or grpcs://host:port for TLS.
        token: for inference; "" where the server asks for none.
        control_token: for loading models; clients leave it empty.
        ca: PEM file of the authority that signed the server's certificate; None: those of the system.
    """

    url: str
    token: str = field(default="", repr=False)
    control_token: str = field(default="", repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        if self.ca and not self.is_tls:
            raise BadRequest(f"url {self.url}: has a certificate authority but no TLS; write {SCHEME}{self.url}")
        if self.ca and not self.ca.is_file():
            raise BadRequest(f"ca {self.ca}: no such file; name the PEM file of the server's certificate authority")

    @classmethod
    def of(cls, server: Access | str) -> Access:
        """`server` itself, or that of a bare url."""
        return server if isinstance(server, Access) else cls(server)

    @property
    def is_tls(self) -> bool:
        """Whether the way is encrypted and the server has to prove who it is."""
        return self.url.startswith(SCHEME)

    @property
    def address(self) -> str:
        """host:port."""
        return self.url.removeprefix(SCHEME)

    def headers(self) -> dict[str, str]:
        """What every gRPC call carries."""
        tokens = {TOKEN_HEADER: self.token, CONTROL_HEADER: self.control_token}
        return {GRPC_PREFIX + name: token for name, token in tokens.items() if token}

    def options(self) -> dict[str, Any]:
        """Arguments for a gRPC client of tritonclient, sync or async, beside `address`.

        A server that comes back is met within a second, whatever another client of this process found before. A proxy of
        the environment is not asked for this machine itself.
        """
        channel: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS[0]),
            ("grpc.max_reconnect_backoff_ms", RECONNECT_MS[1]),
        ]
        if self.address.rpartition(":")[0] in LOOPBACK:
            channel.append(("grpc.enable_http_proxy", 0))
        return {"channel_args": channel, "ssl": self.is_tls, "root_certificates": self.ca}


class Tokens(InferenceServerClientPlugin):
    """Puts the tokens on every call of a tritonclient client, sync or async."""

    def __init__(self, access: Access) -> None:
        self._headers = access.headers()

    def __call__(self, request: Any) -> None:
        """Called by tritonclient before each request."""
        request.headers = {**request.headers, **self._headers}


def keep_token(path: Path) -> str:
    """The token in the file, which only its owner can read; made on the first call, and anew where it is none any more.

    A server that runs asks for the former one until it is started again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not TOKEN.fullmatch(path.read_bytes().strip()):
        path.unlink()
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # its owner's alone
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # the first of two makers wins
        except FileExistsError:
            pass
        finally:
            os.unlink(temporary)
    return path.read_text().strip()
