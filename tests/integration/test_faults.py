"""Full disks, errors and concurrent commands: the data are always the whole old version or the whole new one."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, ItemsView, Iterator
from pathlib import Path

import pytest

from flows.data.versions import DataVersions
from flows.errors import MissingFromRemote, WorkspaceBusy
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from tests import verbs
from tests.deliveries import deliver
from tests.disks import small_disk
from tests.versions import check_whole, contents, two_versions

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.faults,
]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the delivery `more` and the workspace `shop`, which has two versions, the second selected."""
    root = tmp_path_factory.mktemp("prepared")
    two_versions(root, photos=3)
    return root


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy", symlinks=True))


def test_killed_while_writing_a_version_as_files(folder: Path) -> None:
    """Several processes write the same version and one is killed: the others get the whole version."""
    versions = DataVersions(Workspace.find(folder / "shop"))
    version = versions.selected()
    shutil.rmtree(versions.workspace.versions)
    code = f"""
from pathlib import Path
from flows.data.versions import DataVersions
from flows.workspace import Workspace
print(DataVersions(Workspace.find(Path({str(folder / "shop")!r}))).materialise({version!r}))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    time.sleep(0.9)
    processes[0].kill()
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs[1] == outputs[2] == str(versions.workspace.versions / str(version))
    check_whole(versions)


def test_a_second_process_is_refused_while_the_first_holds_the_lock(folder: Path) -> None:
    workspace = Workspace.find(folder / "shop")
    code = f"""
import sys
from pathlib import Path
from flows.workspace import Workspace
with Workspace.find(Path({str(workspace.root)!r})).lock("retrain"):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(WorkspaceBusy, match=rf"`retrain` \(process {holder.pid}\)"), workspace.lock("ingest"):
        pass
    with workspace.lock("promote", name="serving"):
        pass
    holder.kill()
    holder.communicate()
    with workspace.lock("ingest"):
        pass


def test_a_foreign_dvc_is_waited_for(folder: Path) -> None:
    """Covers a `dvc` command of the user that holds DVC's lock for longer than DVC itself would wait."""
    lock = folder / "shop" / ".dvc" / "tmp" / "lock"
    held = f"held = zc.lockfile.LockFile({str(lock)!r})"
    code = f"import time, zc.lockfile; {held}; print('held', flush=True); time.sleep(5)"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    holder.stdout.readline()
    workspace = Workspace.find(folder / "shop")
    verbs.ingest(workspace, folder / "more")  # copies to a remote that is a folder by itself
    versions = DataVersions(workspace)
    versions.store.push()
    assert holder.poll() == 0
    holder.communicate()
    check_whole(versions)


LIMITED = """
import sys
from pathlib import Path
from flows.data.versions import DataVersions
from flows.errors import DiskFull
from flows.delivery.build import build_version
from flows.workspace import Workspace

workspace = Workspace.find(Path(sys.argv[1]))
versions = DataVersions(workspace)
with workspace.lock("ingest"):
    versions.repair()
    base = versions.materialise("selected")
    folder = versions.new_folder()
    try:
        build_version(Path(sys.argv[2]), base=base, out=folder, parent=base.name)
        versions.commit(folder, step="ingest", message="too big")
    except DiskFull as error:
        print(error)
        sys.exit(0 if not folder.exists() else 9)
sys.exit(5)
"""


