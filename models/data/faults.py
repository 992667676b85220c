"""Photos that cannot be decoded in the middle of a pass: named, counted, and a reason to stop if they are many."""

from __future__ import annotations

import logging
from collections.abc import Callable

from models.errors import ManifestError

log = logging.getLogger(__name__)

LEAST, SHARE = 3, 0.01  # faults that are always accepted, and their share of the photos
NAMED = 5  # in the message that stops a run


class Faults:
    """Faulty ones among a number of photos.

    Args:
        name: names the photo at a position and its shard, for messages.
    """

    def __init__(self, num_photos: int, name: Callable[[int], str]) -> None:
        self.most, self.name = max(LEAST, int(SHARE * num_photos)), name
        self.why: dict[int, str] = {}

    def note(self, position: int, why: str) -> None:
        """Counts a photo and names it in the log, the first time.

        Raises:
            ManifestError: too many photos are faulty.
        """
        if position in self.why:
            return
        self.why[position] = why
        log.warning("%s cannot be used: %s; %d so far, the run stops after %d", self.name(position), why,
                    len(self.why), self.most)  # fmt: skip
        if len(self.why) > self.most:
            raise self.error("more than a run accepts")

    def error(self, reason: str) -> ManifestError:
        """The error that names the first of them."""
        named = "; ".join(f"{self.name(position)}: {why}" for position, why in [*self.why.items()][:NAMED])
        return ManifestError(f"{len(self.why)} photos cannot be decoded, {reason}: {named}; restore the data version")
