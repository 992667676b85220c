"""Maps of a workspace: looked up, or made in a child process that can be killed and repeated at any time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows.data.garbage import Unused
from flows.data.pointer import READY
from flows.data.purge_record import REF
from flows.errors import InputError, PurgedVersion, WorldError
from flows.map.points import Points, file_of, read_points
from flows.map.sources import NETWORK, find_source
from flows.review.photos import Photos, read_photos
from flows.run.launch import run_child
from flows.settings import INSTALL_MAP
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger

LOCK = "map"


@dataclass(frozen=True)
class Maps:
    """The maps of one workspace; data versions of the same photos and scores share one."""

    workspace: Workspace

    def find(self, photos: Photos) -> Points | None:
        """The map of a data version, if it was made.

        Raises:
            InputError: it cannot be made; the message says why, and what would help.
        """
        return read_points(self._file(photos))

    def make(self, photos: Photos, *, say: Callable[[str], None]) -> Points:
        """The map of a data version, which is made unless it is there.

        say: called with each line about the progress.

        Raises:
            InputError: as `find`, or umap-learn is not installed.
            WorkspaceBusy: another process makes a map.
            PurgedVersion: photos were purged meanwhile; nothing was kept.
            DiskFull, ChildFailed, WorldError: it was not made.
        """
        if found := self.find(photos):
            return found
        if importlib.util.find_spec("umap") is None:
            raise InputError(f"the map needs umap-learn, which is not installed; {INSTALL_MAP}, and try again")
        file = self._file(photos)
        with self.workspace.lock("map", name=LOCK):
            purged = self._purges()
            file.parent.mkdir(parents=True, exist_ok=True)
            for leftover in file.parent.glob(".*"):  # of a killed child
                leftover.unlink()
            arguments = ["--data", photos.folder, "--stages", self._stages, "--out", file]
            on_gpu = find_source(self._stages, photos).name == NETWORK
            run_child("flows.map.make", arguments, say=say, title="map", on_gpu=on_gpu)
            if self._purges() != purged:  # the purge may have looked before the file was there
                file.unlink(missing_ok=True)
                raise PurgedVersion("photos were purged while the map was made; open the map again")
        if (made := read_points(file)) is None:
            raise WorldError(f"the map was made and {file} cannot be read; try again")
        return made

    def unused(self, gone: Iterable[Path] = ()) -> list[Unused]:
        """Maps of no data version that has a copy under versions/, and what killed computations left.

        A map is made again when it is looked at. The caller holds the lock LOCK.

        gone: copies that do not count, as they are to be removed.
        """
        files = sorted(path for path in self.workspace.maps.glob("*") if path.is_file())
        copies = set(self.workspace.versions.iterdir()) - set(gone) if files else set()
        shown = set()
        for copy in sorted(path for path in copies if (path / READY).exists()):
            with suppress(InputError):  # it was never cleaned, or its networks are gone, so it shows no map
                shown.add(self._file(read_photos(copy, version=copy.name)))
        return [Unused(path, "map of no version here", path.stat().st_size) for path in files if path not in shown]

    def _file(self, photos: Photos) -> Path:
        return file_of(self.workspace.maps, find_source(self._stages, photos), photos)

    @property
    def _stages(self) -> Path:
        return self.workspace.runs / "stages"

    def _purges(self) -> str | None:
        return Ledger(self.workspace.root).tip(REF)
