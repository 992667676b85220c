from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from contract import labels_sha256
from durable import sha256
from serving.errors import BadGraph, ContractChanged, CorruptVersion, RepositoryError, VersionInUse, VersionNotFound
from serving.repository.lineage import canonical
from serving.repository.model_config import TritonConfig
from serving.repository.repository import ModelRepository
from serving.server.control import load_on_start
from tests.breaking import ways
from tests.graphs import LABELS, SIZE, golden_images, write_graph

ROOT = Path(__file__).parents[3]
WRITE = """
import sys
from pathlib import Path
from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images
ModelRepository(Path(sys.argv[1])).write(Path(sys.argv[2]), version=1, labels=LABELS, lineage={}, golden=golden_images())
"""


def leftovers(repository: ModelRepository) -> list[str]:
    return [path.name for path in repository.model.iterdir() if path.name.startswith(".")]


def test_a_version_holds_everything(staged: ModelRepository, graph: Path) -> None:
    folder = staged.path(1)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "labels.txt", "golden.npz", "lineage.json"}
    assert (folder / "model.onnx").read_bytes() == graph.read_bytes()
    assert staged.labels(1) == LABELS
    lineage = staged.lineage(1)
    assert (lineage["run"], lineage["version"]) == ("r1", 1)
    assert set(lineage["files"]) == {"model.onnx", "labels.txt", "golden.npz"}
    staged.verify(1)
    assert leftovers(staged) == []


def test_golden_answers_are_onnx_runtimes(staged: ModelRepository, graph: Path) -> None:
    golden = staged.golden(1)
    session = onnxruntime.InferenceSession(graph)
    assert np.array_equal(golden.image, golden_images())
    for image, *answer in zip(golden.image, golden.ids, golden.probs, strict=True):
        ids, probs = session.run(["ids", "probs"], {"image": image[None]})
        assert np.array_equal(answer[0], ids[0])
        assert np.array_equal(answer[1], probs[0])


def test_labels_keep_their_characters(repository: ModelRepository, graph: Path) -> None:
    odd = ("Gruyère", "a\u2028b", "c\r", " d ", "e\x0b", "日本", "g", "h")
    repository.write(graph, version=4, labels=odd, lineage={}, golden=golden_images())
    assert repository.labels(4) == odd


def test_external_data_comes_along(repository: ModelRepository, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", external=True)
    folder = repository.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())
    assert set(repository.lineage(1)["files"]) >= {"model.onnx", "model.onnx.data"}
    assert (folder / "model.onnx.data").stat().st_size > 512 * 8 * 4
    (folder / "model.onnx.data").write_bytes(b"")
    with pytest.raises(CorruptVersion, match=r"model\.onnx\.data"):
        repository.verify(1)


def test_versions_never_change(staged: ModelRepository, graph: Path) -> None:
    before = staged.lineage(1)
    with pytest.raises(VersionInUse, match="next free number"):
        staged.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())
    assert staged.lineage(1) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS[:2]}, "there are 2 labels"),
        ({"labels": ()}, "at least one"),
        ({"labels": (*LABELS[:7], "two\nlines")}, "line feed"),
        ({"golden": golden_images(size=SIZE + 1)}, "golden images"),
        ({"golden": golden_images()[:0]}, "golden images"),
        ({"golden": golden_images().astype(np.float32)}, "golden images"),
        ({"version": 0}, "counts from 1"),
    ],
)
def test_a_refused_write_leaves_nothing(repository: ModelRepository, graph: Path, change: dict, message: str) -> None:
    given = {"version": 1, "labels": LABELS, "lineage": {}, "golden": golden_images(), **change}
    with pytest.raises(BadGraph, match=message):
        repository.write(graph, **given)
    assert repository.versions() == ()
    assert not repository.model.exists() or leftovers(repository) == []


def test_an_opset_that_onnx_runtime_does_not_know_is_refused(repository: ModelRepository, graph: Path) -> None:
    model = onnx.load(graph)
    model.opset_import[0].version = 99
    onnx.save(model, graph)
    with pytest.raises(BadGraph, match=rf"ONNX Runtime {onnxruntime.__version__} cannot run model\.onnx .*[Oo]pset"):
        repository.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())
    assert repository.versions() == ()


def test_labels_of_another_graph_are_refused(repository: ModelRepository, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "g.onnx", metadata={"labels_sha256": labels_sha256(LABELS)})
    with pytest.raises(BadGraph, match="labels_sha256"):
        repository.write(graph, version=1, labels=LABELS[::-1], lineage={}, golden=golden_images())
    repository.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())


