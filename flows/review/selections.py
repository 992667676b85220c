"""Photos that someone chose by other means than filters, such as on the map: kept in memory under a token."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.errors import InputError

KEPT = 32  # selections in memory, at most 20 MB each at 2.5 million photos


@dataclass(frozen=True)
class Selection:
    """Photos of one data version; id: (N,) uint64, sorted."""

    version: str
    id: NDArray[np.uint64]

    def marks(self, ids: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """(M,) True for each of these ids that is selected."""
        if not len(self.id):
            return np.zeros(len(ids), np.bool_)
        found: NDArray[np.bool_] = self.id[np.minimum(np.searchsorted(self.id, ids), len(self.id) - 1)] == ids
        return found


class Selections:
    """The newest selections of all people. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Selection] = OrderedDict()

    def add(self, selection: Selection) -> str:
        """A token for the selection, which may stand in an address."""
        token = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[token] = selection
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return token

    def get(self, token: str) -> Selection:
        """The selection of a token.

        Raises:
            InputError: it is not in memory any more.
        """
        with self._lock:
            found = self._kept.get(token)
        if found is None:
            raise InputError("this selection is not kept any more; choose the photos on the map again")
        return found
