"""Error for bytes that are not a usable photo."""

from __future__ import annotations

from typing import Any

from contract import CleanShelfError


class BadPhoto(CleanShelfError, ValueError):
    """The bytes are not a usable photo; the message says why.

    `reason` is the fault alone; the message may also name the photo and say what to do. `answers`: if a list of photos
    was to be recognised, the answer to each of them, or its BadPhoto, in the order of the list.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message
        self.answers: list[Any] = []
