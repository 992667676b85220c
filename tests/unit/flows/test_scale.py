"""The bookkeeping of a retraining, without its trainings: its operations and its memory grow with the photos, not faster.

Every call of a function, in Python or in C, counts as an operation, and so does every comparison or hash of a text of the
manifest: numpy compares objects one by one, and a search that compares all with all would need N^2 of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flows.data.diff import compare_labels
from flows.delivery.splits import hold_out
from flows.gate.gates import GateInput, judge
from flows.report.changes import against_last_run, changed_products
from flows.report.figures import figures, photos_to_look_at
from flows.report.label_issues import label_figures
from flows.report.steps import step_accuracies
from flows.run.measure import read_answers
from flows.steps.clean import decided, same_labels, settled
from flows.steps.gate import left_out
from flows.steps.selection import SelectionPhotos
from flows.workspace.results import DataFolder
from models.data.confusion import read_confusion, write_confusion
from models.data.manifest import (
    INDEX,
    LABELS,
    TABLES,
    Manifest,
    count,
    read_manifest,
    read_table,
    write_labels,
    write_table,
    write_version,
)
from models.data.samplers import Sampler
from models.data.trusted import selection_photos, trusted_rows, with_selection_photos
from models.decisions import as_delivered
from models.evaluation.scores import KEEP, Scores, read_scores, write_scores
from models.export.calibrate import UNCALIBRATED, Chosen, accept
from models.export.ood import SCORES
from models.losses import Samples, build_loss
from models.recipe.config import Clean, Gate, Proof, Recipe, Train
from models.training.check import check_folds, check_photos, check_workers
from models.training.ensemble import choose_weights
from models.training.job import split_rows
from models.training.sample_weights import make_sample_weights

NUM_FOLDS, NUM_MEMBERS = 3, 2
GROWTH = 13  # of the operations of a step from 600 to 6,000 photos; N log N grows by 13.6, N by 10
PER_PHOTO = 100  # operations of one step
MOST_BYTES = 2_000  # of memory per photo, in one step
SPARE_BYTES = 5_000_000


class Counted(str):
    """A text whose comparisons and hashes are calls of Python functions."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return str.__eq__(self, other)

    def __lt__(self, other: str) -> bool:
        return str.__lt__(self, other)

    def __gt__(self, other: str) -> bool:
        return str.__gt__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


class CountedManifest(Manifest):
    """A manifest whose texts are counted."""

    def __init__(self, **columns: Any) -> None:
        super().__init__(**columns)
        for field in dataclasses.fields(self):
            texts = getattr(self, field.name)
            if isinstance(texts, np.ndarray) and texts.dtype == object:
                known = {text: Counted(text) for text in map(str, texts)}
                object.__setattr__(self, field.name, np.array([known[str(text)] for text in texts], object))


@dataclasses.dataclass
class Cost:
    """Operations of a step, and the most bytes that it held at a time."""

    calls: int
    peak_bytes: int


def cost_of(work: Callable[[], object], *, most: float = math.inf) -> Cost:
    """Runs a step and counts; ends it once it takes more operations than `most`."""
    calls = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls > most:
            sys.setprofile(None)
            raise AssertionError(f"more than {most:.0f} operations")

    tracemalloc.start()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return Cost(calls, peak)


