"""Commands that change data, killed anywhere: the next command repairs, and every promise is checked by hashing anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flows.data_version import DataVersions
from flows.workspace import Workspace
from tests import verbs
from tests.deliveries import deliver
from tests.kills import Kills
from tests.versions import check_whole

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.faults,
]

INGEST = ("tests.verbs", "ingest", "shop", "more")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the delivery `more` and the workspace `shop`, which holds two versions, the second selected."""
    place = tmp_path_factory.mktemp("prepared")
    deliver(place / "first", {"a": 3, "b b": 3})
    deliver(place / "second", {"a": 2, "c": 2}, first_seed=100)
    deliver(place / "more", {"b b": 3, "it's": 2}, first_seed=200)
    Workspace.init(place / "shop")
    for source in ("first", "second"):
        verbs.ingest(versions_in(place).workspace, place / source)
    return place


def versions_in(place: Path) -> DataVersions:
    return DataVersions(Workspace.find(place / "shop"))


def copied(prepared: Path, *command: str) -> Callable[[Path], Sequence[object]]:
    """Prepares a copy; words of the command that name something in it become paths."""

    def prepare(place: Path) -> Sequence[object]:
        shutil.copytree(prepared, place, symlinks=True, dirs_exist_ok=True)
        return [place / word if (place / word).exists() else word for word in command]

    return prepare


def repaired(place: Path) -> DataVersions:
    """The data versions after what the next command does first."""
    versions = versions_in(place)
    with versions.workspace.lock("repair"):
        versions.repair()
    return versions


def test_ingest_of_a_further_delivery(kills: Kills, prepared: Path) -> None:
    old = versions_in(prepared).log()

    def check(place: Path) -> None:
        versions = repaired(place)
        check_whole(versions)
        is_done = len(versions.log()) == 3
        assert is_done or versions.log() == old
        verbs.ingest(versions.workspace, place / "more")
        check_whole(versions)
        assert len(versions.log()) == 3
        assert len(versions.ledger.tags("data/*")) == 3

    kills.strike("ingest of a further delivery", promises="I1 to I4", prepare=copied(prepared, *INGEST), check=check)
