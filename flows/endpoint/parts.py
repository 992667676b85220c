"""A Parquet table written in parts, so that a killed run loses no more than the part it was at.

results.parquet            appears at the end, whole, by a rename
.results.parquet.parts/    while the run lasts
  plan.json                what the rows tell: another plan is not mixed in
  000000.parquet ...       synced and renamed; a row group of the table each
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from durable import overwrite, sync
from flows.errors import InputError, WorkspaceBusy
from flows.workspace.files import or_disk_full


@dataclass(frozen=True)
class Parts:
    """The parts of the table `out`."""

    out: Path
    schema: pa.Schema

    @classmethod
    @contextmanager
    def of(cls, out: Path, schema: pa.Schema, *, plan: Mapping[str, Any]) -> Iterator[Parts]:
        """Those that earlier runs left, or none yet; locked for this run.

        Raises:
            InputError: `out` is there already, or was begun with another plan.
            WorkspaceBusy: another run writes it now.
            DiskFull: what is done stays.
        """
        parts = cls(out, schema)
        if out.exists() and not parts.folder.exists():
            raise InputError(f"{out} is there already; remove it or name another file")
        with or_disk_full(f"writing {out}"):
            parts.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(parts.folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                parts._keep(plan)
                yield parts
            except BlockingIOError:
                raise WorkspaceBusy(f"another run writes {out}; wait for it, or name another file") from None
            finally:
                os.close(lock)

    @property
    def folder(self) -> Path:
        """Hidden, so that it is not taken for photos where `out` lies among them."""
        return self.out.with_name(f".{self.out.name}.parts")

    def columns(self, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """Those columns of each part; of the table itself, if a run was killed once that was there."""
        for part in [self.out] if self.out.exists() else self._files():
            yield pq.read_table(part, columns=list(names)).to_pydict()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """One more part; on the disk when this returns."""
        target = self.folder / f"{len(self._files()):06}.parquet"
        partial = target.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(list(rows), schema=self.schema), partial)
        sync(partial)
        partial.replace(target)
        sync(self.folder)

    def join(self) -> None:
        """Make the table of them, one part in memory at a time, and sweep them away."""
        if not self.out.exists():
            partial = self.folder / "whole.partial"
            with pq.ParquetWriter(partial, self.schema) as writer:
                for part in self._files():
                    writer.write_table(pq.read_table(part))
            sync(partial)
            partial.replace(self.out)
            sync(self.out.parent)
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def _keep(self, plan: Mapping[str, Any]) -> None:
        path, text = self.folder / "plan.json", json.dumps(plan, sort_keys=True)
        former = path.read_text() if path.exists() else text
        if former != text:
            raise InputError(
                f"{self.out} was begun with {former}, and this is {text}; ask the same, or remove {self.folder} to begin anew"
            )
        overwrite(path, text.encode())
