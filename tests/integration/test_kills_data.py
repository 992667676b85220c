"""Commands that change data, killed anywhere: the next command repairs, and every promise is checked by hashing the files again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from flows.data.history import Entry
from flows.data.objects import HashCache, Listing
from flows.data.versions import DataVersions
from flows.errors import WorldError
from flows.feedback import feedback
from flows.rollback import rollback_data
from flows.workspace import Workspace
from models.data.manifest import Manifest, read_manifest
from models.evaluation.scores import Scores, write_scores
from tests import verbs
from tests.deliveries import deliver
from tests.kills import Kills, Outcome, run
from tests.versions import check_whole, contents, two_versions

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.faults,
]

FOLDS = ("fold-0", "fold-1")
FEEDBACK = "path,label\na/photo 0.png,b b\nb b/photo 12.png,\n"
TURNS = {
    "old pointer": ("replace", "/state/previous.dvc"),
    "journal": ("replace", "/state/journal.json"),
    "set aside": ("rename", "/state/previous"),
    "swapped": ("rename", "/data"),
    "pointer": ("replace", "/data.dvc"),
    "entry": ("run", "update-ref"),
    "tag": ("run", "-a"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace `shop` with two versions, the second selected; a delivery `more`; what people and folds say."""
    place = tmp_path_factory.mktemp("prepared")
    two_versions(place, photos=12)
    (place / "shop" / "mine.txt").write_text("mine")
    (place / "words.csv").write_text(FEEDBACK)
    manifest = read_manifest(versions_in(place).materialise("selected"))
    for number, name in enumerate(FOLDS):
        judge_half(place / name, manifest, number)
    return place