@pytest.mark.parametrize(
    ("photos", "occupied"),
    [(260, 0), (132, 0), (60, 9_100_000)],
    ids=["while-packing", "while-pushing", "while-adding"],
)
def test_a_full_disk(prepared: Path, tmp_path: Path, photos: int, occupied: int) -> None:
    """Fills a disk of 12 MB: 260 photos of 49 kB do not fit once, 132 do not fit twice, and 60 nearly fill it."""
    with small_disk(tmp_path / "disk", 12) as disk:
        shutil.copytree(prepared / "shop", disk / "shop", symlinks=True)
        versions = DataVersions(Workspace.find(disk / "shop"))
        old, before = versions.log(), contents(versions.workspace.data)
        deliver(tmp_path / "big", {"a": photos // 2, "b b": photos // 2}, first_seed=5000, side=128)
        filler = disk / "filler"
        filler.write_bytes(bytes(occupied))
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, str(disk / "shop"), str(tmp_path / "big")],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "no space left" in done.stdout
        assert "free some space" in done.stdout
        filler.unlink(missing_ok=True)
        versions.repair()
        assert versions.log() == old
        assert contents(versions.workspace.data) == before
        check_whole(versions)


def limit_file_size(limit: int) -> Callable[[], None]:
    def limit_process() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return limit_process


def test_a_file_that_cannot_grow(folder: Path) -> None:
    """Covers a full disk on machines that cannot mount one: files are limited to 300 kB, and the shard is larger."""
    deliver(folder / "big", {"a": 10, "b b": 10}, first_seed=5000, side=128)
    versions = DataVersions(Workspace.find(folder / "shop"))
    old = versions.log()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder / "shop"), str(folder / "big")],
        cwd=REPOSITORY, capture_output=True, text=True, check=False, preexec_fn=limit_file_size(300_000),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert versions.log() == old
    check_whole(versions)


def test_an_error_in_the_middle_restores_the_old_state(folder: Path) -> None:
    """Covers a remote that is a file, so that nothing can be stored in it."""
    workspace = Workspace.find(folder / "shop")
    versions = DataVersions(workspace)
    old = versions.log()
    workspace.remote.rename(folder / "remote elsewhere")
    workspace.remote.write_text("not a folder")
    with pytest.raises(MissingFromRemote, match="cannot write"):
        verbs.ingest(workspace, folder / "more")
    workspace.remote.unlink()
    (folder / "remote elsewhere").rename(workspace.remote)
    assert versions.log() == old
    check_whole(versions)


class Meanwhile(dict[str, bytes | None]):
    """Files of an entry; while they are being written, another process adds an entry."""

    def __init__(self, other: Ledger) -> None:
        super().__init__({"x": b"late"})
        self.other = other

    def items(self) -> ItemsView[str, bytes | None]:
        self.other.commit("refs/data/main", {"x": b"y"}, message="first")
        return super().items()


def test_a_ref_moved_by_another_process_is_not_overwritten(folder: Path) -> None:
    ledger = Ledger(folder / "shop")
    before = ledger.log("refs/data/main")
    with pytest.raises(WorkspaceBusy, match="moved by another process"):
        ledger.commit("refs/data/main", Meanwhile(ledger), message="late")
    first, *rest = ledger.log("refs/data/main")
    assert (first.message, rest) == ("first", before)


NAMELESS = """
import os, sys
from pathlib import Path
from flows.cli import main

def run(*words):
    sys.argv = ["cleanshelf", *words, "--workspace", "shop"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, f"{words} ended with {end.code}"

run("init")
import prefect
from flows.data.versions import DataVersions
from flows.workspace import Workspace
from flows.workspace.ledger import Ledger
from tests.versions import commit_first

versions = DataVersions(Workspace.find(Path("shop")))
commit_first(versions, Path.cwd())
versions.store.push()
run("data", "gc")
assert versions.verify() == []
print(Ledger(versions.workspace.root).user())
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_user_without_a_name_or_a_home(open_folder: Path) -> None:
    """A container may run as any user number, without an entry in passwd; git is told an address, but no name."""
    (open_folder / "gitconfig").write_text("[user]\n    email = a@b.c\n")
    os.chown(open_folder, 54321, 54321)
    keep = "+dac_override,+dac_read_search"  # this Python may lie where only we can read it
    nameless = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", f"--inh-caps={keep}"]
    python = [sys.executable, "-W", "ignore", "-c", NAMELESS]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    git = {"GIT_CONFIG_GLOBAL": str(open_folder / "gitconfig")}
    done = subprocess.run(
        [*nameless, f"--ambient-caps={keep}", *python],
        cwd=open_folder,
        env=variables | git,
        capture_output=True,
        text=True,
    )
    if "setpriv" in done.stderr:
        pytest.skip(f"this machine permits no change of the user: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "user 54321 <a@b.c>"
    assert not (open_folder / "~").exists()
