"""The command line of a local tritonserver: where it listens, who may do what, and what it loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.access import CONTROL_HEADER, LOOPBACK, TOKEN_HEADER, Access
from serving.errors import BadRequest

HOST = "127.0.0.1"
EXIT_TIMEOUT_S = 30  # below that a stub was seen to outlive the server
# Triton's groups of calls. Health stays open for probes, and metrics have no key in Triton.
INFERENCE = ("inference", "metadata", "model-config", "statistics")
CONTROL = ("model-repository", "shared-memory", "trace", "logging")


@dataclass(frozen=True)
class Listening:
    """Where gRPC listens, and with which certificate. HTTP and metrics know no TLS and stay on the loopback.

    Args:
        host: address of the interface; other than the loopback only with TLS, as tokens would cross the network readable.
        certificate, key: PEM files; the certificate has to name the address that clients use, and 127.0.0.1 where `host`
            is 0.0.0.0.
        ca: PEM file of the certificate's authority; by default the certificate itself, as of a self-signed one.
    """

    host: str = HOST
    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise BadRequest("TLS needs a certificate and its key; give both --tls-cert and --tls-key")
        if self.certificate is None and self.host not in LOOPBACK:
            raise BadRequest(
                f"host {self.host}: tokens would cross the network readable; give --tls-cert and --tls-key, or leave --host"
            )
        for path in (self.certificate, self.key, self.ca):
            if path and not path.is_file():
                raise BadRequest(f"{path}: no such file; name a PEM file")

    @property
    def reached_at(self) -> str:
        """The address under which this machine itself reaches it."""
        return HOST if self.host == "0.0.0.0" else self.host  # compared, not bound

    @property
    def authority(self) -> Path | None:
        """The PEM file to believe the server by; None without TLS."""
        return self.ca or self.certificate


def arguments(
    *,
    models: Path,
    load: Iterable[str],
    listening: Listening,
    ports: dict[str, int],
    access: Access,
    backends: Sequence[str],
) -> list[str]:
    """Everything after `tritonserver`.

    Args:
        load: the models to load at the start.
        ports: of http, grpc and metrics.
        access: the tokens to ask for.
    """
    return [
        f"--model-repository={models}",
        *backends,
        "--model-control-mode=explicit",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        *(f"--{service}-port={port}" for service, port in ports.items()),
        f"--http-address={HOST}",
        f"--metrics-address={HOST}",
        f"--grpc-address={listening.host}",
        *_restrictions(access),
        *_tls(listening),
        *(f"--load-model={model}" for model in load),
    ]


def _restrictions(access: Access) -> list[str]:
    """Who may do what; Triton checks that a header has its value, and no more."""
    inference = f"{','.join(INFERENCE)}:{TOKEN_HEADER}={access.token}"
    control = f"{','.join(CONTROL)}:{CONTROL_HEADER}={access.control_token}"
    options = ("--http-restricted-api", "--grpc-restricted-protocol")
    return [f"{option}={rule}" for option in options for rule in (inference, control)]


def _tls(listening: Listening) -> list[str]:
    if listening.certificate is None:
        return []
    return [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={listening.certificate}",
        f"--grpc-server-key={listening.key}",
    ]
