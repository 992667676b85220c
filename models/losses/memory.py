"""State of a loss per sample: columns beside the training set, keyed by the stable id and the label of each sample.

in an epoch     note(index, ...)     every worker notes its own observations
after it        merge()              notes of all workers in one order: equal notes give equal decisions, bit for bit
in checkpoints  state(), load()      columns and notes of the running epoch; tensors, strings and integers only
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
from models.data.positions import positions
from models.errors import BatchError, CheckpointMismatch
from models.losses.samples import Samples

FORMAT = 1
ABOUT = b"cleanshelf.samples"  # key in the metadata of the file
SHA256 = b"sha256"  # hash of the metadata, which the checksums of Parquet do not cover
RESTART = "leave train.state empty to start afresh"
RETRAIN = "delete checkpoint.pt to start this training afresh"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One value per sample, or `width` values; `fill` is the value for a new sample.

    of_classes: the values are positions in the class list, -1 for none.
    """

    dtype: str
    fill: float = 0.0
    width: int = 0
    of_classes: bool = False

    def new(self, length: int) -> NDArray[Any]:
        """(length,) or (length, width) values for new samples."""
        return np.full((length, self.width) if self.width else length, self.fill, self.dtype)


@dataclass(frozen=True)
class Notes:
    """The observations of an epoch.

    index: (M,) int64 positions of samples, ascending; a sample observed twice occurs twice. values: (M, w) float32
    each.
    """

    index: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    def mean(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(m,) the observed samples, once each, and (m,) the mean of their observations."""
        index, first, count = np.unique(self.index, return_index=True, return_counts=True)
        values = self.values[name][:, 0].astype(np.float64)
        return index, np.add.reduceat(values, first) / count if len(index) else values


@dataclass(frozen=True)
class Counts:
    """Numbers of samples: state kept, state reset because the label changed, sample gone, and sample new."""

    kept: int
    reset: int
    dropped: int
    new: int


class Memory:
    """Columns aligned with `Samples`, and the notes of the running epoch.

    Args:
        name: name of the loss.
        meaning: hyperparameters of the loss that the meaning of the columns depends on.
    """

    def __init__(
        self, samples: Samples, columns: Mapping[str, Column], *, name: str, meaning: Mapping[str, Any]
    ) -> None:
        self.id, self.target, self.classes = np.asarray(samples.id, str), samples.target, samples.classes
        self.columns, self.name = dict(columns), name
        self.meaning = dict(meaning)
        self.values = {key: column.new(len(self)) for key, column in columns.items()}
        self.widths: dict[str, int] = {}
        self._reserve()

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.values[name]

    def expect(self, **widths: int) -> None:
        """Declares the observations of an epoch and their numbers of values; pending notes of the same widths stay."""
        if widths != self.widths:
            self.widths = widths
            self._reserve()

    def _reserve(self, index: Tensor | None = None, rows: Tensor | None = None) -> None:
        """Makes room for the notes of an epoch, which begin with these.

        A note kept as it comes, between the large buffers of two steps, would make the process grow by such a buffer.
        """
        self.noted = 0 if index is None else len(index)  # a smaller number forgets the last ones
        room, width = max(len(self), self.noted), sum(self.widths.values())
        self._index, self._rows = torch.empty(room, dtype=torch.int64), torch.empty(room, width)
        if index is not None and rows is not None:
            self._index[: self.noted], self._rows[: self.noted] = index, rows

    def note(self, index: Tensor, **values: Tensor) -> None:
        """Adds observations, (n,) or (n, w) each, of n samples; a sample may occur more than once.

        They stay on their device until the end of the epoch, so that no step waits for them.
        """
        start, stop = self.noted, self.noted + len(index)
        if self._index.device != index.device:
            self._index, self._rows = self._index.to(index.device), self._rows.to(index.device)
        if index.device.type == "cpu" and len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise BatchError(
                f"index: {int(index.min())} to {int(index.max())}, but this loss began with {len(self)} samples; "
                "pass positions in them"
            )
        if stop > len(self._index):  # an epoch may draw more samples than there are
            self._index, self._rows = (torch.cat([each, torch.empty_like(each)]) for each in (self._index, self._rows))
        self._index[start:stop], first = index, 0
        for name, width in self.widths.items():
            self._rows[start:stop, first : first + width] = values[name].detach().reshape(len(index), -1)
            first += width
        self.noted = stop

    def merge(self) -> Notes:
        """Notes of all workers at the end of an epoch. Every worker has to call this."""
        index, rows = self._gather()
        self.noted = 0
        parts = np.split(rows.numpy(), np.cumsum(list(self.widths.values()))[:-1], axis=1)
        return Notes(index.numpy(), dict(zip(self.widths, parts, strict=True)))

    def _gather(self) -> tuple[Tensor, Tensor]:
        index, rows = self._index[: self.noted].cpu(), self._rows[: self.noted].cpu()
        if not self.widths:  # the same on every worker
            return index, rows
        return distributed.gather(index, rows)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, the same on every worker. Every worker has to call this."""
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
        """Restores what `state` returned; the first worker takes all notes.

        Raises:
            CheckpointMismatch: the state belongs to other samples or to another loss.
        """
        where = "loss state of the checkpoint"
        self._check(where, json.loads(state["about"]), remedy=RETRAIN)
        if state["samples"] != self._digest:
            lengths = {len(values) for values in state["columns"].values()}
            raise CheckpointMismatch(
                f"{where}: its {min(lengths)} samples are not the {len(self)} samples and labels of this training; "
                f"{RETRAIN}"
            )
        self.values = {name: values.numpy().copy() for name, values in state["columns"].items()}
        self.widths = dict(state["widths"])
        notes = (state["index"], state["notes"]) if distributed.rank() == 0 else ()
        self._reserve(*notes)

    def write(self, path: Path, *, params: Mapping[str, Any] | None = None) -> None:
        """Writes samples.parquet atomically: one row per sample with its id, the name of its label, and the columns.

        Args:
            params: all hyperparameters of the loss, for readers; `carry` checks only those that the columns depend on.
        """
        names = pa.array(self.classes, pa.string())
        label = pa.DictionaryArray.from_arrays(pa.array(self.target, pa.int32()), names)
        table = pa.table({"id": pa.array(self.id), "label": label} | {k: _to_arrow(v) for k, v in self.values.items()})
        about = {ABOUT: self._about(), b"classes": json.dumps(self.classes), b"params": json.dumps(dict(params or {}))}
        about[SHA256] = _digest(about[ABOUT], about[b"classes"])
        with replacing(path) as file:
            pq.write_table(table.replace_schema_metadata(about), file, compression="zstd", write_page_checksum=True)

    def carry(self, path: Path) -> Counts:
        """Takes over the state that `write` left for another data version; called before the first epoch.

        State is kept if id and label (by name) agree; otherwise the sample counts as new. Positions of classes are
        translated by the names of the classes.

        Raises:
            CheckpointMismatch: an unreadable file, another loss, or a hyperparameter that changes the meaning of the
                columns.
        """
        table = self._read(path)
        position = {name: number for number, name in enumerate(self.classes)}
        theirs = json.loads(table.schema.metadata[b"classes"])
        moved = np.array([*(position.get(name, -1) for name in theirs), -1])  # the last entry maps -1 to -1
        ids = table["id"].to_numpy()
        label = table["label"].cast(pa.string()).combine_chunks().dictionary_encode()
        target = np.array([position.get(name, -1) for name in label.dictionary.to_pylist()])[label.indices.to_numpy()]
        row = positions(self.id, ids)
        found = row >= 0
        kept = found & (target[row] == self.target)
        for name, column in self.columns.items():
            values = _from_arrow(table[name], column)[row[kept]]
            self.values[name][kept] = moved[values] if column.of_classes else values
        reset = int(found.sum() - kept.sum())
        return Counts(int(kept.sum()), reset, len(ids) - int(found.sum()), int((~found).sum()))

    def _read(self, path: Path) -> pa.Table:
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            table.validate(full=True)
            metadata = table.schema.metadata
            about = json.loads(metadata[ABOUT])
            if metadata[SHA256].decode() != _digest(metadata[ABOUT].decode(), metadata[b"classes"].decode()):
                raise ValueError(SHA256)
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CheckpointMismatch(
                f"{path} is not a readable loss state ({type(error).__name__}); {RESTART}"
            ) from None
        self._check(str(path), about, remedy=RESTART)
        absent = {"id", "label", *self.columns} - set(table.column_names)
        if absent:
            raise CheckpointMismatch(f"{path}: column {', '.join(sorted(absent))} is missing; {RESTART}")
        if not len(table):
            raise CheckpointMismatch(f"{path}: the file has no rows; {RESTART}")
        return table

    def _about(self) -> str:
        columns = {name: asdict(column) for name, column in self.columns.items()}
        about = {"format": FORMAT, "loss": self.name, "params": self.meaning, "columns": columns}
        return json.dumps(about)

    def _check(self, where: str, theirs: Mapping[str, Any], *, remedy: str) -> None:
        ours, given = _flat(json.loads(self._about())), _flat(theirs)
        for field in ours | given:
            want, got = ours.get(field), given.get(field)
            if want != got:
                raise CheckpointMismatch(f"{where}: {field} is {got!r}, but this training has {want!r}; {remedy}")

    @cached_property
    def _digest(self) -> str:
        """Hash of the samples and their labels."""
        labels = np.array(self.classes)[self.target] if len(self) else np.empty(0, str)
        digest = hashlib.sha256()
        for sample, label in zip(self.id.tolist(), labels.tolist(), strict=True):
            digest.update(f"{sample}\0{label}\0".encode())
        return digest.hexdigest()


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names of fields for messages: {"params": {"q": 1}} becomes {"params.q": 1}."""
    flat: dict[str, Any] = {}
    for key, value in about.items():
        flat |= {f"{key}.{inner}": x for inner, x in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def _to_arrow(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _from_arrow(column: pa.ChunkedArray, like: Column) -> NDArray[Any]:
    chunk = column.combine_chunks()
    if not like.width:
        return np.asarray(chunk.to_numpy(zero_copy_only=False), like.dtype)
    return np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), like.dtype).reshape(-1, like.width)