@pytest.mark.faults
@pytest.mark.parametrize("name", ["model.onnx", "labels.txt", "golden.npz"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_verify_names_the_damaged_file(staged: ModelRepository, name: str, damage: str) -> None:
    path = staged.path(1) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    {"flip": lambda: path.write_bytes(data), "truncate": lambda: path.write_bytes(b""), "remove": path.unlink}[damage]()
    with pytest.raises(CorruptVersion, match=name):
        staged.verify(1)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["labels.txt", "golden.npz"])
def test_labels_and_golden_images_are_those_that_were_staged(staged: ModelRepository, name: str) -> None:
    """Damaged labels are never returned, and answers are never compared with damaged golden ones (I21)."""
    read = {"labels.txt": staged.labels, "golden.npz": staged.golden}[name]
    for way in ways(staged.path(1) / name, flips=8):
        with pytest.raises(CorruptVersion, match=f"{name} is missing or was changed; promote another version"):
            pytest.fail(f"{way}: {read(1)}")
    read(1)


@pytest.mark.faults
def test_a_broken_configuration_is_named_or_written_anew(staged: ModelRepository) -> None:
    """The registry decides which version is loaded: a start writes the file whatever it contains (I21)."""
    staged.configure([1])
    whole, reported = staged.configuration(), 0
    for way in ways(staged.model / "config.pbtxt", flips=64):
        try:
            found: object = staged.configured()
        except CorruptVersion as error:
            found, reported = str(error), reported + 1
        assert found in ((1,), ()) or "config.pbtxt" in str(found) or not staged.is_configured(1), way
        staged.configure([1])
        assert staged.configuration() == whole, way
    assert reported


@pytest.mark.faults
@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}'])
def test_verify_names_a_damaged_lineage(staged: ModelRepository, text: str) -> None:
    (staged.path(1) / "lineage.json").write_text(text)
    with pytest.raises(CorruptVersion, match=r"lineage\.json"):
        staged.verify(1)


def test_verify_names_a_file_without_a_record(staged: ModelRepository) -> None:
    (staged.path(1) / "extra.bin").write_bytes(b"x")
    with pytest.raises(CorruptVersion, match=r"extra\.bin"):
        staged.verify(1)


def test_configure_chooses_versions(staged: ModelRepository, graph: Path) -> None:
    assert staged.configured() == ()
    staged.write(graph, version=10, labels=LABELS, lineage={}, golden=golden_images())
    staged.configure([10, 1, 10])
    assert staged.configured() == (1, 10)
    assert "0123456789ab" in (staged.model / "config.pbtxt").read_text()
    load_on_start(staged, 10)
    assert (staged.configured(), staged.versions(), leftovers(staged)) == ((10,), (1, 10), [])


def test_unknown_versions_are_named(staged: ModelRepository) -> None:
    for call in (staged.path, staged.verify, staged.golden, lambda version: staged.configure([1, version])):
        with pytest.raises(VersionNotFound, match=r"no version 7; it has \[1\]"):
            call(7)
    assert staged.configured() == ()


@pytest.mark.parametrize("change", [{"size": 20}, {"k": 3}])
def test_another_contract_is_refused(staged: ModelRepository, tmp_path: Path, change: dict[str, int]) -> None:
    other = write_graph(tmp_path / "other.onnx", **change)
    staged.check_contract(other)  # nothing is served yet
    staged.configure([1])
    images = golden_images(size=change.get("size", SIZE))
    staged.write(other, version=2, labels=LABELS, lineage={}, golden=images)
    for refuse in (
        lambda: staged.check_contract(other),
        lambda: load_on_start(staged, 2),
        lambda: staged.configure([1, 2]),
    ):
        with pytest.raises(ContractChanged, match="clients would break"):
            refuse()
    assert staged.configured() == (1,)


def test_sweep_spares_a_running_write(staged: ModelRepository) -> None:
    abandoned = staged.model / ".stage-9-abandoned"
    abandoned.mkdir()
    (staged.model / ".config.pbtxt.123.part").write_text("half")
    with staged._staging(3) as live:
        assert {path.name for path in staged.sweep()} == {".stage-9-abandoned", ".config.pbtxt.123.part"}
        assert live.is_dir()
    assert leftovers(staged) == []
    assert staged.versions() == (1,)


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["model.onnx", "labels.txt", "golden.npz"])
def test_kill_during_a_write(repository: ModelRepository, tmp_path: Path, moment: str) -> None:
    graph = write_graph(tmp_path / "slow.onnx", work=12)  # its golden answers take a second
    child = subprocess.Popen([sys.executable, "-c", WRITE, repository.root, graph], cwd=ROOT)
    try:
        while not list(repository.model.glob(f".stage-*/{moment}")) and child.poll() is None:
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    for version in repository.versions():  # killed after the rename: then it is whole
        repository.verify(version)
    if moment != "golden.npz":
        assert repository.versions() == ()
        assert [path.name.startswith(".stage-1-") for path in repository.sweep()] == [True]
    repository.sweep()
    assert leftovers(repository) == []
    repository.write(graph, version=2, labels=LABELS, lineage={}, golden=golden_images(1))