def write_data(folder: Path, *, photos: int, classes: int) -> None:
    """A data version of photos of a long tail: the classes share the photos as Zipf's law says, and each has some."""
    rng, number = np.random.default_rng(0), np.arange(photos)
    drawn = np.minimum(rng.zipf(1.3, photos) - 1, classes - 1)
    target = np.where(number < classes, number, drawn)
    labels = np.array([f"product {i:06d}" for i in range(classes)], object)[rng.permutation(target)]
    ids = np.sort(np.unique(rng.integers(2**62, size=2 * photos))[:photos])
    texts = np.array([f"{each:016x}" for each in ids], object)
    split = np.array(["train", "val", "test"], object)[np.searchsorted([0.8, 0.9], rng.random(photos))]
    empty, numbers = np.full(photos, "", object), np.ones(photos, np.int32)
    columns: Mapping[str, Any] = {
        "id": texts, "given_label": labels, "label": labels, "split": split, "kept": numbers > 0, "decision": empty,
        "score": np.full(photos, np.nan, np.float32), "round": numbers.astype(np.int8), "scored_by": empty,
        "sha256": texts, "shard": empty, "offset": number, "size": numbers, "width": numbers, "height": numbers,
        "source": empty, "path": texts,
    }  # fmt: skip
    write_table(folder, {name: columns[name] for name in INDEX.names}, name="index")
    write_table(folder, {name: columns[name] for name in LABELS.names}, name="labels")
    for name in ("conflicts", "quarantine"):
        write_table(folder, {column: [] for column in TABLES[name].names}, name=name)


def scores_of(manifest: Manifest, rows: NDArray[np.int64], *, seed: int) -> Scores:
    """Scores that prefer the given label for seven of ten photos."""
    rng, target, k = np.random.default_rng(seed), manifest.given_target[rows], min(KEEP, len(manifest.classes))
    top = (rng.integers(len(manifest.classes), size=(len(rows), 1)) + np.arange(k)) % len(manifest.classes)
    right = (target >= 0) & (rng.random(len(rows)) < 0.7) & ~(top == target[:, None]).any(1)
    top[right, 0] = target[right]
    probs = -np.sort(-rng.dirichlet(np.ones(k + 1), len(rows)).astype(np.float32), 1)[:, :k]
    p_label = np.where(right, probs[:, 0], np.float32(0.01))
    return Scores(manifest.id[rows].astype(str), target, p_label, top, probs)


