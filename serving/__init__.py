"""Inference, from an ONNX file to ranked products, without torch, an orchestrator or data versioning.

This package exports everything that a client program needs. Each name is imported on first use, so a client over the
network needs neither ONNX nor ONNX Runtime.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from contract.environment import TELEMETRY_OFF

if TYPE_CHECKING:
    from pixels import BadPhoto
    from serving.access import Access
    from serving.client.client import AsyncRecognizer, Recognizer
    from serving.client.local import LocalRecognizer
    from serving.client.recognition import Recognition
    from serving.errors import (
        BadGraph,
        BadRequest,
        Forbidden,
        ModelNotReady,
        RequestRejected,
        RequestTimeout,
        ServerUnavailable,
        ServingError,
        Untrusted,
        VersionNotFound,
    )

__all__ = [
    "Access",
    "AsyncRecognizer",
    "BadGraph",
    "BadPhoto",
    "BadRequest",
    "Forbidden",
    "LocalRecognizer",
    "ModelNotReady",
    "Recognition",
    "Recognizer",
    "RequestRejected",
    "RequestTimeout",
    "ServerUnavailable",
    "ServingError",
    "Untrusted",
    "VersionNotFound",
]

os.environ[TELEMETRY_OFF] = "1"  # read when LocalRecognizer loads ONNX Runtime

HOMES = {
    "Access": "serving.access",
    "AsyncRecognizer": "serving.client.client",
    "BadPhoto": "pixels",
    "LocalRecognizer": "serving.client.local",
    "Recognition": "serving.client.recognition",
    "Recognizer": "serving.client.client",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "serving.errors")), name)
