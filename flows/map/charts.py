"""Charts of a workspace for the pages: found, or made in the background. Threads may share them."""

from __future__ import annotations

import threading
from collections import OrderedDict

from contract import CleanShelfError
from flows.map.chart import Chart, chart_of
from flows.map.maps import Maps
from flows.review.photos import Photos

KEPT = 2  # charts in memory, about 80 MB each at 2.5 million photos


class Making:
    """The map of one data version on its way; `line` says how far it is, `failure` why it ended without a map."""

    def __init__(self, maps: Maps, photos: Photos) -> None:
        self.line, self.failure = "starting", ""
        self._thread = threading.Thread(target=self._work, args=(maps, photos), daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """True until it ended."""
        return self._thread.is_alive()

    def _work(self, maps: Maps, photos: Photos) -> None:
        try:
            maps.make(photos, say=self._say)
        except CleanShelfError as error:
            self.failure = str(error)
        except Exception as error:
            self.failure = f"the map was not made ({error}); try again"

    def _say(self, line: str) -> None:
        self.line = line


class Charts:
    """The newest charts, by data version, and the maps that are being made."""

    def __init__(self, maps: Maps) -> None:
        self._maps, self._lock = maps, threading.Lock()
        self._kept: OrderedDict[str, Chart] = OrderedDict()
        self._making: dict[str, Making] = {}

    def find(self, photos: Photos) -> Chart | None:
        """The chart of a data version, if its map was made.

        Raises:
            InputError: it cannot be made; the message says why, and what would help.
        """
        with self._lock:
            chart = self._kept.get(photos.version)
            if chart is None and (points := self._maps.find(photos)):
                chart = self._kept[photos.version] = chart_of(photos, points)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return chart

    def make(self, photos: Photos) -> None:
        """Starts to make the map of a data version, unless that is under way."""
        with self._lock:
            running = self._making.get(photos.version)
            if running is None or not running.is_running:
                self._making[photos.version] = Making(self._maps, photos)

    def making(self, photos: Photos) -> Making | None:
        """The map of a data version on its way, or as it ended; None if no one asked for it."""
        return self._making.get(photos.version)
