"""Estimate of what a retraining will take, stage by stage: from the recipe, the counts of a data version and measured paces.

A pace (models.export.pace) is measured on this machine. Rates of stages that no pace measures are those of
benchmarks/scale.py; they are per photo, and such stages are short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.recipe.config import Recipe

FLOAT, COPIES, EMBEDDING = 4, 3, 512  # bytes of a number; copies of a network in a checkpoint; width of embeddings
STRENGTHS, SCALES = 75, 40  # classifiers and inverse temperatures that are tried
# Passes of exponentials over all classes that these take: all temperatures, a changed classifier, the five best classes.
TEMPERED, CHANGED, RANKED = 17, 0.3, 1.4
# Products of the selection photos with all classes that a method takes; others take 2.
RANKINGS = {"best": 7, "none": 1, "tau": 3, "logit_adjustment": 3}
TUNED, FITTED = 2_000, 5_000  # photos on which temperatures, and classifiers and scores are tried, at most
WRITTEN = 5  # copies of a graph in memory while it is written, beside what a training takes
SEEN = 400_000  # training photos to which the discriminants of `known` are fitted, at most
CLEAN_S, GATE_S, GRAPH_S = 6e-5, 1e-4, 1.5  # s per photo; s for which parity and golden answers ask a graph, per member
VERSION_S, PUBLISH_S = 3.0, 10.0  # data version of a round; report, registration and switch
SCORE_BYTES, LABEL_BYTES = 120, 60  # of a photo, on the disk
MOST = 10_000  # photos of a fold, up to which all pairs are compared
VOTE_S, CLASS_S = 5e-5, 5e-5  # s of a core per photo, and per class of a fold, where only candidates are compared


@dataclass(frozen=True)
class Counts:
    """Photos and classes of a data version, as it is before cleaning."""

    photos: int
    classes: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Machine:
    """Trainings that run side by side, and the seconds until a child has started.

    cards: GPUs that share a pass of a graph or an ensemble over photos. 1: one GPU, or the cores, which such a pass uses all.
    compared: test photos about which the gate asks the current model; it knows its answers of the night of its export.
    """

    side_by_side: int
    start_s: float
    cards: int = 1
    compared: int = 0


@dataclass(frozen=True)
class Stage:
    """One kind of step of a run.

    step: its name, as in the record of a run, without a number.
    times: how often it runs. each_s: seconds of one. seconds: of all of them, which may run side by side.
    peak_bytes: memory of one process. disk_bytes: that all of them leave.
    is_there: True if results of earlier runs will be found again.
    """

    step: str
    times: int
    each_s: float
    seconds: float
    peak_bytes: int
    disk_bytes: int
    is_there: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Content for JSON, seconds rounded."""
        return asdict(self) | {"each_s": round(self.each_s, 1), "seconds": round(self.seconds, 1)}


def stages(recipe: Recipe, counts: Counts, paces: Sequence[Mapping[str, float]], machine: Machine) -> list[Stage]:
    """The stages of a retraining, in order; `paces`: of each member."""
    work = _Work(recipe, counts, machine)
    clean, found = recipe.clean, list[Stage]()
    rounds = clean.rounds
    for member, pace in enumerate(paces):
        is_twice = rounds and recipe.members[member].data == "cleaned"
        found.append(work.training(member, pace, times=2 if is_twice else 1))
    found = [work.together(found)] if found else []
    if rounds:
        found.append(work.folds(paces[clean.member]))
        found.append(work.cleaning(paces[clean.member]))
    found.append(work.together([work.balancing(member, pace) for member, pace in enumerate(paces)]))
    found += [work.cropping(paces), work.calibrating(paces), work.exporting(paces), work.publishing(paces)]
    return [stage for stage in found if stage.times]


