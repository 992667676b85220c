"""What can go wrong in serving.

ServingError
├── PortInUse (ValueError)              another process listens on a port the server needs
├── AlreadyRunning (ValueError)         this state directory already has a live server
├── BadEnvironment (ValueError)         the server's private environment would be silently wrong
├── BadGraph (ValueError)               a graph, labels or golden images that break the endpoint's contract
├── BadRequest (ValueError)             wrong shape, type or batch
├── Forbidden (ValueError)              the token is missing or is another one; asking again will not help
├── Untrusted (ValueError)              the server's certificate is not vouched for, or it speaks no TLS
├── ContractChanged (ValueError)        a graph whose signature differs from the one now served: clients would break
├── RepositoryError
│   ├── VersionNotFound (ValueError)    no such version
│   ├── VersionInUse (ValueError)       the number is taken; versions are immutable
│   ├── DiskFull (ValueError)           no space left; nothing half-written remains
│   └── CorruptVersion (RuntimeError)   a file that no longer matches its hash
├── ServerUnavailable (RuntimeError)    nobody answers, or the server ended
├── ModelNotReady (RuntimeError)        the server answers, the model does not
├── RequestTimeout (RuntimeError)       no answer within the deadline
├── RequestRejected (RuntimeError)      the server's queue is full, or another request spoilt its batch; try again
└── GoldenMismatch (RuntimeError)       the server answers, but not what the graph answers locally

The ValueError family is for the user to put right (exit 2), the RuntimeError family is the world's (exit 3).
"""

from __future__ import annotations

from contract import CleanShelfError


class ServingError(CleanShelfError):
    """Base of everything raised on purpose by serving."""


class PortInUse(ServingError, ValueError):
    """Another process listens there."""


class AlreadyRunning(ServingError, ValueError):
    """One state directory has one server."""


class BadEnvironment(ServingError, ValueError):
    """The private environment of the server lacks something or would give silently wrong answers."""


class BadGraph(ServingError, ValueError):
    """Not what the endpoint's contract asks of a graph, its labels or its golden images."""


class BadRequest(ServingError, ValueError):
    """The server refuses this input."""


class Forbidden(ServingError, ValueError):
    """The server wants another token for this call."""


class Untrusted(ServingError, ValueError):
    """TLS could not be agreed on."""


class ContractChanged(ServingError, ValueError):
    """Input size, k or embedding width differ from the version now configured."""


class RepositoryError(ServingError):
    """Base of what goes wrong in the model repository."""


class VersionNotFound(RepositoryError, ValueError):
    """No such version."""


class VersionInUse(RepositoryError, ValueError):
    """The version exists already."""


class DiskFull(RepositoryError, ValueError):
    """No space left on the device."""


class CorruptVersion(RepositoryError, RuntimeError):
    """Bytes do not match the version's lineage."""


class ServerUnavailable(ServingError, RuntimeError):
    """No server answers."""


class ModelNotReady(ServingError, RuntimeError):
    """The server lives, the model does not answer."""


class RequestTimeout(ServingError, RuntimeError):
    """The deadline passed."""


class RequestRejected(ServingError, RuntimeError):
    """The queue is full, or the batch was spoilt by another request."""


class GoldenMismatch(ServingError, RuntimeError):
    """The answer over the wire differs from the one computed when the version was staged."""
