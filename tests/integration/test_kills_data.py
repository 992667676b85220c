"""Commands that change data, killed at any point: the next command repairs, which hashes of all files confirm."""

from __future__ import annotations

import json
import os
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
STEPS = {
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
    """Folder with `shop`, a workspace with two versions, the delivery `more`, people's labels, and scores of folds."""
    folder = tmp_path_factory.mktemp("prepared")
    two_versions(folder, photos=12)
    (folder / "shop" / "mine.txt").write_text("mine")
    (folder / "labels.csv").write_text(FEEDBACK)
    manifest = read_manifest(versions_in(folder).materialise("selected"))
    for number, name in enumerate(FOLDS):
        write_fold_scores(folder / name, manifest, number)
    return folder


def write_fold_scores(folder: Path, manifest: Manifest, number: int) -> None:
    """Writes scores of one of two folds, in which every fourth label is improbable."""
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


def versions_in(folder: Path) -> DataVersions:
    return DataVersions(Workspace.find(folder / "shop"))


def copied(prepared: Path, *command: str) -> Callable[[Path], Sequence[object]]:
    """Function that prepares a copy, and returns the command with paths in the copy where it names files."""

    def prepare(folder: Path) -> Sequence[object]:
        shutil.copytree(prepared, folder, symlinks=True, dirs_exist_ok=True)
        return [folder / word if (folder / word).exists() else word for word in command]

    return prepare


def after_repair(folder: Path, prepared: Path) -> DataVersions:
    """Data versions after the repair that begins the next command. Checks a reader before it, and that nothing is lost."""
    with suppress(WorldError):
        copy = versions_in(folder).materialise("selected")
        assert Listing.of(copy, hashes=HashCache(folder / "seen")).without("READY").id == copy.name
    versions = versions_in(folder)
    with versions.workspace.idle("repair"):  # the kernel released the lock of the killed process
        versions.repair()
    check_whole(versions)
    assert contents(folder / "more") == contents(prepared / "more")
    assert (folder / "shop" / "mine.txt").read_text() == "mine"
    return versions


class MakesOneVersion:
    """Check that a command makes exactly one version, whenever it is killed and however often it runs."""

    def __init__(self, prepared: Path, again: Callable[[Path], object]) -> None:
        self.prepared, self.again = prepared, again
        self.old = versions_in(prepared).log()
        self.made: str | None = None

    def __call__(self, folder: Path) -> None:
        versions = after_repair(folder, self.prepared)
        assert [entry.id for entry in versions.log()][-len(self.old) :] == [entry.id for entry in self.old]
        for _ in range(2):
            self.again(folder)
            newest, *before = versions.log()
            assert len(before) == len(self.old)
        self.made = self.made or newest.id
        assert newest.id == self.made, "the same version as without a kill"
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

    def check(folder: Path) -> None:
        if not after_first_repair(folder):
            verbs.ingest(versions_in(folder).workspace, folder / "more")
        after_repair(folder, empty)
        assert len(versions_in(folder).log()) == 1

    command = ("tests.verbs", "ingest", "shop", "more")
    kills.strike("ingest of a first delivery", promises="I1 to I4", prepare=copied(empty, *command), check=check)


def after_first_repair(folder: Path) -> list[Entry]:
    """History of a workspace that was empty, after a check that there are data only if there is a history."""
    versions = versions_in(folder)
    versions.repair()
    entries = versions.log()
    assert (versions.selected() is None) == (not versions.workspace.data.exists()) == (not entries)
    return entries


def test_ingest_of_a_further_delivery(kills: Kills, prepared: Path) -> None:
    check = MakesOneVersion(prepared, lambda folder: verbs.ingest(versions_in(folder).workspace, folder / "more"))
    command = ("tests.verbs", "ingest", "shop", "more")
    kills.strike("ingest of a further delivery", promises="I1 to I4", prepare=copied(prepared, *command), check=check)


def test_rollback(kills: Kills, prepared: Path) -> None:
    first = versions_in(prepared).log()[-1].id

    def check(folder: Path) -> None:
        versions = after_repair(folder, prepared)
        assert len(versions.log()) in (2, 3)
        rollback_data(versions.workspace, first)
        assert versions.log()[0].id == first
        check_whole(versions)

    command = ("tests.verbs", "data", "rollback", first, "--workspace", "shop")
    kills.strike("data rollback", promises="I5 to I7", prepare=copied(prepared, *command), check=check)


def test_writing_a_version_as_files(kills: Kills, prepared: Path) -> None:
    first = versions_in(prepared).log()[-1].id

    def check(folder: Path) -> None:
        ready = versions_in(folder).workspace.versions / first / "READY"
        if ready.exists():
            assert Listing.of(ready.parent, hashes=HashCache(folder / "seen")).without("READY").id == first
        after_repair(folder, prepared).materialise(first)
        assert ready.exists()

    def prepare(folder: Path) -> Sequence[object]:
        command = copied(prepared, "tests.verbs", "materialise", "shop", first)(folder)
        shutil.rmtree(folder / "shop" / "versions" / first)
        return command

    kills.strike("taking a version as files", promises="I5, I6", prepare=prepare, check=check)


def test_cleaning(kills: Kills, prepared: Path) -> None:
    """The version is known by its tag alone, and the selection stays."""
    before, made = versions_in(prepared).log(), set()

    def check(folder: Path) -> None:
        versions = after_repair(folder, prepared)
        for _ in range(2):
            made.add(verbs.clean(versions.workspace, *[folder / fold for fold in FOLDS]).name)
            assert versions.log() == before
            assert {entry.id for entry in versions.listed() if entry.run} == made
            assert len(made) == 1, "the same version as without a kill"
            check_whole(versions)
            assert not list(versions.workspace.runs.glob("*/new-*"))

    command = ("tests.verbs", "clean", "shop", *FOLDS)
    kills.strike("cleaning, one round", promises="I11, I23", prepare=copied(prepared, *command), check=check)


def test_selection_of_a_cleaned_version(kills: Kills, prepared: Path, tmp_path: Path) -> None:
    cleaned = Path(shutil.copytree(prepared, tmp_path / "cleaned", symlinks=True))
    made = verbs.clean(versions_in(cleaned).workspace, *[cleaned / fold for fold in FOLDS]).name
    old = versions_in(prepared).log()[0].id

    def check(folder: Path) -> None:
        versions = after_repair(folder, cleaned)
        assert versions.selected() in (old, made)
        for _ in range(2):
            assert verbs.select(versions.workspace, made) == ""
            assert [entry.id for entry in versions.log()][:2] == [made, old]
            assert (len(versions.log()), versions.log()[0].step) == (3, "clean-1")
            check_whole(versions)

    command = ("tests.verbs", "select", "shop", made)
    kills.strike(
        "selection of a cleaned version", promises="I1 to I4, I23", prepare=copied(cleaned, *command), check=check
    )


def test_feedback(kills: Kills, prepared: Path) -> None:
    check = MakesOneVersion(prepared, lambda folder: feedback(versions_in(folder).workspace, folder / "labels.csv"))
    command = ("tests.verbs", "feedback", "labels.csv", "--workspace", "shop")
    kills.strike("feedback", promises="I1 to I4, I11", prepare=copied(prepared, *command), check=check)


COMMANDS = {"ingest": ("ingest", "shop", "more"), "rollback": ("data", "rollback", "first", "--workspace", "shop")}


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Outcome of each command without a kill, with all its fault points."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {verb: run(*command(verb, prepared, folder / verb), log=folder / f"{verb}.log") for verb in COMMANDS}


def command(verb: str, prepared: Path, folder: Path) -> Sequence[object]:
    first = versions_in(prepared).log()[-1].id
    words = (first if word == "first" else word for word in COMMANDS[verb])
    return copied(prepared, "tests.verbs", *words)(folder)


def number_of(step: str, passed: Sequence[Sequence[str]]) -> int:
    """Number of the first fault point of that step; fault points are counted from 1."""
    call, ending = STEPS[step]
    return 1 + next(
        n for n, (did, *words) in enumerate(passed) if did == call and any(w.endswith(ending) for w in words)
    )


@pytest.mark.parametrize(
    ("verb", "step"), [*product(COMMANDS, STEPS)][:-1]
)  # a rollback makes no tag, as the version has one
def test_killed_at_each_step(
    prepared: Path, undisturbed: dict[str, Outcome], tmp_path: Path, verb: str, step: str
) -> None:
    folder = tmp_path / "copy"
    fatal = number_of(step, undisturbed[verb].passed)
    assert run(*command(verb, prepared, folder), log=tmp_path / "killed.log", fatal=fatal).killed
    versions = after_repair(folder, prepared)
    assert len(versions.log()) == (3 if step in ("entry", "tag") else 2)


def test_git_killed_while_it_holds_a_ref(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock of a killed git would block the history for ever."""
    check = MakesOneVersion(prepared, lambda folder: verbs.ingest(versions_in(folder).workspace, folder / "more"))
    words = command("ingest", prepared, tmp_path / "copy")
    lock = tmp_path / "copy" / "shop" / ".git" / "refs" / "data" / "main.lock"
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    git.write_text(f"""#!/bin/sh
case " $* " in *" update-ref "*) touch '{lock}'; kill -9 0;; esac
exec {shutil.which("git")} "$@"
""")
    git.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
        assert run(*words, log=tmp_path / "killed.log").killed
    assert list((tmp_path / "copy" / "shop" / ".git" / "refs").rglob("*.lock"))
    check(tmp_path / "copy")


@pytest.mark.parametrize("verb", COMMANDS)
def test_nothing_is_recorded_before_it_is_on_the_disk(undisturbed: dict[str, Outcome], verb: str) -> None:
    """Covers power loss by a trace: before git writes the entry, files are synced, and then the folders of their names."""
    passed = undisturbed[verb].passed
    until = number_of("entry", passed)
    named = [
        (at, call, words) for at, (call, *words) in enumerate(passed[:until]) if call in ("rename", "replace", "link")
    ]
    synced = [(at, words[0]) for at, (call, *words) in enumerate(passed[:until]) if call == "fsync"]
    assert len(named) > 10
    for at, call, (source, target) in named:
        parent = str(Path(target).parent)
        assert any(path == parent for later, path in synced if later > at), f"{target}: its name is not synced"
        if call == "replace":
            before = any(path == source for earlier, path in synced if earlier < at)
            later = "/remote/" in target and any(path == target for after, path in synced if after > at)
            # DVC renames a file before it is synced; the file is synced before the entry nevertheless.
            assert before or later, f"{target}: its bytes are not synced"
