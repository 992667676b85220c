"""A table written in parts, so that a killed run loses at most the part that it was working on.

results.parquet            appears at the end, complete, by a rename; or .csv, or .jsonl
.results.parquet.parts/    exists while the run lasts
  plan.json                model and folder of the rows; a run with another plan is refused
  000000.parquet ...       synced and renamed; each becomes a row group of the table
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
from flows.workspace.tables import check_out, write_table


@dataclass(frozen=True)
class Parts:
    """The parts of the table `out`."""

    out: Path
    schema: pa.Schema

    @classmethod
    @contextmanager
    def of(cls, out: Path, schema: pa.Schema, *, plan: Mapping[str, Any]) -> Iterator[Parts]:
        """The parts that earlier runs left, or none; locked for the block.

        Raises:
            InputError: `out` exists already, cannot be written, or was begun with another plan.
            WorkspaceBusy: another run is writing it.
            DiskFull: no space is left; finished parts are kept.
        """
        parts = cls(out, schema)
        parts.check()
        with or_disk_full(f"writing {out}"):
            parts.folder.mkdir(exist_ok=True)
            lock = os.open(parts.folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                parts._keep(plan)
                yield parts
            except BlockingIOError:
                raise WorkspaceBusy(f"another run is writing {out}; wait for it, or name another file") from None
            finally:
                os.close(lock)

    def check(self) -> None:
        """Checks that the table can be written, before anything else starts.

        Raises:
            InputError: the suffix of `out` is unknown, it exists already, or its folder is missing or cannot be written.
        """
        check_out(self.out)
        if self.out.exists() and not self.folder.exists():
            raise InputError(f"{self.out} exists already; remove it or name another file")

    @property
    def folder(self) -> Path:
        """Folder of the parts; hidden, so that it is not taken for photos if `out` lies among them."""
        return self.out.with_name(f".{self.out.name}.parts")

    def columns(self, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
        """These columns of each part."""
        for part in self._files():
            yield pq.read_table(part, columns=list(names)).to_pydict()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes one more part; it is on the disk when this returns."""
        target = self.folder / f"{len(self._files()):06}.parquet"
        partial = target.with_suffix(".partial")
        pq.write_table(pa.Table.from_pylist(list(rows), schema=self.schema), partial)
        sync(partial)
        partial.replace(target)
        sync(self.folder)

    def join(self) -> None:
        """Joins the parts to the table, with one part in memory at a time, and removes them."""
        if not self.out.exists():
            partial = self.folder / "whole.partial"
            write_table(map(pq.read_table, self._files()), partial, schema=self.schema, suffix=self.out.suffix)
            sync(partial)
            partial.replace(self.out)
            sync(self.out.parent)
        shutil.rmtree(self.folder)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.parquet"))

    def _keep(self, plan: Mapping[str, Any]) -> None:
        """Writes the plan, or checks that it is the one of the parts."""
        path, text = self.folder / "plan.json", json.dumps(plan, sort_keys=True)
        former = path.read_text() if path.exists() else text
        if former != text:
            raise InputError(
                f"{self.out} was begun with {former} and this run has {text}; use the same, or remove {self.folder} "
                "to start over"
            )
        overwrite(path, text.encode())
