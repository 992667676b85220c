"""What can go wrong in learning.

ModelError
├── ConfigError (ValueError)          a recipe key, value, backbone or loss that does not exist or does not fit
├── ManifestError (ValueError)        a data version whose tables cannot be used
├── WeightsMismatch (ValueError)      a weights file that does not fit the backbone
├── CleaningError (ValueError)        labels, probabilities or embeddings that cannot be judged by
├── BatchError (ValueError)           logits or targets that a loss cannot take
├── CheckpointMismatch (ValueError)   a checkpoint of other data or another configuration
├── EnrolmentError (ValueError)       a product that a finished graph cannot take in or give up
└── ExportError (RuntimeError)
    └── ParityError                   the ONNX graph does not answer as the torch module does
"""

from __future__ import annotations

from contract import CleanShelfError


class ModelError(CleanShelfError):
    """Base of everything raised on purpose by models."""


class ConfigError(ModelError, ValueError):
    """A recipe cannot be used as written."""


class ManifestError(ModelError, ValueError):
    """A data version's tables cannot be used."""


class CleaningError(ModelError, ValueError):
    """Labels cannot be judged by what was given."""


class WeightsMismatch(ModelError, ValueError):
    """A weights file does not fit."""


class BatchError(ModelError, ValueError):
    """A loss was given logits or targets that it cannot take."""


class CheckpointMismatch(ModelError, ValueError):
    """A checkpoint belongs to other data or another configuration."""


class EnrolmentError(ModelError, ValueError):
    """A product cannot be added to a finished graph, or taken out of it."""


class ExportError(ModelError, RuntimeError):
    """The graph could not be written."""


class ParityError(ExportError):
    """The graph differs from the torch module."""
