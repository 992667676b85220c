"""Errors of the flows, with the exit codes of the command.

FlowError
├── InputError (ValueError, exit 2)     the user can fix it
│   ├── BadDelivery                     a source folder or manifest that cannot be ingested
│   ├── WorkspaceMissing                the folder is not a workspace; run `cleanshelf init`
│   ├── WorkspaceBusy                   another process holds the workspace's lock
│   ├── UnknownVersion                  no data or model version of that name
│   ├── UnknownRun                      no run of that name
│   ├── UnknownPhoto                    no photo of that id
│   ├── Decided                         another person has decided about the photo in the meantime
│   ├── Denied                          the caller's token does not allow this
│   ├── PurgedVersion                   a data version with photos that were purged
│   ├── Unconfirmed                     a purge that was not confirmed, or was interrupted
│   ├── EndpointMissing                 no server is running; start one with `cleanshelf serve`
│   ├── LocalEdits                      data/ was edited by hand; nothing is overwritten
│   └── DiskFull                        no space left; nothing half-written remains
├── WorldError (RuntimeError, exit 3)   something failed that the user did not cause
│   ├── CorruptObject                   bytes that no longer match their hash, or a damaged record
│   ├── MissingFromRemote               an object that the DVC remote lacks
│   ├── ChildFailed                     a child process that crashed or was killed
│   └── AccountsDiffer                  files of a delivery that are not accounted for
└── GateRefused (exit 4)                a model that must not be promoted, with reasons
"""

from __future__ import annotations

from typing import Any

from contract import CleanShelfError


class FlowError(CleanShelfError):
    """Base of all errors of this package."""


class InputError(FlowError, ValueError):
    """The user can fix it."""


class BadDelivery(InputError):
    """The source folder or manifest cannot be ingested."""


class WorkspaceMissing(InputError):
    """The folder is not a workspace."""


class WorkspaceBusy(InputError):
    """Another process holds the workspace's lock."""


class UnknownVersion(InputError):
    """There is no data or model version of that name."""


class UnknownRun(InputError):
    """There is no run of that name."""


class UnknownPhoto(InputError):
    """There is no photo of that id."""


class Decided(InputError):
    """Another person has decided about the photo in the meantime."""


class Denied(InputError):
    """The caller of a page is not who they have to be, or may not do this."""


class PurgedVersion(InputError):
    """The data version contained photos that were purged."""


class Unconfirmed(InputError):
    """A purge needs the user's confirmation, or has to be completed first; `affected`: what it would delete."""

    def __init__(self, message: str, affected: Any = None) -> None:
        super().__init__(message)
        self.affected = affected


class EndpointMissing(InputError):
    """No server is running for the workspace."""


class LocalEdits(InputError):
    """`data/` differs from the selected version."""


class DiskFull(InputError):
    """No space is left on the device; nothing half-written remains."""


class WorldError(FlowError, RuntimeError):
    """Something failed that the user did not cause."""


class CorruptObject(WorldError):
    """Bytes do not match their hash."""


class MissingFromRemote(WorldError):
    """The DVC remote lacks an object."""


class ChildFailed(WorldError):
    """A child process crashed or was killed."""


class AccountsDiffer(WorldError):
    """The files of a delivery and what became of them do not add up."""


class GateRefused(FlowError):
    """A gate refused the model; `reasons` lists why. `report` is the report of the run, if a run made the model."""

    def __init__(self, reasons: list[str], report: Any = None) -> None:
        super().__init__("refused: " + "; ".join(reasons))
        self.reasons, self.report = reasons, report
