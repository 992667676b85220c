"""Errors of training, cleaning and export.

ModelError
├── ConfigError (ValueError)          a recipe key, value, backbone or loss that does not exist or cannot be used
├── ManifestError (ValueError)        a data version whose tables cannot be used
├── BadTable (ValueError)             a table of the user that cannot be read
├── WeightsMismatch (ValueError)      weights that are not available, or do not match the backbone
├── CleaningError (ValueError)        labels, probabilities or embeddings that cleaning cannot use
├── BatchError (ValueError)           logits or targets that a loss cannot use
├── CheckpointMismatch (ValueError)   a checkpoint of other data or another configuration
├── EnrolmentError (ValueError)       a product that cannot be added to or removed from a graph
├── WorkerLost (RuntimeError)         another worker of the same command ended, or its machine does not answer
├── LoaderError (RuntimeError)         a loader process died or does not answer
└── ExportError (RuntimeError)
    └── ParityError                   the ONNX graph and the torch module give different answers
"""

from __future__ import annotations

from contract import CleanShelfError


class ModelError(CleanShelfError):
    """Base of all errors of this package."""


class ConfigError(ModelError, ValueError):
    """A recipe cannot be used as written."""


class ManifestError(ModelError, ValueError):
    """The tables of a data version cannot be used."""


class CleaningError(ModelError, ValueError):
    """Labels cannot be cleaned with the given arrays."""


class BadTable(ModelError, ValueError):
    """A table that a user wrote cannot be read."""


class WeightsMismatch(ModelError, ValueError):
    """Weights that a network should start from are not available, or do not match the backbone."""


class BatchError(ModelError, ValueError):
    """A loss got logits or targets that it cannot use."""


class CheckpointMismatch(ModelError, ValueError):
    """A checkpoint belongs to other data or another configuration."""


class EnrolmentError(ModelError, ValueError):
    """A product cannot be added to a graph, or removed from it."""


class WorkerLost(ModelError, RuntimeError):
    """Another worker of the same training ended, or its machine no longer answers."""


class LoaderError(ModelError, RuntimeError):
    """A process that decodes photos died, or does not answer."""


class ExportError(ModelError, RuntimeError):
    """The graph could not be written."""


class ParityError(ExportError):
    """The graph and the torch module give different answers."""
