"""Inputs of a graph's classifiers for test photos, kept where the graph is measured.

With them a graph with other classifiers, to which a product was added, is measured within seconds: without the photos and
without its backbones, which take nearly all of the time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from onnx import helper

from models.data.positions import positions
from models.data.samplers import spread_over_classes
from models.errors import EnrolmentError
from models.export.enrol import session_with_inputs
from models.export.patch import RETRAIN, Graph, read_graph, read_metadata

PHOTOS = 10_000  # kept at most, spread over the classes: 2 kB per photo, member and crop
ROWS = "rows.npy"  # (K,) rows of the manifest
FEATURES = "features-{}.npy"  # (K, V, d) for each member: K photos in V crops
LOGITS = 1 << 24  # computed at a time


def kept_rows(rows: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) true for the rows (N,) whose features are kept; target (N,): their classes."""
    return np.isin(rows, spread_over_classes(rows, target, count=PHOTOS)) if len(rows) else np.zeros(0, np.bool_)


def recorded(
    graph: Path, batches: Iterable[NDArray[np.uint8]], kept: NDArray[np.bool_], out: Path, *, gpu: int | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yields the ranked classes (n, k) and the best probability (n,) of each batch (n, S, S, 3) of N photos.

    Writes the features of the photos in `kept` (N,).

    Raises:
        EnrolmentError: the classifiers cannot be read, so no product can be added to the graph.
    """
    files: list[np.memmap[tuple[int, ...], np.dtype[np.floating]]] = []
    done = written = 0
    with session_with_inputs(graph, gpu=gpu) as (session, names):
        for batch in batches:
            ids, probs, *inputs = session.run(["ids", "probs", *names], {"image": batch})
            chosen = kept[done : done + len(batch)]
            parts = [each.reshape(-1, len(batch), each.shape[1]).transpose(1, 0, 2)[chosen] for each in inputs]
            files = files or [_file(out, i, (int(kept.sum()), *part.shape[1:])) for i, part in enumerate(parts)]
            for file, part in zip(files, parts, strict=True):
                file[written : written + len(part)] = part
            done, written = done + len(batch), written + int(chosen.sum())
            yield ids, probs[:, 0]
    for file in files:
        file.flush()


def _file(out: Path, member: int, shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype[np.floating]]:
    return open_memmap(out / FEATURES.format(member), mode="w+", dtype=np.float32, shape=shape)


def join(parts: Sequence[Path], out: Path) -> None:
    """Moves the features that several workers left in folders of their own into `out`, in the order of the folders."""
    for name in sorted({file.name for part in parts for file in part.iterdir()}):
        tables = [np.load(part / name, mmap_mode="r") for part in parts if (part / name).exists()]
        whole = open_memmap(
            out / name, mode="w+", dtype=np.float32, shape=(sum(map(len, tables)), *tables[0].shape[1:])
        )
        np.concatenate(tables, out=whole)
        whole.flush()
    for part in out.glob("part-*"):  # also those of a killed measurement by more workers
        shutil.rmtree(part)


def answers_from(folder: Path, graph: Path) -> NDArray[np.int64]:
    """(K, k) classes that the graph answers for the K photos whose features are kept in `folder`, best first.

    The backbones of the graph are those of the graph that was measured; its classifiers may be others.

    Raises:
        EnrolmentError: the graph cannot be cut at the inputs of its classifiers.
    """
    import onnxruntime

    whole = read_graph(graph)
    kinds = {each.source: each.rows.dtype for each in whole.classifiers}
    features = [np.load(folder / FEATURES.format(member), mmap_mode="r") for member in range(len(kinds))]
    num_logits = sum(each.shape[1] for each in features) * len(whole.labels)
    size = max(1, LOGITS // num_logits)
    cut_to_classifiers(whole)
    session = onnxruntime.InferenceSession(whole.model.SerializeToString(), providers=["CPUExecutionProvider"])
    ranked = [
        session.run(
            ["ids"],
            {
                name: each[start : start + size].transpose(1, 0, 2).reshape(-1, each.shape[2]).astype(kind)
                for (name, kind), each in zip(kinds.items(), features, strict=True)
            },
        )[0]
        for start in range(0, len(features[0]), size)
    ]
    return np.concatenate(ranked)


def in_classes_of(classes: Sequence[str], graph: Path, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Classes (N, k) of the graph as classes of a data version; a label that only the graph knows becomes -2."""
    found = positions(json.loads(read_metadata(graph)["labels"]), classes)
    return np.append(np.where(found < 0, -2, found), -2)[ids]


def cut_to_classifiers(graph: Graph) -> None:
    """Removes everything from a graph in memory that comes before its classifiers; their inputs become its inputs.

    Raises:
        EnrolmentError: the ranking depends on the photo in another way too.
    """
    inner = graph.model.graph
    maker = {name: node for node in inner.node for name in node.output}
    constants, sources = {each.name for each in inner.initializer}, {each.source for each in graph.classifiers}
    todo, read = ["ids"], set[str]()
    while todo:
        name = todo.pop()
        if name in read or name in sources or not name:
            continue
        read.add(name)
        if name in maker:
            todo += maker[name].input
        elif name not in constants:
            raise EnrolmentError(
                f"the graph cannot be cut before its classifiers, as {name!r} goes past them; {RETRAIN}"
            )
    nodes = [node for node in inner.node if read & set(node.output)]
    tensors = [each for each in inner.initializer if each.name in read]
    shapes = [
        helper.make_tensor_value_info(
            each.source, helper.np_dtype_to_tensor_dtype(each.rows.dtype), ["views", each.rows.shape[1]]
        )
        for each in graph.classifiers
    ]
    outputs = [each for each in inner.output if each.name == "ids"]
    cut = helper.make_graph(nodes, "classifiers", shapes, outputs, tensors)
    graph.model.CopyFrom(
        helper.make_model(cut, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    )