class Bookkeeping:
    """The steps of a retraining that compute no network, each of which leaves what the later ones read."""

    def __init__(self, root: Path, *, photos: int, classes: int) -> None:
        self.root, self.after = root, root / "after"
        self.after.mkdir()
        write_data(root, photos=photos, classes=classes)
        self.manifest = read_manifest(root)
        self.rows = split_rows(self.manifest, fold=None, num_folds=0)[0]
        self.folds = [self.scored(f"fold-{fold}", fold=fold) for fold in range(NUM_FOLDS)]
        self.members = [self.scored(f"member-{member}", fold=None) for member in range(NUM_MEMBERS)]
        for folder in self.members:
            balance = {"chosen": {"method": "none", "tau": 0.0}, "candidates": [{"method": "none", "curve": [[0, 1]]}]}
            (folder / "balance.json").write_text(json.dumps(balance), encoding="utf-8")
        held = read_scores(self.members[0] / "scores.parquet")
        test = held.select(self.manifest.split[self.manifest.rows_of(held.id)] == "test")
        np.savez(root / "answers.npz", ranked=test.top, target=test.target, probability=test.probs[:, 0])
        (root / "ensemble.json").write_text(json.dumps({"weights": [0.5, 0.5]}), encoding="utf-8")
        (root / "crops.json").write_text(json.dumps({"crops": 1}), encoding="utf-8")
        (root / "some.txt").write_text("\n".join(self.manifest.id[self.manifest.split == "val"]), encoding="utf-8")
        weights = "".join(f"{each},1\n" for each in self.manifest.id)
        (root / "weights.csv").write_text(f"id,weight\n{weights}", encoding="utf-8")

    def scored(self, name: str, *, fold: int | None) -> Path:
        """A folder as a training leaves it."""
        folder = self.root / name
        folder.mkdir()
        _, held_out = split_rows(self.manifest, fold=fold, num_folds=NUM_FOLDS)
        found = scores_of(self.manifest, held_out, seed=len(name) + (fold or 0))
        write_scores(found, folder / "scores.parquet")
        centres = np.random.default_rng(0).normal(size=(len(self.manifest.classes), 8))
        embeddings = centres[found.top[:, 0]]  # so that photos agree with the predictions
        np.save(folder / "features.npy", embeddings.astype(np.float16))
        return folder

    def steps(self) -> dict[str, Callable[[], object]]:
        """The steps in their order, by name."""
        return {
            "read": self.read,
            "check": self.check,
            "clean by dropping": lambda: self.clean(Clean(folds=NUM_FOLDS), least=0.1),
            "clean by weighing": lambda: self.clean(
                Clean(folds=NUM_FOLDS, use="weigh", rule="posterior", params={"most": 0}, relabel=0.6, correct=True),
                least=0.04,  # half of the classes have one photo, and of those the posterior believes most
            ),
            "take decisions back": self.take_back,
            "trust": self.trust,
            "sample": self.sample,
            "carry": self.carry,
            "keep gains": self.keep_gains,
            "weigh members": self.weigh,
            "calibrate": self.calibrate,
            "judge": self.judge,
            "report": self.report,
            "compare versions": lambda: compare_labels(self.root / "labels.parquet", self.after / "labels.parquet"),
            "hold out": lambda: hold_out(
                self.manifest.id.tolist(), self.manifest.target, share=0.1, seed=0, split="val"
            ),
        }

    def read(self) -> None:
        self.manifest = read_manifest(self.root)
        assert count(self.root)["photos"] == len(self.manifest)
        write_version(self.root, parent=None, step="ingest")
        self.manifest.train_counts()

    def check(self) -> None:
        check_photos(self.manifest)
        check_folds(self.manifest, num_folds=NUM_FOLDS)
        check_workers(Recipe(name="scale"), self.manifest, num_folds=NUM_FOLDS)

    def clean(self, settings: Clean, *, least: float) -> None:
        run: Any = SimpleNamespace(recipe=Recipe(name="scale", clean=settings))
        folds: Any = self.folds
        after, noise = decided(run, self.manifest, folds, 1)
        flagged = int((after.decision != "").sum())
        assert least * len(after) < flagged < 0.5 * len(after)
        write_labels(self.after, after)
        write_table(self.after, dict(zip(INDEX.names, self.index(), strict=True)), name="index")
        if noise:
            write_confusion(noise, self.after, classes=after.classes)
            assert read_confusion(self.after, classes=after.classes)
        folder: Any = self.root
        cleaned: Any = self.after
        assert not settled(folder, cleaned, stop_share=0.005)

    def take_back(self) -> None:
        cleaned = read_manifest(self.after)
        before = as_delivered(cleaned)
        assert same_labels(before, as_delivered(before))
        assert not same_labels(before, cleaned)

    def index(self) -> list[Any]:
        """The columns of index.parquet."""
        return list(read_table(self.root, name="index").columns)

    def trust(self) -> None:
        file = str(self.root / "some.txt")
        assert selection_photos(with_selection_photos(self.manifest, file)).any()
        assert len(trusted_rows(file, self.manifest))

    def sample(self) -> None:
        rows, target = self.rows, self.manifest.target[self.rows]
        for settings in (Train(), Train(sampling_power=0.5), Train(progressive=True), Train(best_epochs=24)):
            drawn = Sampler(target=target, score=self.manifest.score[rows], settings=settings, seed=0).draw(3)
            assert len(drawn) == len(rows)
        settings = Train(photo_weights=str(self.root / "weights.csv"), har=1.0, class_weights="effective")
        make_sample_weights(settings, read_manifest(self.after), rows, clean=Clean(use="weigh"))

    def carry(self) -> None:
        loss = build_loss("marvel", num_classes=len(self.manifest.classes))
        rows = self.rows
        loss.begin(Samples(id=self.manifest.id[rows], target=self.manifest.target[rows], classes=self.manifest.classes))
        assert loss.memory is not None
        loss.memory.write(self.root / "samples.parquet", params={})
        assert loss.memory.carry(self.root / "samples.parquet").kept == len(rows)

    def keep_gains(self) -> None:
        early: Any = self.members[0]
        late: Any = self.members[1]
        SelectionPhotos(self.manifest).compare(early, late, settings=Proof())

    def weigh(self) -> None:
        selected = selection_photos(self.manifest)
        scores = [read_scores(folder / "scores.parquet") for folder in self.members]
        scores = [each.select(selected[self.manifest.rows_of(each.id)]) for each in scores]
        choose_weights(scores, method="greedy", confidence=0.9)

    def calibrate(self) -> None:
        number = int(selection_photos(self.manifest).sum())
        known = np.random.default_rng(0).normal(size=(number, len(SCORES)))
        accept(Chosen(UNCALIBRATED), known + 1, known, known - 1, share=0.95)

    def judge(self) -> None:
        graph: Any = self.root
        answers = read_answers(self.manifest, graph, graph)
        evidence = GateInput({"different_ids": 0, "probability": 0.0}, answers, left_out(read_manifest(self.after)))
        verdict = judge(evidence, settings=Gate(decided_away=0, class_floor=1), graph_sha256="", against=1)
        data: Any = self.after
        assert photos_to_look_at(data, verdict)

    def report(self) -> None:
        data: Any = self.root
        members: Any = self.members
        steps = step_accuracies(data, as_delivered=members, cleaned=members, finetuned=[], balanced=members,
                                weights=data, crops=data, graph=data)  # fmt: skip
        assert len(steps) == 5
        drawn = figures(data, members, data, cleaned=data)
        drawn += label_figures(DataFolder(self.after), self.root)
        drawn += changed_products(read_answers(self.manifest, data, data), "the current model")
        drawn.append(against_last_run(self.manifest, steps[-1], 0, None))
        empty = {figure.name for figure in drawn if not figure.rows}
        assert empty == {"labels", "noisy suppliers", "fallen"}, "nothing was scored, and the models are the same"
        assert max(len(figure.rows) for figure in drawn) <= 48


