"""Random access to the photos in the tar shards of a data version.

Loader processes get numbers in arrays and the names of the shards, a few thousand; ids and labels stay behind.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.data.manifest import Manifest
from models.errors import ManifestError
from pixels import BadPhoto

MOST_OPEN = 256  # shards; systems allow 1,024 files by default, and 2.5 million photos may lie in more


class Shards:
    """The photos of some rows of a manifest, by position.

    Raises:
        ManifestError: a shard is missing.
    """

    def __init__(self, manifest: Manifest, rows: NDArray[np.int64]) -> None:
        encoded = pa.array(manifest.shard[rows], pa.string()).dictionary_encode()
        self.paths = [str(manifest.data / "shards" / f"{name}.tar") for name in encoded.dictionary.to_pylist()]
        self.shard = encoded.indices.to_numpy()
        self.offset, self.size = manifest.offset[rows], manifest.size[rows]
        self.files = OrderedDict[int, _Open]()
        for path in self.paths:
            if not os.path.isfile(path):
                raise ManifestError(f"{path}: no such shard; restore the data version")

    def name(self, position: int) -> str:
        """File name of the shard with this photo."""
        return Path(self.paths[self.shard[position]]).name

    def read(self, position: int) -> bytes:
        """The bytes of a photo.

        Raises:
            BadPhoto: they cannot be read, or the shard ends too early.
        """
        offset, size = int(self.offset[position]), int(self.size[position])
        try:
            file = self._file(int(self.shard[position]))
            photo = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise BadPhoto(f"cannot be read ({error.strerror})") from None
        if len(photo) != size:
            raise BadPhoto(f"the shard ends before offset {offset} + size {size} of index.parquet")
        return photo

    def _file(self, code: int) -> _Open:
        """An open shard; one that another thread pushes out is closed when its last reader lets go of it."""
        file = self.files.get(code)
        if file is None:
            file = self.files[code] = _Open(self.paths[code])
            while len(self.files) > MOST_OPEN:
                self.files.popitem(last=False)
        return file


class _Open:
    """A file that is open as long as anyone holds this."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