def judge_half(folder: Path, manifest: Manifest, number: int) -> None:
    """Scores of one of two folds, which believe every label but each fourth."""
    held_out = (np.arange(len(manifest)) % 2 == number) & (manifest.split == "train") | (manifest.split == "val")
    rows = np.flatnonzero(held_out)
    target = np.array([manifest.classes.index(label) for label in manifest.label[rows]])
    p_label = np.where(rows // 2 % 4 == 0, 0.05, 0.9).astype(np.float32)
    others = np.arange(1, len(manifest.classes)) + target[:, None]
    top = np.concatenate([target[:, None], others % len(manifest.classes)], axis=1)
    rest = np.repeat((1 - p_label[:, None]) / others.shape[1], others.shape[1], axis=1)
    probs = np.concatenate([p_label[:, None], rest], axis=1).astype(np.float32)
    order = np.argsort(-probs, axis=1, kind="stable")
    folder.mkdir()
    top, probs = (np.take_along_axis(each, order, axis=1) for each in (top, probs))
    write_scores(Scores(manifest.id[rows].astype(str), target, p_label, top, probs), folder / "scores.parquet")
    np.save(folder / "embeddings.npy", np.eye(len(manifest.classes), dtype=np.float32)[target])


def versions_in(place: Path) -> DataVersions:
    return DataVersions(Workspace.find(place / "shop"))


def copied(prepared: Path, *command: str) -> Callable[[Path], Sequence[object]]:
    """Prepares a copy; words of the command that name something in it become paths."""

    def prepare(place: Path) -> Sequence[object]:
        shutil.copytree(prepared, place, symlinks=True, dirs_exist_ok=True)
        return [place / word if (place / word).exists() else word for word in command]

    return prepare


def after_repair(place: Path, prepared: Path) -> DataVersions:
    """The data versions after what the next command does first; a reader before it was not fooled, and nothing is lost."""
    with suppress(WorldError):
        taken = versions_in(place).materialise("selected")
        assert Listing.of(taken, hashes=HashCache(place / "seen")).without("READY").id == taken.name
    versions = versions_in(place)
    with versions.workspace.lock("repair"):  # the kernel freed it
        versions.repair()
    check_whole(versions)
    assert contents(place / "more") == contents(prepared / "more")
    assert (place / "shop" / "mine.txt").read_text() == "mine"
    return versions


class Once:
    """Checks of a command that makes one more version, whenever it is killed and however often it runs."""

    def __init__(self, prepared: Path, again: Callable[[Path], object]) -> None:
        self.prepared, self.again = prepared, again
        self.old = versions_in(prepared).log()
        self.made: str | None = None

    def __call__(self, place: Path) -> None:
        versions = after_repair(place, self.prepared)
        assert [entry.id for entry in versions.log()][-len(self.old) :] == [entry.id for entry in self.old]
        for _ in range(2):
            self.again(place)
            newest, *before = versions.log()
            assert len(before) == len(self.old)
        self.made = self.made or newest.id
        assert newest.id == self.made, "as without a kill"
        check_whole(versions)
        assert max(children(versions.log(), versions).values()) == 1


def children(entries: Sequence[Entry], versions: DataVersions) -> Counter[tuple[str | None, str, str]]:
    """Number of versions by (parent, step, config)."""
    found = {entry.id: json.loads((versions.materialise(entry.id) / "VERSION.json").read_bytes()) for entry in entries}
    return Counter((facts["parent"], facts["step"], facts["config"]) for facts in found.values())


def test_ingest_of_a_first_delivery(kills: Kills, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    deliver(empty / "more", {"a": 3, "b": 3})
    (Workspace.init(empty / "shop").root / "mine.txt").write_text("mine")

    def check(place: Path) -> None:
        if not after_first_repair(place):
            verbs.ingest(versions_in(place).workspace, place / "more")
        after_repair(place, empty)
        assert len(versions_in(place).log()) == 1

    command = ("tests.verbs", "ingest", "shop", "more")
    kills.strike("ingest of a first delivery", promises="I1 to I4", prepare=copied(empty, *command), check=check)


def after_first_repair(place: Path) -> list[Entry]:
    """The history of a workspace that was empty; where there is none, there are no data either."""
    versions = versions_in(place)
    versions.repair()
    entries = versions.log()
    assert (versions.selected() is None) == (not versions.workspace.data.exists()) == (not entries)
    return entries


def test_ingest_of_a_further_delivery(kills: Kills, prepared: Path) -> None:
    check = Once(prepared, lambda place: verbs.ingest(versions_in(place).workspace, place / "more"))
    command = ("tests.verbs", "ingest", "shop", "more")
    kills.strike("ingest of a further delivery", promises="I1 to I4", prepare=copied(prepared, *command), check=check)


def test_rollback(kills: Kills, prepared: Path) -> None:
    first = versions_in(prepared).log()[-1].id

    def check(place: Path) -> None:
        versions = after_repair(place, prepared)
        assert len(versions.log()) in (2, 3)
        rollback_data(versions.workspace, first)
        assert versions.log()[0].id == first
        check_whole(versions)

    command = ("tests.verbs", "data", "rollback", first, "--workspace", "shop")
    kills.strike("data rollback", promises="I5 to I7", prepare=copied(prepared, *command), check=check)


def test_taking_a_version(kills: Kills, prepared: Path) -> None:
    first = versions_in(prepared).log()[-1].id

    def check(place: Path) -> None:
        ready = versions_in(place).workspace.versions / first / "READY"
        if ready.exists():
            assert Listing.of(ready.parent, hashes=HashCache(place / "seen")).without("READY").id == first
        after_repair(place, prepared).materialise(first)
        assert ready.exists()

    def prepare(place: Path) -> Sequence[object]:
        command = copied(prepared, "tests.verbs", "take", "shop", first)(place)
        shutil.rmtree(place / "shop" / "versions" / first)
        return command

    kills.strike("taking a version as files", promises="I5, I6", prepare=prepare, check=check)


def test_cleaning(kills: Kills, prepared: Path) -> None:
    check = Once(prepared, lambda place: verbs.clean(versions_in(place).workspace, *[place / fold for fold in FOLDS]))
    command = ("tests.verbs", "clean", "shop", *FOLDS)
    kills.strike("cleaning, one round", promises="I11", prepare=copied(prepared, *command), check=check)


def test_feedback(kills: Kills, prepared: Path) -> None:
    check = Once(prepared, lambda place: feedback(versions_in(place).workspace, place / "words.csv"))
    command = ("tests.verbs", "feedback", "words.csv", "--workspace", "shop")
    kills.strike("feedback", promises="I1 to I4, I11", prepare=copied(prepared, *command), check=check)


COMMANDS = {"ingest": ("ingest", "shop", "more"), "rollback": ("data", "rollback", "first", "--workspace", "shop")}


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """File operations of each command from beginning to end."""
    place = tmp_path_factory.mktemp("undisturbed")
    return {verb: run(*command(verb, prepared, place / verb), log=place / f"{verb}.log") for verb in COMMANDS}


def command(verb: str, prepared: Path, place: Path) -> Sequence[object]:
    first = versions_in(prepared).log()[-1].id
    words = (first if word == "first" else word for word in COMMANDS[verb])
    return copied(prepared, "tests.verbs", *words)(place)


def number_of(turn: str, passed: Sequence[Sequence[str]]) -> int:
    """Index of a fault point with that name."""
    what, ending = TURNS[turn]
    return 1 + next(
        n for n, (did, *words) in enumerate(passed) if did == what and any(w.endswith(ending) for w in words)
    )


@pytest.mark.parametrize(("verb", "turn"), [*product(COMMANDS, TURNS)][:-1])  # what is selected again has its tag
def test_killed_at_each_turn(
    prepared: Path, undisturbed: dict[str, Outcome], tmp_path: Path, verb: str, turn: str
) -> None:
    place = tmp_path / "place"
    fatal = number_of(turn, undisturbed[verb].passed)
    assert run(*command(verb, prepared, place), log=tmp_path / "killed.log", fatal=fatal).killed
    versions = after_repair(place, prepared)
    assert len(versions.log()) == (3 if turn in ("entry", "tag") else 2)


def test_git_killed_while_it_holds_a_ref(prepared: Path, tmp_path: Path) -> None:
    """Its lock would keep the history as it is for ever."""
    check = Once(prepared, lambda place: verbs.ingest(versions_in(place).workspace, place / "more"))
    words = command("ingest", prepared, tmp_path / "place")
    hook = tmp_path / "place" / "shop" / ".git" / "hooks" / "reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\n[ "$1" != prepared ] || kill -9 0\n')
    hook.chmod(0o755)
    assert run(*words, log=tmp_path / "killed.log").killed
    hook.unlink()
    assert list((tmp_path / "place" / "shop" / ".git" / "refs").rglob("*.lock"))
    check(tmp_path / "place")


@pytest.mark.parametrize("verb", COMMANDS)
def test_nothing_is_recorded_before_it_is_on_the_disk(undisturbed: dict[str, Outcome], verb: str) -> None:
    """Power loss, as far as a trace tells: before git writes the entry, each file is synced and then each name of one."""
    passed = undisturbed[verb].passed
    until = number_of("entry", passed)
    named = [
        (at, what, words) for at, (what, *words) in enumerate(passed[:until]) if what in ("rename", "replace", "link")
    ]
    synced = [(at, words[0]) for at, (what, *words) in enumerate(passed[:until]) if what == "fsync"]
    assert len(named) > 10
    for at, what, (source, target) in named:
        parent = str(Path(target).parent)
        assert any(path == parent for later, path in synced if later > at), f"{target}: its name"
        if what == "replace":
            before = any(path == source for earlier, path in synced if earlier < at)
            later = "/remote/" in target and any(path == target for after, path in synced if after > at)
            assert before or later, (
                f"{target}: its bytes"
            )  # DVC renames first; it is synced before the entry all the same