def check_growth(place: Path, *, photos: int, classes: int, most: Callable[[str], float]) -> dict[str, Cost]:
    """The cost of every step; asserts that none takes more operations than `most`, or memory that grows faster."""
    place.mkdir()
    costs = {}
    for name, work in Bookkeeping(place, photos=photos, classes=classes).steps().items():
        costs[name] = cost_of(work, most=most(name))
        assert costs[name].peak_bytes <= MOST_BYTES * photos + SPARE_BYTES, f"{name}: {costs[name].peak_bytes} bytes"
    return costs


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.manifest.Manifest", CountedManifest)
    monkeypatch.setattr("models.cleaning.votes.BLOCK_BYTES", 1 << 20)  # so that no buffer hides an array N x C
    monkeypatch.setattr("models.cleaning.tilt.SAMPLE", 32)


def test_bookkeeping_grows_with_the_photos(tmp_path: Path) -> None:
    few = check_growth(tmp_path / "few", photos=600, classes=100, most=lambda name: math.inf)
    check_growth(tmp_path / "many", photos=6_000, classes=1_000, most=lambda name: GROWTH * few[name].calls + 1_000)


@pytest.mark.slow
def test_bookkeeping_of_300_000_photos_of_50_030_classes(tmp_path: Path) -> None:
    check_growth(tmp_path / "all", photos=300_000, classes=50_030, most=lambda name: 300_000 * PER_PHOTO)


def test_a_search_that_compares_all_with_all_is_noticed() -> None:
    ids = np.array([Counted(f"{number:06d}") for number in range(1_000)], object)
    with pytest.raises(AssertionError, match="more than 100000 operations"):
        cost_of(lambda: np.isin(ids, ids), most=1_000 * PER_PHOTO)
