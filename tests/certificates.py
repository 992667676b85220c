"""Certificates of servers with TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path) -> tuple[Path, Path]:
    """Paths of a self-signed certificate for 127.0.0.1 and of its key."""
    folder.mkdir(parents=True)
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=shelf", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key
