"""What can go wrong in the flows.

FlowError
├── InputError (ValueError, exit 2)     what the user can put right
│   ├── BadDelivery                     a source folder or manifest that cannot be ingested
│   ├── WorkspaceMissing                no workspace here; run `cleanshelf init`
│   ├── WorkspaceBusy                   another run holds the workspace
│   ├── UnknownVersion                  no data or model version of that name
│   ├── UnknownPhoto                    no photo of that id
│   ├── PurgedVersion                   a data version that held photos deleted for good
│   ├── Unconfirmed                     a deletion for good that was not confirmed, or was interrupted
│   ├── EndpointMissing                 no server runs; start one with `cleanshelf serve`
│   ├── LocalEdits                      data/ was edited by hand; nothing is overwritten
│   └── DiskFull                        no space left; nothing half-written remains
├── WorldError (RuntimeError, exit 3)   what broke by itself
│   ├── CorruptObject                   bytes that no longer match their hash
│   ├── MissingFromRemote               an object the remote should hold and does not
│   └── ChildFailed                     a training or export process that ended badly
└── GateRefused (exit 4)                a model that must not be served, with reasons
"""

from __future__ import annotations

from contract import CleanShelfError


class FlowError(CleanShelfError):
    """Base of everything raised on purpose by flows."""


class InputError(FlowError, ValueError):
    """The user can put this right."""


class BadDelivery(InputError):
    """The source cannot be ingested."""


class WorkspaceMissing(InputError):
    """There is no workspace at that place."""


class WorkspaceBusy(InputError):
    """Another process holds the workspace."""


class UnknownVersion(InputError):
    """No version of that name."""


class UnknownPhoto(InputError):
    """No photo of that name."""


class PurgedVersion(InputError):
    """The version held photos that were deleted for good."""


class Unconfirmed(InputError):
    """A deletion for good needs a word of the user."""


class EndpointMissing(InputError):
    """No server runs for the workspace."""


class LocalEdits(InputError):
    """data/ differs from the selected version."""


class DiskFull(InputError):
    """No space left on the device."""


class WorldError(FlowError, RuntimeError):
    """Something broke by itself."""


class CorruptObject(WorldError):
    """Bytes do not match their hash."""


class MissingFromRemote(WorldError):
    """The DVC remote lacks an object."""


class ChildFailed(WorldError):
    """A child process ended badly."""


class GateRefused(FlowError):
    """A gate said no; `reasons` says why."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("refused: " + "; ".join(reasons))
        self.reasons = reasons