class _Work:
    """Estimates of single stages."""

    def __init__(self, recipe: Recipe, counts: Counts, machine: Machine) -> None:
        self.recipe, self.counts, self.machine = recipe, counts, machine

    def training(self, member: int, pace: Mapping[str, float], *, times: int) -> Stage:
        """Trainings of a member on all photos, which also score the validation and test photos."""
        settings, c = self.recipe.of(member).train, self.counts
        draws = settings.epochs * (settings.epoch_length or c.train)
        each = self.machine.start_s + draws * pace["drawn_s"] + (c.val + c.test) * pace["scored_s"]
        each += c.photos * pace["feature_s"] / times
        disk = times * (self._network_bytes(pace) + SCORE_BYTES * (c.val + c.test))
        return Stage("train member", times, each, times * each, self._peak(pace, c.train), disk)

    def folds(self, pace: Mapping[str, float]) -> Stage:
        """Trainings without one part of the photos each, which score it for cleaning."""
        clean, c = self.recipe.clean, self.counts
        settings = self.recipe.of(clean.member).train
        share = 1 - 1 / clean.folds
        draws = clean.epochs * (settings.epoch_length or int(c.train * share))
        scored = c.train / clean.folds + c.val
        per_photo = pace["scored_s"] + (_backbone_s(pace) if clean.asks_embeddings else 0)
        each = self.machine.start_s + draws * pace["drawn_s"] + scored * per_photo
        times = clean.rounds * clean.folds
        disk = times * (self._network_bytes(pace) + scored * (SCORE_BYTES + 2 * EMBEDDING * clean.asks_embeddings))
        seconds = clean.rounds * _side_by_side([each] * clean.folds, self.machine.side_by_side)
        return Stage("score fold", times, each, seconds, self._peak(pace, int(c.train * share)), int(disk))

    def cleaning(self, pace: Mapping[str, float]) -> Stage:
        """Decisions on the labels of all scored photos, and the data version of each round."""
        clean, scored = self.recipe.clean, self.counts.train + self.counts.val
        group = scored / clean.folds
        votes = 0.0
        if clean.asks_embeddings and group <= MOST:  # ranking all neighbours takes longer than their product
            votes = 4 * scored * group / self.counts.classes * pace["product_s"]
        elif clean.asks_embeddings:  # once, for the decisions and for the confusion
            votes = scored * VOTE_S + clean.folds * self.counts.classes * CLASS_S
        each = VERSION_S + scored * CLEAN_S + votes
        vectors = 2 * EMBEDDING * scored + 2 * FLOAT * EMBEDDING * self.counts.classes  # in mapped files; linear votes
        peak = int(4e8 + scored * 1500 + vectors * clean.asks_embeddings)
        return Stage("clean, round", clean.rounds, each, clean.rounds * each, peak,
                     clean.rounds * LABEL_BYTES * self.counts.photos)  # fmt: skip

    def balancing(self, member: int, pace: Mapping[str, float]) -> Stage:
        """Choice of a classifier on validation photos, with embeddings of training photos if a method needs them."""
        settings, c = self.recipe.balance, self.counts
        each = self.machine.start_s + (2 * c.val + c.test) * pace["scored_s"]
        rankings = RANKINGS.get(settings.method, 2) + 2 * (settings.method == "best" and settings.epochs > 0)
        each += c.val * rankings * (pace["product_s"] + RANKED * pace["pass_s"])
        if settings.method in ("best", "tau", "logit_adjustment"):
            each += c.val * STRENGTHS * CHANGED * pace["pass_s"]
        if settings.needs_training_photos:
            each += c.train * _backbone_s(pace) + min(c.train, FITTED) * (SCALES * pace["pass_s"] + pace["product_s"])
        if settings.method in ("best", "lws", "crt"):
            each += (2 if settings.method == "best" else 1) * settings.epochs * c.train * 2 * pace["product_s"]
        peak = int(pace["peak_bytes"] + FLOAT * EMBEDDING * c.train * settings.needs_training_photos)
        return Stage("balance member", 1, each, each, peak, self._network_bytes(pace) + SCORE_BYTES * (c.val + c.test))

    def cropping(self, paces: Sequence[Mapping[str, float]]) -> Stage:
        """Choice of crops, if the recipe leaves one."""
        settings = self.recipe.export
        tried = len(settings.enlarge) + 1 if settings.crops > 1 and len(settings.enlarge) > 1 else 0
        each = self.machine.start_s + tried * self.counts.val * self._graph_s(paces) / self.machine.cards
        return Stage("choose crops", 1, each, each, self._graph_peak(paces), 1000)

    def calibrating(self, paces: Sequence[Mapping[str, float]]) -> Stage:
        """Temperatures, the discriminants of the classes, and the threshold of `known`."""
        tuned, photos = (min(self.counts.val, most) for most in (TUNED, FITTED))
        passes = sum(pace["pass_s"] for pace in paces) * self.recipe.export.crops
        work = tuned * (passes * TEMPERED + self._graph_s(paces))
        work += photos * (4 * passes + 2 * self._graph_s(paces) + 2 * sum(pace["product_s"] for pace in paces))
        seen = min(self.counts.train, SEEN)
        work += seen * sum(max(_backbone_s(pace), pace["scored_s"] / 2) for pace in paces)  # in small batches
        each = self.machine.start_s + work / self.machine.cards
        rows = FLOAT * EMBEDDING * (self.counts.classes + EMBEDDING) * len(paces)
        sums = 2 * 8 * EMBEDDING * self.counts.classes  # of one member, float64; its embeddings wait in a file
        return Stage("calibrate", 1, each, each, self._graph_peak(paces) + 2 * rows + sums, rows)

    def exporting(self, paces: Sequence[Mapping[str, float]]) -> Stage:
        """The graph, its comparison with torch, and its answers to the test photos."""
        each = self.machine.start_s + GRAPH_S * len(paces) + self._answers_s(paces, self.counts.test + 100)
        rows = FLOAT * EMBEDDING * self.counts.classes * len(paces)  # of discriminants, which `known` may use
        size = int(sum(FLOAT * pace["parameters"] for pace in paces) + rows)
        peak = int(max(pace["peak_bytes"] for pace in paces) + WRITTEN * size)
        return Stage("export", 1, each, each, peak, size)

    def publishing(self, paces: Sequence[Mapping[str, float]]) -> Stage:
        """Gates, report, registration and switch, with the answers of a current model that is as large as the new one."""
        each = PUBLISH_S + self.counts.test * GATE_S
        if self.machine.compared:
            each += self.machine.start_s + self._answers_s(paces, self.machine.compared)
        return Stage("gate, report and publish", 1, each, each, int(5e8), 0)

    def together(self, parts: Sequence[Stage]) -> Stage:
        """The same stage of all members as one: members run side by side, one time after the other."""
        rounds = max(part.times for part in parts)
        seconds = sum(
            _side_by_side([part.each_s for part in parts if part.times > number], self.machine.side_by_side)
            for number in range(rounds)
        )
        return Stage(
            parts[0].step,
            sum(part.times for part in parts),
            max(part.each_s for part in parts),
            seconds,
            max(part.peak_bytes for part in parts),
            sum(part.disk_bytes for part in parts),
        )

    def _answers_s(self, paces: Sequence[Mapping[str, float]], photos: int) -> float:
        """Seconds in which a graph answers photos, of which every card gets its part."""
        return self.recipe.export.crops * sum(pace["asked_s"] for pace in paces) * photos / self.machine.cards

    def _graph_s(self, paces: Sequence[Mapping[str, float]]) -> float:
        return self.recipe.export.crops * sum(pace["shown_s"] for pace in paces)

    def _graph_peak(self, paces: Sequence[Mapping[str, float]]) -> int:
        return int(max(pace["peak_bytes"] for pace in paces) + sum(FLOAT * pace["parameters"] for pace in paces))

    def _network_bytes(self, pace: Mapping[str, float]) -> int:
        return int(FLOAT * pace["parameters"])

    def _peak(self, pace: Mapping[str, float], photos: int) -> int:
        """Memory of a training: as measured, with decoded photos, which it keeps as far as half of the free memory goes."""
        return int(pace["peak_bytes"] + 3 * self.recipe.export.input_size**2 * photos * (pace["feature_s"] == 0))


