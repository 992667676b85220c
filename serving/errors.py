"""Errors of serving.

ServingError
├── PortInUse (ValueError)              another process listens on a port that the server needs
├── AlreadyRunning (ValueError)         the state directory already has a running server, or a watcher
├── BadEnvironment (ValueError)         the server's private environment is incomplete or would give wrong answers
├── BadGraph (ValueError)               a graph, labels or golden images that break the endpoint's contract
├── BadRequest (ValueError)             wrong shape, type, batch size or setting
│   └── BatchTooLarge                   more photos than the model takes in one request
├── Forbidden (ValueError)              the token is missing or wrong; asking again does not help
├── Untrusted (ValueError)              the server's certificate is not trusted, or the server does not use TLS
├── ContractChanged (ValueError)        the graph's signature differs from the current model's: clients would break
├── RepositoryError
│   ├── VersionNotFound (ValueError)    no such version
│   ├── VersionInUse (ValueError)       the number is taken; versions are immutable
│   ├── DiskFull (ValueError)           no space left; no partial file remains
│   └── CorruptVersion (RuntimeError)   a file no longer matches its hash
├── ServerUnavailable (RuntimeError)    no server answers, or the server ended
├── ModelNotReady (RuntimeError)        the server answers, the model does not
├── RequestTimeout (RuntimeError)       no answer within the deadline
├── RequestRejected (RuntimeError)      the queue is full, or another request of the batch was invalid; try again
└── GoldenMismatch (RuntimeError)       a runtime's answer differs from the golden one

The user can correct a ValueError (exit 2); a RuntimeError comes from the environment (exit 3).
"""

from __future__ import annotations

from contract import CleanShelfError


class ServingError(CleanShelfError):
    """Base class of every error that serving raises on purpose."""


class PortInUse(ServingError, ValueError):
    """Another process listens on the port."""


class AlreadyRunning(ServingError, ValueError):
    """The state directory already has a running server, or a process that watches it."""


class BadEnvironment(ServingError, ValueError):
    """The server's private environment lacks a part or would silently give wrong answers."""


class BadGraph(ServingError, ValueError):
    """A graph, its labels or its golden images break the endpoint's contract."""


class BadRequest(ServingError, ValueError):
    """The request, or a setting of it, is invalid."""


class BatchTooLarge(BadRequest):
    """The request holds more photos than the model takes; an earlier version may have taken them."""


class Forbidden(ServingError, ValueError):
    """The server requires another token for this call."""


class Untrusted(ServingError, ValueError):
    """No trusted TLS connection could be made."""


class ContractChanged(ServingError, ValueError):
    """Input size, k or embedding width differ from those of the configured version."""


class RepositoryError(ServingError):
    """Base class of the model repository's errors."""


class VersionNotFound(RepositoryError, ValueError):
    """The repository has no such version."""


class VersionInUse(RepositoryError, ValueError):
    """A version with this number exists already."""


class DiskFull(RepositoryError, ValueError):
    """No space is left on the device."""


class CorruptVersion(RepositoryError, RuntimeError):
    """A file does not match the hash in the version's lineage."""


class ServerUnavailable(ServingError, RuntimeError):
    """No server answers."""


class ModelNotReady(ServingError, RuntimeError):
    """The server answers, but the model does not."""


class RequestTimeout(ServingError, RuntimeError):
    """No answer came before the deadline."""


class RequestRejected(ServingError, RuntimeError):
    """The queue is full, or another request made the common batch invalid."""


class GoldenMismatch(ServingError, RuntimeError):
    """A runtime, here or at the server, answers a golden image differently than when the version was written."""
