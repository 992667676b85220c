"""Command line of a local tritonserver: addresses, access rules and the models to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.access import CONTROL_HEADER, LOOPBACK, TOKEN_HEADER, Access
from serving.errors import BadRequest

HOST = "127.0.0.1"
EXIT_TIMEOUT_S = 30  # with less, a stub outlived the server in a test
# Triton's groups of calls. Health stays open for probes; Triton cannot restrict metrics.
INFERENCE = ("inference", "metadata", "model-config", "statistics")
CONTROL = ("model-repository", "shared-memory", "trace", "logging")
QUANTILES = "--metrics-config=summary_latencies=true"  # p50, p99 and others of each model's recent requests


@dataclass(frozen=True)
class Listening:
    """Address and certificate of gRPC. Triton's HTTP and metrics have no TLS and stay on the loopback.

    Args:
        host: address of the interface; other than the loopback only with TLS, or the tokens would be sent unencrypted.
        certificate, key: PEM files; the certificate has to name the address that clients use, and 127.0.0.1 if `host`
            is 0.0.0.0.
        ca: PEM file of the certificate's authority; None if the certificate is self-signed.
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
                f"host {self.host}: tokens would cross the network readable; give --tls-cert and --tls-key, or omit --host"
            )
        for path in (self.certificate, self.key, self.ca):
            if path and not path.is_file():
                raise BadRequest(f"{path}: no such file; name a PEM file")

    @property
    def reached_at(self) -> str:
        """Address at which this machine reaches the server."""
        return HOST if self.host == "0.0.0.0" else self.host  # compared, not bound

    @property
    def authority(self) -> Path | None:
        """PEM file that the server's certificate is verified with; None without TLS."""
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
    """Arguments of `tritonserver`.

    Args:
        load: models to load at the start.
        ports: ports by service: http, grpc and metrics.
        access: the tokens to require.
        backends: options that configure the backends.
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
        QUANTILES,
        f"--grpc-address={listening.host}",
        *_restrictions(access),
        *_tls(listening),
        *(f"--load-model={model}" for model in load),
    ]


def _restrictions(access: Access) -> list[str]:
    """Options that restrict calls to those with a token; Triton only compares a header with its value."""
    inference = f"{','.join(INFERENCE)}:{TOKEN_HEADER}={access.token}"
    control = f"{','.join(CONTROL)}:{CONTROL_HEADER}={access.control_token}"
    options = ("--http-restricted-api", "--grpc-restricted-protocol")
    return [f"{option}={rule}" for option in options for rule in (inference, control)]


def _tls(listening: Listening) -> list[str]:
    if listening.certificate is None or listening.key is None:
        return []
    return [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={listening.certificate.absolute()}",  # the server runs in a folder of its own
        f"--grpc-server-key={listening.key.absolute()}",
    ]