FULL = """
import sys
from pathlib import Path
from serving.errors import DiskFull
from serving.repository.repository import ModelRepository
from tests.graphs import LABELS, golden_images
root, graph, kept = Path(sys.argv[1]), Path(sys.argv[2]), 0
repository = ModelRepository(root)
(root / "rest").write_bytes(bytes(16384))  # room for the configuration, however nearly the versions fill the rest
try:
    for version in range(1, 100):
        repository.write(graph, version=version, labels=LABELS, lineage={}, golden=golden_images())
        kept = version
except DiskFull as error:
    assert "no space left" in str(error)
(root / "rest").write_bytes(b"")
assert 1 <= kept < 99
assert repository.versions() == tuple(range(1, kept + 1)), repository.versions()
for version in repository.versions():
    repository.verify(version)
assert not list(repository.model.glob(".*")), list(repository.model.glob(".*"))
repository.configure([1])
before = (repository.model / "config.pbtxt").read_bytes()
try:
    with (root / "rest").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError:
    pass
try:
    repository.configure([1, kept])
except DiskFull:
    assert (repository.model / "config.pbtxt").read_bytes() == before
    assert not list(repository.model.glob(".*"))
    print("both refused")
"""


@pytest.mark.faults
def test_a_full_disk_leaves_whole_versions_only(graph: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = 'mount -t tmpfs -o size=300k none "$2" 2>&1 || exit 77; exec "$1" -c "$SCRIPT" "$2" "$3"'
    run = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh", sys.executable, str(small), str(graph)],
        cwd=ROOT,
        env={**os.environ, "SCRIPT": FULL},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode in (1, 77) and "Traceback" not in run.stderr:
        pytest.skip(f"a small file system is not available here: {run.stdout}{run.stderr}")
    assert run.stdout.strip() == "both refused", run.stderr


def test_other_system_errors_pass(repository: ModelRepository, graph: Path) -> None:
    repository.root.mkdir()
    repository.model.write_text("a file where the model's directory should be")
    with pytest.raises(OSError, match="products") as caught:
        repository.write(graph, version=1, labels=LABELS, lineage={}, golden=golden_images())
    assert not isinstance(caught.value, RepositoryError)


def test_the_lineage_is_canonical(staged: ModelRepository, graph: Path) -> None:
    text = (staged.path(1) / "lineage.json").read_bytes()
    assert text == canonical(json.loads(text))
    staged.write(graph, version=2, labels=LABELS, lineage={"run": "r1"}, golden=golden_images())
    assert (staged.path(2) / "lineage.json").read_bytes() == text.replace(b'"version":1', b'"version":2'), "no clock"


def test_one_text_for_the_same_facts() -> None:
    assert canonical({"b": [1.5, None], "a": "ü"}) == '{"a":"ü","b":[1.5,null]}\n'.encode()
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"a": float("nan")})


def test_a_version_of_an_earlier_release_is_read(staged: ModelRepository) -> None:
    lineage = staged.lineage(1)
    (staged.path(1) / "lineage.json").unlink()
    (staged.path(1) / "record.json").write_text(json.dumps(lineage, indent=1))
    staged.verify(1)
    assert staged.lineage(1) == lineage
    load_on_start(staged, 1)
    staged.restore(staged.configuration().replace('\\",\\"', '\\", \\"'))
    assert '\\", \\"' in staged.configuration(), "labels had a space after each comma"
    assert staged.astray() == []


def test_what_clients_read_in_the_configuration(staged: ModelRepository) -> None:
    load_on_start(staged, 1)
    parameters = TritonConfig.parse(staged.configuration()).parameters
    assert {name: parameters[f"{name}.1"] for name in ("data_version", "graph_sha256", "lineage_sha256", "run")} == {
        "data_version": "0123456789ab",
        "graph_sha256": sha256(staged.path(1) / "model.onnx"),
        "lineage_sha256": sha256(staged.path(1) / "lineage.json"),
        "run": "r1",
    }
    assert staged.astray() == []
    staged.restore(staged.configuration().replace("0123456789ab", "0123456789ac").replace('"run.1"', '"walk.1"'))
    assert staged.astray() == ["data_version.1", "run.1", "walk.1"]
