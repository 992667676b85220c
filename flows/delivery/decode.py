"""Decodes the photos of a delivery one after the other; each leaves one row in a table."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flows.data.columns import to_arrow
from flows.data.shards import Packed
from flows.delivery.claims import CLAIMS
from flows.delivery.merge import LOCATIONS
from flows.delivery.rows import Delivery, Refused
from flows.live import counted
from pixels import BadPhoto
from pixels.fingerprint import BYTES, read_fingerprint

# A decoded photo; all zeros if it cannot be decoded.
PHOTO = np.dtype([("sha256", "V32"), ("width", "i4"), ("height", "i4"), ("fingerprint", f"V{BYTES}")])

BATCH = 8  # photos that a thread takes at a time
PART = 65_536  # claims that are copied into order at a time


class Waiting(Protocol):
    """A batch of photos that is being opened, such as a future."""

    def result(self) -> Opened:
        """Waits for the batch and returns it."""


class Openers(NamedTuple):
    """Opens photos elsewhere: `submit` takes up to `batch` paths; at most `at_once` batches are pending."""

    submit: Callable[[list[str]], Waiting]
    batch: int
    at_once: int


@contextmanager
def threads() -> Iterator[Openers]:
    """Openers that use a thread per core."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        yield Openers(lambda files: pool.submit(open_photos, files), BATCH, 2 * workers)


@dataclass(frozen=True)
class Decoding:
    """The N usable rows of a delivery (columns of ROWS) in the order of their paths, while their photos are decoded.

    photo: (N,) of PHOTO. is_new: (N,) true if neither the base nor an earlier row has the photo. faults: reason of each
    refusal, by row.
    """

    folder: Path
    rows: pa.Table
    photo: NDArray[np.void]
    is_new: NDArray[np.bool_]
    faults: dict[int, str]

    @classmethod
    def of(cls, delivery: Delivery) -> Decoding:
        """Decoding of a delivery, before its first photo."""
        # Sorted by label too, so that the order of a manifest makes no difference.
        rows = delivery.rows.sort_by([("path", "ascending"), ("label", "ascending")])
        return cls(delivery.folder, rows, np.zeros(len(rows), PHOTO), np.zeros(len(rows), np.bool_), {})

    def new(
        self,
        is_known: Callable[[NDArray[np.bytes_]], NDArray[np.bool_]],
        purged: Collection[str],
        openers: Openers | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Yields id and bytes of each new photo, in order; `refused`, `claims` and `locations` need all of them taken.

        Args:
            is_known: tells for ids (N,) which of these photos the base holds, (N,).
            purged: SHA-256 of photos that are refused.
        """
        seen: set[bytes] = set()
        start = 0
        for opened in self._opened(openers):
            self.photo[start : start + len(opened.photo)] = opened.photo
            hashes = [sha256.tobytes() for sha256 in opened.photo["sha256"]]
            known = is_known(np.array([sha256[:8].hex() for sha256 in hashes], "S16"))
            for row, sha256, in_base, content, fault in zip(
                range(start, len(self.rows)), hashes, known, opened.content, opened.reason, strict=False
            ):
                if fault or sha256.hex() in purged:
                    self.faults[row] = fault or "was deleted for good by `data purge`"
                elif not in_base and sha256[:8] not in seen:
                    seen.add(sha256[:8])
                    self.is_new[row] = True
                    yield sha256[:8].hex(), content
            start += len(opened.photo)

    def _opened(self, openers: Openers | None) -> Iterator[Opened]:
        waiting: deque[Waiting] = deque()
        with nullcontext(openers) if openers else threads() as used, counted("decoding", len(self.rows)) as progress:
            for start in range(0, len(self.rows), used.batch):
                paths = self.rows["path"].slice(start, used.batch).to_pylist()
                waiting.append(used.submit([os.path.join(self.folder, path) for path in paths]))
                if len(waiting) > used.at_once:
                    yield waiting.popleft().result()
                    progress.add(used.batch)
            while waiting:
                yield waiting.popleft().result()
                progress.add(used.batch)

    def refused(self) -> list[Refused]:
        """Rows whose photos cannot be used."""
        rows = self.rows.take(pa.array(self.faults, pa.int64())).to_pylist()
        return [
            Refused(row["path"], row["label"], row["source"], "photo", fault)
            for row, fault in zip(rows, self.faults.values(), strict=True)
        ]

    def claims(self) -> pa.Table:
        """Rows of the usable photos: columns of CLAIMS, in the order of CLAIMS."""
        source = pc.rank(self.rows["source"], tiebreaker="dense").to_numpy()
        order = np.lexsort((source, self._sha256()))  # stable: then by path and label
        is_used = np.ones(len(self.rows), np.bool_)
        is_used[list(self.faults)] = False
        order = order[is_used[order]]
        parts = [self._claims(order[start : start + PART]) for start in range(0, len(order), PART)]
        return pa.Table.from_batches(parts, CLAIMS)

    def _claims(self, chosen: NDArray[np.int64]) -> pa.RecordBatch:
        photo, rows = self.photo[chosen], self.rows.take(pa.array(chosen)).combine_chunks()
        sha256 = to_arrow(photo["sha256"].tobytes().hex().encode(), 64).cast(pa.binary()).cast(pa.string())
        columns = {
            "id": pc.utf8_slice_codeunits(sha256, 0, 16),
            "sha256": sha256,
            "fingerprint": to_arrow(photo["fingerprint"].tobytes(), BYTES),
            **{name: photo[name] for name in ("width", "height")},
            **{name: rows[name].chunk(0) for name in rows.column_names},
        }
        return pa.record_batch([columns[name] for name in CLAIMS.names], schema=CLAIMS)

    def locations(self, packed: Packed) -> pa.Table:
        """Locations of the new photos, sorted by id: columns of LOCATIONS."""
        order = np.argsort(self._sha256()[self.is_new])
        names = pa.array(list(packed.shards), pa.string())
        columns = [names.take(pa.array(packed.shard[order])), packed.offset[order], packed.size[order]]
        return pa.table(columns, schema=LOCATIONS)

    def _sha256(self) -> NDArray[np.bytes_]:
        return np.frombuffer(self.photo["sha256"].tobytes(), "S32")


class Opened(NamedTuple):
    """A batch of N opened files, in the order of their paths.

    photo: (N,) of PHOTO. content: N times the bytes of the file, b"" if it is refused. reason: N times the reason of
    the refusal, "" if there is none.
    """

    photo: NDArray[np.void]
    content: list[bytes]
    reason: list[str]


def open_photos(files: Sequence[str]) -> Opened:
    """Reads, decodes and hashes each file. It needs only the paths, so it runs in any thread or process."""
    opened = [_open(file) for file in files]
    photos = np.array([photo for photo, _, _ in opened], PHOTO)
    return Opened(photos, [content for _, content, _ in opened], [reason for _, _, reason in opened])


def _open(file: str) -> tuple[tuple[bytes, int, int, bytes], bytes, str]:
    try:
        with open(file, "rb") as stream:
            content = stream.read()
        fingerprint, (width, height) = read_fingerprint(content)
    except BadPhoto as error:
        return (b"", 0, 0, b""), b"", str(error)
    except OSError as error:
        return (b"", 0, 0, b""), b"", f"cannot be read ({error.strerror})"
    return (hashlib.sha256(content).digest(), width, height, fingerprint.tobytes()), content, ""
