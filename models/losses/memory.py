"""What a loss remembers of every sample: columns beside the training set, keyed by the stable id and the label they are about.

in an epoch     note(index, ...)     every worker notes what it sees
after it        merge()              all workers' notes, in one order, so that equal notes give equal decisions bit for bit
in checkpoints  state(), load()      columns and notes of the running epoch; tensors, strings and whole numbers only
between runs    write(), carry()     samples.parquet, which outlives a change of the data version
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from durable import replacing
from models import distributed
from models.errors import BatchError, CheckpointMismatch
from models.losses.samples import Samples

FORMAT = 1
ABOUT = b"cleanshelf.samples"  # key of the file's metadata
SHA256 = b"sha256"  # of what the metadata say, which Parquet's own checksums leave out
ANEW = "leave train.state empty to start anew"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value per sample, or `width` of them; what is known of a new sample is `fill`.

    of_classes: the values are positions in the class list, -1 for none.
    """

    dtype: str
    fill: float = 0.0
    width: int = 0
    of_classes: bool = False

    def new(self, length: int) -> NDArray[Any]:
        return np.full((length, self.width) if self.width else length, self.fill, self.dtype)


@dataclass(frozen=True)
class Notes:
    """What was noted in an epoch.

    index: (M,) int64, rising; a sample seen twice occurs twice. values: (M, w) float32 each.
    """

    index: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    def mean(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(m,) samples that were seen, once each, and the mean of what was noted of them, (m,)."""
        index, first, count = np.unique(self.index, return_index=True, return_counts=True)
        values = self.values[name][:, 0].astype(np.float64)
        return index, np.add.reduceat(values, first) / count if len(index) else values


@dataclass(frozen=True)
class Counts:
    """Samples whose state was kept, reset because the label changed, dropped because they are gone, and new ones."""

    kept: int
    reset: int
    dropped: int
    new: int


class Memory:
    """Columns aligned with `Samples`, and the notes of the running epoch.

    Args:
        name: of the loss, and `meaning`: its parameters without which the columns cannot be understood.
    """

    def __init__(
        self, samples: Samples, columns: Mapping[str, Column], *, name: str, meaning: Mapping[str, Any]
    ) -> None:
        self.id, self.target, self.classes = np.asarray(samples.id, str), samples.target, samples.classes
        self.columns, self.name = dict(columns), name
        self.meaning = dict(meaning)
        self.values = {key: column.new(len(self)) for key, column in columns.items()}
        self.widths: dict[str, int] = {}
        self._pending: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.values[name]

    def expect(self, **widths: int) -> None:
        """Says what an epoch notes, and how many numbers each; what is pending of the same epoch stays."""
        if widths != self.widths:
            self.widths, self._pending = widths, []

    def note(self, index: Tensor, **values: Tensor) -> None:
        """Adds observations, (n,) or (n, w) each, of n samples; the same sample may come again."""
        index = index.detach().cpu()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise BatchError(
                f"index: {int(index.min())} to {int(index.max())}; this loss began with {len(self)} samples"
            )
        columns = [values[name].detach().reshape(len(index), -1).float().cpu() for name in self.widths]
        self._pending.append((index, torch.cat(columns, 1)))

    def merge(self) -> Notes:
        """All workers' notes of the epoch, which is over. Every worker must call this."""
        index, rows = self._gather()
        self._pending = []
        parts = np.split(rows.numpy(), np.cumsum(list(self.widths.values()))[:-1], axis=1)
        return Notes(index.numpy(), dict(zip(self.widths, parts, strict=True)))

    def _gather(self) -> tuple[Tensor, Tensor]:
        none = (torch.empty(0, dtype=torch.int64), torch.empty(0, sum(self.widths.values())))
        if not self.widths:  # alike on every worker
            return none
        indices, rows = zip(none, *self._pending, strict=True)
        return distributed.gather(torch.cat(indices), torch.cat(rows))

    def state(self) -> dict[str, Any]:
        """For a checkpoint, the same on every worker. Every worker must call this."""
        index, rows = self._gather()
        columns = {name: torch.from_numpy(values.copy()) for name, values in self.values.items()}
        return {
            "samples": self._digest,
            "about": self._about(),
            "columns": columns,
            "widths": dict(self.widths),
            "index": index,
            "notes": rows,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was called; the first worker takes all notes.

        Raises:
            CheckpointMismatch: it is about other samples, or of another loss.
        """
        where = "loss state of the checkpoint"
        self._check(where, json.loads(state["about"]), way_out="delete checkpoint.pt to start this stage anew")
        if state["samples"] != self._digest:
            lengths = {len(values) for values in state["columns"].values()}
            raise CheckpointMismatch(
                f"{where}: about {min(lengths)} samples, and not the {len(self)} of this training with their labels; "
                "delete checkpoint.pt to start this stage anew"
            )
        self.values = {name: values.numpy().copy() for name, values in state["columns"].items()}
        self.widths = dict(state["widths"])
        self._pending = [(state["index"], state["notes"])] if distributed.rank() == 0 else []

    def write(self, path: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """samples.parquet: id, label (its name) and the columns, a row per sample; whole, or as it was before.

        Args:
            params: of the loss, for the reader; `carry` looks at those only that the columns depend on.
        """
        names = pa.array(self.classes, pa.string())
        label = pa.DictionaryArray.from_arrays(pa.array(self.target, pa.int32()), names)
        table = pa.table({"id": pa.array(self.id), "label": label} | {k: _to_arrow(v) for k, v in self.values.items()})
        about = {ABOUT: self._about(), b"classes": json.dumps(self.classes), b"params": json.dumps(dict(params or {}))}
        about[SHA256] = _digest(about[ABOUT], about[b"classes"])
        with replacing(path) as file:
            pq.write_table(table.replace_schema_metadata(about), file, compression="zstd", write_page_checksum=True)

    def carry(self, path: Path) -> Counts:
        """Takes over what `write` left for another data version; called before the first epoch.

        Kept where id and label (by name) agree, else as for a new sample. Positions of classes follow the classes' names.

        Raises:
            CheckpointMismatch: unreadable, of another loss, or with a parameter that changes what the columns mean.
        """
        table = self._read(path)
        position = {name: at for at, name in enumerate(self.classes)}
        theirs = json.loads(table.schema.metadata[b"classes"])
        moved = np.array([*(position.get(name, -1) for name in theirs), -1])  # the last for -1 itself
        ids = table["id"].to_numpy().astype(str)
        label = table["label"].cast(pa.string()).combine_chunks().dictionary_encode()
        target = np.array([position.get(name, -1) for name in label.dictionary.to_pylist()])[label.indices.to_numpy()]
        order = np.argsort(ids)
        at = order[np.searchsorted(ids[order], self.id).clip(max=len(ids) - 1)]
        found = ids[at] == self.id
        kept = found & (target[at] == self.target)
        for name, column in self.columns.items():
            values = _from_arrow(table[name], column)[at[kept]]
            self.values[name][kept] = moved[values] if column.of_classes else values
        reset = int(found.sum() - kept.sum())
        return Counts(int(kept.sum()), reset, len(ids) - int(found.sum()), int((~found).sum()))

    def _read(self, path: Path) -> pa.Table:
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            table.validate(full=True)
            said = table.schema.metadata
            about = json.loads(said[ABOUT])
            if said[SHA256].decode() != _digest(said[ABOUT].decode(), said[b"classes"].decode()):
                raise ValueError(SHA256)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CheckpointMismatch(f"{path} is no state of samples ({type(error).__name__}); {ANEW}") from None
        self._check(str(path), about, way_out=ANEW)
        absent = {"id", "label", *self.columns} - set(table.column_names)
        if absent or not len(table):
            raise CheckpointMismatch(f"{path}: no column {', '.join(sorted(absent))}, or no row; {ANEW}")
        return table

    def _about(self) -> str:
        columns = {name: asdict(column) for name, column in self.columns.items()}
        about = {"format": FORMAT, "loss": self.name, "params": self.meaning, "columns": columns}
        return json.dumps(about)

    def _check(self, where: str, theirs: Mapping[str, Any], *, way_out: str) -> None:
        ours, given = _flat(json.loads(self._about())), _flat(theirs)
        for field in ours | given:
            want, got = ours.get(field), given.get(field)
            if want != got:
                raise CheckpointMismatch(f"{where}: {field} is {got!r}, and this training has {want!r}; {way_out}")

    @cached_property
    def _digest(self) -> str:
        """Names the samples and their labels."""
        labels = np.array(self.classes)[self.target] if len(self) else np.empty(0, str)
        digest = hashlib.sha256()
        for sample, label in zip(self.id.tolist(), labels.tolist(), strict=True):
            digest.update(f"{sample}\0{label}\0".encode())
        return digest.hexdigest()


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """{"params": {"q": 1}} as {"params.q": 1}: what a message calls a field."""
    flat: dict[str, Any] = {}
    for key, value in about.items():
        flat |= {f"{key}.{inner}": x for inner, x in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _digest(*said: str) -> str:
    return hashlib.sha256("".join(said).encode()).hexdigest()


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _from_arrow(column: pa.ChunkedArray, like: Column) -> NDArray[Any]:
    chunk = column.combine_chunks()
    if not like.width:
        return np.asarray(chunk.to_numpy(zero_copy_only=False), like.dtype)
    return np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), like.dtype).reshape(-1, like.width)