def _backbone_s(pace: Mapping[str, float]) -> float:
    """Seconds per photo of a pass that ends with embeddings."""
    return max(pace["scored_s"] - pace["product_s"] - 2 * pace["pass_s"], pace["scored_s"] / 4)


def _side_by_side(each_s: Sequence[float], number: int) -> float:
    """Seconds of steps of which `number` run at a time, the longest first."""
    ends = [0.0] * max(number, 1)
    for seconds in sorted(each_s, reverse=True):
        ends[ends.index(min(ends))] += seconds
    return max(ends)


def longest(found: Sequence[Stage]) -> Stage:
    """The stage that takes most of the time."""
    return max((stage for stage in found if not stage.is_there), key=lambda stage: stage.seconds, default=found[0])


def advice(stage: Stage, recipe: Recipe, machine: Machine) -> str:
    """Ways to make a stage shorter, in the words of the recipe and the settings."""
    of = {"train member": recipe.of(0).train, "score fold": recipe.of(recipe.clean.member).train}.get(stage.step)
    ways = []
    if of is not None:
        if of.backbone_lr_scale:
            ways.append("a frozen pretrained backbone (train.backbone_lr_scale=0 with --weights pretrained)")
        ways.append(
            "more machines (CLEANSHELF_DASK)" if stage.times > machine.side_by_side else "more workers (train.workers)"
        )
        ways.append(f"fewer draws (train.epoch_length, train.epochs={max(of.epochs // 2, 1)})")
    if stage.step == "score fold":
        ways.append(f"fewer folds (clean.folds={max(recipe.clean.folds // 2, 2)})" if recipe.clean.folds > 2 else
                    f"fewer epochs (clean.epochs={max(recipe.clean.epochs // 2, 1)})")  # fmt: skip
    if stage.step == "balance member":
        ways.append('one method (balance.method="tau") or balance.epochs=0')
    if stage.step in ("choose crops", "calibrate", "export", "gate, report and publish"):
        ways.append("fewer crops (export.crops=2)" if recipe.export.crops > 2 else "fewer members")
    if stage.step in ("export", "gate, report and publish"):
        ways.append("fewer test photos (ingest --test-share)")
    return ", ".join(ways) or "nothing in the recipe"


def compared(found: Sequence[Mapping[str, Any]], took: Mapping[str, float]) -> list[dict[str, Any]]:
    """Rows of what a plan said and what the run took, for the stages that the run computed.

    found: stages as `Stage.to_dict` gives them. took: seconds of each step of the record, by its name.
    """
    rows = []
    for stage in found:
        own = [seconds for name, seconds in took.items() if name.startswith(stage["step"])]
        if not own or stage["is_there"]:
            continue
        planned = stage["each_s"] * stage["times"]
        rows.append({"stage": stage["step"], "planned s": round(planned, 1), "took s": round(sum(own), 1),
                     "off by %": round(100 * (planned / max(sum(own), 0.1) - 1))})  # fmt: skip
    return rows
