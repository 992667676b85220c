"""Loss state per sample: within an epoch, after a restart, for changed data, and among workers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.distributed import part
from models.errors import BatchError, CheckpointMismatch
from models.losses import Loss, Samples, build_loss
from models.losses.memory import Column, Counts, Memory
from models.losses.stateful import Guard, Stateful, class_quantile
from models.training.checkpoint import load, save

COLUMNS = {
    "run": Column(dtype="int8"),
    "margin": Column(dtype="float32", fill=-1.0),
    "best": Column(dtype="int32", fill=-1, width=2, of_classes=True),
    "p": Column(dtype="float16", width=2),
    "kept": Column(dtype="bool", fill=1),
}


def samples(labels: dict[str, str], classes: list[str]) -> Samples:
    target = np.array([classes.index(label) for label in labels.values()], np.int64)
    return Samples(id=np.array(list(labels), dtype=object), target=target, classes=classes)


def memory(labels: dict[str, str], classes: list[str], **meaning: Any) -> Memory:
    return Memory(samples(labels, classes), COLUMNS, name="test", meaning=meaning)


OLD = {"a1": "apple", "b1": "bean", "b2": "bean", "c1": "corn"}
OLD_CLASSES = ["apple", "bean", "corn"]


def filled(**meaning: Any) -> Memory:
    old = memory(OLD, OLD_CLASSES, **meaning)
    old["run"][:] = [1, 2, 3, 4]
    old["margin"][:] = [0.1, 0.2, 0.3, 0.4]
    old["best"][:] = [[0, 1], [1, 2], [1, -1], [2, 0]]
    old["p"][:] = [[0.75, 0.25], [0.5, 0.25], [1, 0], [0.5, 0.5]]
    old["kept"][:] = [True, False, True, False]
    return old


def test_notes_of_one_sample_are_merged_by_mean_and_counted_once() -> None:
    kept = filled()
    kept.expect(margin=1, best=2)
    kept.note(torch.tensor([3, 1]), margin=torch.tensor([1.0, 2.0]), best=torch.tensor([[0, 1], [2, 1]]))
    kept.note(torch.tensor([3]), margin=torch.tensor([4.0]), best=torch.tensor([[5, 4]]))
    notes = kept.merge()
    assert notes.index.tolist() == [1, 3, 3]
    assert notes.values["best"].tolist() == [[2, 1], [0, 1], [5, 4]]
    seen, mean = notes.mean("margin")
    assert seen.tolist() == [1, 3]
    assert mean.tolist() == [2.0, 2.5]
    assert len(kept.merge().index) == 0, "an epoch's notes are merged once"


def test_a_sample_outside_the_training_set_is_refused() -> None:
    kept = filled()
    kept.expect(margin=1)
    with pytest.raises(BatchError, match=r"index: 1 to 4, but this loss began with 4 samples; pass positions"):
        kept.note(torch.tensor([1, 4]), margin=torch.zeros(2))


def test_state_survives_a_checkpoint_with_the_pending_notes(tmp_path: Path) -> None:
    first = filled()
    first.expect(margin=1)
    first.note(torch.tensor([2, 0]), margin=torch.tensor([1.0, 2.0]))
    save(tmp_path / "checkpoint.pt", {"loss": first.state()})
    second = memory(OLD, OLD_CLASSES)
    second.load(load(tmp_path / "checkpoint.pt")["loss"])
    second.expect(margin=1)  # the epoch goes on
    for name in COLUMNS:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype
    for each in (first, second):
        each.note(torch.tensor([2]), margin=torch.tensor([3.0]))
    assert [x.tolist() for x in first.merge().mean("margin")] == [[0, 2], [2.0, 2.0]]
    assert [x.tolist() for x in second.merge().mean("margin")] == [[0, 2], [2.0, 2.0]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (memory({"a1": "apple"}, OLD_CLASSES), r"its 4 samples are not the 1 samples and labels of this training"),
        (memory(OLD | {"b2": "corn"}, OLD_CLASSES), r"not the 4 samples and labels of this training; delete checkpoint\.pt"),
        (Memory(samples(OLD, OLD_CLASSES), COLUMNS, name="other", meaning={}), r"loss is 'test', but this training has 'other'"),
        (memory(OLD, OLD_CLASSES, k=0.5), r"params\.k is None, but this training has 0\.5; delete checkpoint\.pt"),
        (
            Memory(samples(OLD, OLD_CLASSES), {"run": Column(dtype="int16")}, name="test", meaning={}),
            r"columns\.run is .*int8.* this training has .*int16.*; delete checkpoint\.pt",
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_samples_or_another_loss_is_refused(other: Memory, message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        other.load(filled().state())


def test_a_new_data_version_keeps_what_is_still_true(tmp_path: Path) -> None:
    """b1 is relabelled, c1 is gone, d1 is new; beet comes before bean, and corn is not a class any more."""
    path = tmp_path / "samples.parquet"
    filled().write(path, params={"run": 5})
    new = memory({"d1": "beet", "b2": "bean", "a1": "apple", "b1": "apple"}, ["apple", "beet", "bean"])
    assert new.carry(path) == Counts(kept=2, reset=1, dropped=1, new=1)
    assert new["run"].tolist() == [0, 3, 1, 0]
    np.testing.assert_array_equal(new["margin"], np.array([-1, 0.3, 0.1, -1], np.float32))
    assert new["best"].tolist() == [[-1, -1], [2, -1], [0, 2], [-1, -1]], "positions follow the classes' names"
    assert new["p"].tolist() == [[0, 0], [1, 0], [0.75, 0.25], [0, 0]]
    assert new["kept"].tolist() == [True, True, True, True]


def test_the_same_data_in_another_order_keep_everything(tmp_path: Path) -> None:
    filled().write(tmp_path / "samples.parquet")
    back = memory(dict(reversed(OLD.items())), ["corn", "bean", "apple"])
    assert back.carry(tmp_path / "samples.parquet") == Counts(kept=4, reset=0, dropped=0, new=0)
    assert back["best"].tolist() == [[0, 2], [1, -1], [1, 0], [2, 1]]


def test_the_file_names_labels_and_says_what_it_is(tmp_path: Path) -> None:
    filled(k=0.5).write(tmp_path / "samples.parquet", params={"k": 0.5, "max_share": 0.3})
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table["id"].to_pylist() == list(OLD)
    assert table["label"].to_pylist() == list(OLD.values())
    assert table["best"].to_pylist()[0] == [0, 1]
    about = table.schema.metadata[b"cleanshelf.samples"].decode()
    assert '"format": 1' in about
    assert '"loss": "test"' in about
    assert table.schema.metadata[b"params"] == b'{"k": 0.5, "max_share": 0.3}'
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]


def test_a_write_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    filled().write(path)
    before = path.read_bytes()
    broken = filled()
    broken.values["run"] = np.zeros(3, np.int8)  # a row too few
    with pytest.raises(pa.ArrowInvalid):
        broken.write(path)
    with pytest.raises(TypeError):
        filled().write(path, params={"not JSON": object()})
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]


def other_columns(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.drop(["margin"]), path)


def without_metadata(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_columns, "column margin is missing"),
        (without_metadata, "is not a readable loss state"),
        (cut, "is not a readable loss state"),
        (Path.unlink, r"is not a readable loss state \(FileNotFoundError\)"),
        (lambda path: filled(k=0.25).write(path), r"params\.k is 0\.25, but this training has 0\.5"),
    ],
)
def test_a_file_that_cannot_be_carried_over_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "samples.parquet"
    filled(k=0.5).write(path)
    spoil(path)
    with pytest.raises(CheckpointMismatch, match=message) as caught:
        memory(OLD, OLD_CLASSES, k=0.5).carry(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("leave train.state empty to start afresh")


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.floats(-3, 3, width=16)), min_size=1, max_size=60),
    max_share=st.floats(0, 0.99),
    n_min=st.integers(1, 5),
)
def test_guards_hold_in_every_class(rows: list[tuple[int, bool, float]], max_share: float, n_min: int) -> None:
    target, flagged, score = (np.array(column) for column in zip(*rows, strict=True))
    removed = Guard(max_share, n_min).limit(flagged, score, target)
    assert not (removed & ~flagged).any()
    for label in set(target.tolist()):
        own = target == label
        assert removed[own].sum() <= max_share * own.sum() + 1e-6
        assert (~removed)[own].sum() >= min(n_min, own.sum())
        spared = flagged & own & ~removed
        if spared.any():
            allowed = min(int(max_share * own.sum() + 1e-9), own.sum() - n_min)
            assert removed[own].sum() == max(allowed, 0), "as many flagged samples are removed as the guard allows"
            assert not (removed & own).any() or score[removed & own].max() <= score[spared].min()


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.floats(-1e3, 1e3)), min_size=1, max_size=40), q=st.floats(0, 0.99))
def test_quantiles_of_classes_are_those_of_numpy(rows: list[tuple[int, float]], q: float) -> None:
    target, values = (np.array(column) for column in zip(*rows, strict=True))
    found = class_quantile(values, target, q, num_classes=5)
    for label in range(5):
        own = values[target == label]
        np.testing.assert_allclose(found[label], np.quantile(own, q) if len(own) else np.nan, rtol=1e-9, atol=1e-9)


C, N, WIDTH, EPOCHS, STEPS, BATCH = 5, 60, 3, 4, 4, 12
PARAMS: dict[str, dict[str, Any]] = {
    "truncated_gce": {"start_epoch": 1, "every": 1},
    "marvel": {"run": 1, "start_epoch": 1},
    "marvel+": {"run": 2, "start_epoch": 1, "reversible": True},
    "aum": {"decision_epoch": 2, "width": WIDTH, "share": 0.1},
    "car": {"start_epoch": 0, "every": 1, "width": WIDTH},
}
NAMES = sorted(PARAMS)
Trace = list[dict[str, Tensor]]


def begun(name: str, state: dict[str, Any] | None) -> Loss:
    """A loss of N samples in C classes, restored from `state` if there is one."""
    loss = build_loss(name, num_classes=C, **PARAMS[name])
    loss.begin(Samples(np.array([f"s{at:03d}" for at in range(N)], object), np.arange(N) % C, list("abcde")))
    for parameter in loss.parameters():
        torch.nn.init.constant_(parameter, 0.2)
    if state is not None:
        loss.load_state_dict(state)
    return loss


def steps(loss: Loss, epoch: int, *, first: int) -> Iterator[int]:
    """Runs an epoch from the step `first` on, each worker its part; some samples occur more than once, some never."""
    draw = torch.Generator().manual_seed(epoch)
    order = torch.randint(N, (STEPS * BATCH,), generator=draw)
    logits, embedding = (2 * torch.randn(STEPS * BATCH, width, generator=draw) for width in (C, WIDTH))
    for step in range(first, STEPS):
        yield step
        rows = torch.arange(STEPS * BATCH)[step * BATCH : (step + 1) * BATCH][part(BATCH)]
        loss(logits[rows], order[rows] % C, order[rows], embedding[rows])


def follow(name: str, *, stop: tuple[int, int] | None = None, state: dict[str, Any] | None = None) -> Any:
    """Columns and weights after every epoch, from `state` on if given; the state before the step `stop` if given."""
    loss = begun(name, state)
    start, trace = (0, 0) if state is None else STOP, []
    for epoch in range(start[0], EPOCHS):
        first = start[1] if epoch == start[0] else 0
        if not first and loss.wants_answers(epoch):
            answers = 3 * torch.randn(N, generator=torch.Generator().manual_seed(90 + epoch)).abs()
            loss.take_answers(-answers, accuracy=math.nan)
        loss.start_epoch(epoch)
        for step in steps(loss, epoch, first=first):
            if (epoch, step) == stop:
                return loss.state_dict()
        loss.end_epoch()
        assert isinstance(loss, Stateful)
        weight = np.ones(N) if loss.weight is None else loss.weight
        trace.append(
            {key: torch.from_numpy(values.copy()) for key, values in (loss.known.values | {"weight": weight}).items()}
        )
    return trace


STOP = (1, 2)


def work(number: int, count: int, out: Path) -> None:
    """Runs one worker of every training: whole, stopped, and resumed."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{out}/meeting-{count}", rank=number, world_size=count
    )
    for name in NAMES:
        torch.save(follow(name), out / f"{name}-{count}-{number}.pt")
        torch.save(follow(name, stop=STOP), out / f"{name}-{count}-{number}-state.pt")
        torch.distributed.barrier()
        stopped = torch.load(out / f"{name}-2-0-state.pt")  # where two workers stopped
        torch.save(follow(name, state=stopped), out / f"{name}-{count}-{number}-resumed.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the traces of one, two and three workers; forked, because importing torch takes longest."""
    out = tmp_path_factory.mktemp("traces")
    for count in (2, 3, 1):
        torch.multiprocessing.start_processes(work, (count, out), nprocs=count, start_method="fork")
    return out


@pytest.mark.parametrize("name", NAMES)
def test_one_two_and_three_workers_make_the_same_decisions(traces: Path, name: str) -> None:
    alone = torch.load(traces / f"{name}-1-0.pt")
    decision = "classes" if name == "car" else "weight"
    assert len({str(epoch[decision].tolist()) for epoch in alone}) > 1, "something is decided at all"
    for path in traces.glob(f"{name}-[23]-?.pt"):
        assert_same(torch.load(path), alone)
    assert len(list(traces.glob(f"{name}-[23]-?.pt"))) == 5


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_training_goes_on_with_any_number_of_workers(traces: Path, name: str) -> None:
    """Stopped by two workers in the middle of an epoch; three workers, or one, continue with the same decisions."""
    alone = torch.load(traces / f"{name}-1-0.pt")
    states = [torch.load(path) for path in traces.glob(f"{name}-?-?-state.pt")]
    notes = [state["_extra_state"]["memory"]["notes"] for state in states]
    assert len(notes) == 6
    assert all(torch.equal(note, notes[0]) and len(note) == 24 * (name != "truncated_gce") for note in notes)
    for path in traces.glob(f"{name}-?-?-resumed.pt"):
        assert_same(torch.load(path), alone[1:])
    assert len(list(traces.glob(f"{name}-?-?-resumed.pt"))) == 6


def assert_same(found: Trace, expected: Trace) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for key in theirs:
            assert torch.equal(ours[key].nan_to_num(nan=-99), theirs[key].nan_to_num(nan=-99)), key


@pytest.mark.parametrize(
    ("name", "bytes_per_sample"), [("truncated_gce", 5), ("marvel", 7), ("marvel+", 7), ("aum", 14), ("car", 50)]
)
def test_at_most_50_bytes_a_sample_at_any_number_of_classes(name: str, bytes_per_sample: int) -> None:
    classes = [f"{number}" for number in range(50_030)]
    many = Samples(np.array(["a", "b", "c", "d"], object), np.full(4, 50_029), classes)
    loss = build_loss(name, num_classes=50_030)
    loss.begin(many)
    assert loss.memory is not None
    stored = sum(values.nbytes for values in loss.memory.values.values())
    assert stored == len(many.id) * bytes_per_sample
