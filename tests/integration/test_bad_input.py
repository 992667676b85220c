"""Mistakes of a new user: each ends in one line with file, field and remedy, and nothing is lost or half-written."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.data.versions import DataVersions
from flows.delivery.build import build_version
from flows.workspace import Workspace
from models.data.manifest import read_manifest, read_table
from models.data.photos import Photos
from serving.server.environment import Environment
from tests.command_line import ROOT, cleanshelf, refusal, snapshot
from tests.deliveries import deliver, photo
from tests.disks import fill, small_disk

pytestmark = [
    pytest.mark.dvc,
    pytest.mark.faults,
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one version of two classes."""
    root = tmp_path_factory.mktemp("prepared")
    versions = DataVersions(Workspace.init(root / "shop"))
    folder = versions.new_folder()
    build_version(deliver(root / "first", {"a": 6, "b b": 6}), base=None, out=folder)
    versions.commit(folder, step="ingest", message="first")
    return root / "shop"


@pytest.fixture
def shop(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "shop", symlinks=True))


def refusal_of(shop: Path, *arguments: object) -> str:
    """Message of a command that is refused, after a check that the workspace is unchanged."""
    before = snapshot(shop)
    message = refusal(cleanshelf(*arguments, "--workspace", shop))
    assert snapshot(shop) == before
    assert list((shop / "state" / "staging").glob("*")) == []
    return message


# --- deliveries ----------------------------------------------------------------------------------------------------


def test_an_empty_folder(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refusal_of(shop, "ingest", tmp_path / "empty", "--dry-run")
    assert message == f"{tmp_path / 'empty'} is empty; put the photos into one folder per class"


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("path,label,price\na.png,a,3\n", "manifest.csv: unknown column 'price'; known are path, label, split, source"),
        ("path\na.png\n", "manifest.csv: column 'label' is missing; it has path"),
        (
            "path,label\nb.png,A\n",
            ": labels 'a' and 'A' differ only in case or white space; use one spelling",
        ),
        ("path,label\na.png,B B\n", ": labels 'b b' and 'B B' differ only in case or white space"),
        ("path,label,split\na.png,a,training\n", "manifest.csv: row 1, field split: 'training' is unknown; use train"),
        ("path,label\n../a.png,a\n", "the first is '../a.png', field path: leaves the folder of the delivery"),
        ("path,label\nnone.png,a\n", "the first is 'none.png', field path: no such file"),
        ("path,label\na.png,\n", "the first is 'a.png', field label: is blank"),
        ("path,label\ntext.png,a\n", ": no photo could be decoded; the first is 'text.png': not a picture"),
    ],
)
def test_deliveries_that_are_refused(prepared: Path, tmp_path: Path, manifest: str, message: str) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        (tmp_path / name).write_bytes(photo(900 + number))
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "manifest.csv").write_text(manifest)
    assert message in refusal_of(prepared, "ingest", tmp_path, "--dry-run")


def test_a_single_class(tmp_path: Path) -> None:
    shop = Workspace.init(tmp_path / "shop").root
    message = refusal_of(shop, "ingest", deliver(tmp_path / "one", {"only": 4}), "--dry-run")
    assert message.endswith("all photos are of one class, 'only'; deliver photos of at least two")


def test_a_delivery_that_does_not_exist(prepared: Path, tmp_path: Path) -> None:
    message = refusal_of(prepared, "ingest", tmp_path / "none", "--dry-run")
    assert message.startswith(f"{tmp_path / 'none'}: no such file or folder; give a folder per class")


# --- photos --------------------------------------------------------------------------------------------------------

RED, BLUE, SIDE = (200, 30, 40), (20, 60, 220), 32


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def two_halves(left: tuple[int, ...], right: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), left)
    image.paste(right, (SIDE // 2, 0, SIDE, SIDE))
    return image


def unusual_photos() -> dict[str, tuple[bytes, Image.Image]]:
    """Encoded photos by file name, each with the picture that a person would see."""
    picture = two_halves(RED, BLUE)
    grey = two_halves((50, 50, 50), (180, 180, 180))
    deep = Image.fromarray(np.asarray(grey)[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    see_through = picture.convert("RGBA")
    see_through.paste((0, 0, 0, 0), (SIDE // 2, 0, SIDE, SIDE))
    second = Image.new("RGB", (SIDE, SIDE), "black")
    return {
        "16 bit.png": (encoded(deep), grey),
        "cmyk.jpg": (encoded(picture.convert("CMYK"), "JPEG", quality=98), picture),
        "palette.png": (encoded(picture.quantize(4)), picture),
        "animated.gif": (encoded(picture, "GIF", save_all=True, append_images=[second]), picture),
        "animated.webp": (encoded(picture, "WEBP", save_all=True, append_images=[second], lossless=True), picture),
        "turned.jpg": (encoded(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=98), picture),
        "see-through.png": (encoded(see_through), two_halves(RED, (255, 255, 255))),
        "one bit.png": (encoded(two_halves((0,) * 3, (255,) * 3).convert("1")), two_halves((0,) * 3, (255,) * 3)),
    }


BROKEN = {
    "zero.jpg": (b"", "the file is empty (0 bytes)"),
    "truncated.png": (photo(77, side=64)[:3000], "the file is damaged"),
    "text.jpg": (b"not a photo", "not a picture in a format that can be read"),
    "bomb.png": (encoded(Image.new("1", (14_000, 14_000))), "more than 64,000,000 pixels"),
}


def test_unusual_photos_are_decoded_and_broken_ones_quarantined(tmp_path: Path) -> None:
    """Covers the path from file names with spaces, quotes and Unicode to the pixels that training gets."""
    shop = Workspace.init(tmp_path / 'my "shop"').root
    source = deliver(tmp_path / "it's Müsli & co", {'Kid\'s "best" [0.5 l]': 2, "Müsli": 2})
    odd = unusual_photos()
    for name, content in [*((n, c) for n, (c, _) in odd.items()), *((n, c) for n, (c, _) in BROKEN.items())]:
        (source / "Müsli" / name).write_bytes(content)
    (source / "Müsli" / "out.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "elsewhere.png").write_bytes(photo(1234))
    (source / "one photo").mkdir()
    (source / "one photo" / "only 'one'.png").write_bytes(photo(4321))
    done = cleanshelf("ingest", source, "--workspace", shop, "--json")
    report = json.loads(done.stdout)["report"]
    assert done.returncode == 0, done.stderr
    assert not (shop / "state" / "prefect").exists(), "no server was started for a few photos"
    assert report["warnings"] == ["class 'one photo' has one photo; it stays in train"]
    data = shop / "data"
    refused = {row["path"]: (row["field"], row["reason"]) for row in read_table(data, name="quarantine").to_pylist()}
    expected = {f"Müsli/{name}": ("photo", reason) for name, (_, reason) in BROKEN.items()}
    expected |= {"Müsli/out.png": ("path", "leaves the folder of the delivery through a link")}
    assert refused.keys() == expected.keys()
    for path, (field, reason) in expected.items():
        assert refused[path][0] == field
        assert reason in refused[path][1]
        assert f"quarantined: {path}, field {field}: {reason}"[:90] in " ".join(done.stderr.split()), path
    assert sum(report["quarantined"].values()) == len(expected)
    check_pixels(data, odd)


def check_pixels(data: Path, odd: dict[str, tuple[bytes, Image.Image]]) -> None:
    manifest = read_manifest(data)
    paths = read_table(data, name="index")["path"].to_pylist()
    rows = [paths.index(f"Müsli/{name}") for name in odd]
    [decoded] = Photos(manifest, np.array(rows), side=SIDE).in_order(len(rows))
    for (name, (_, expected)), pixels in zip(odd.items(), decoded.numpy(), strict=True):
        difference = np.abs(pixels.astype(int) - np.asarray(expected).astype(int))
        away_from_edge = [*range(SIDE // 2 - 2), *range(SIDE // 2 + 2, SIDE)]  # JPEG smears the edge
        assert difference[:, away_from_edge].max() <= 6, name


# --- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["robsut"], "no recipe 'robsut' (did you mean 'robust'?); known: aliproducts, demo, frozen, modern, robust, "
         "smoke, tuned"),
        (["none.toml"], "robust, smoke, tuned; or give the path of an existing .toml file"),
        (["smoke", "--set", "trian.epochs=3"], "smoke.toml: trian: no such key (did you mean 'train'?); known here: name,"),
        (["smoke", "--set", "train.epochs=0"], "smoke.toml: train.epochs: 0 is outside [1, inf]; correct it in the recipe"),
        (["smoke", "--set", "train.lr=inf"], "smoke.toml: train.lr: inf is not finite; correct it in the recipe"),
        (["smoke", "--set", "train.lr=fast"], "smoke.toml: train.lr: 'fast' is not a number; correct it in the recipe"),
        (["smoke", "--set", "train"], "--set train: write it as KEY=VALUE, for example train.epochs=3"),
        (["smoke", "--set", "members.7.size=32"], "--set members.7.size: there is no entry '7'; the list has 2"),
        (["smoke", "--set", "members.0.mean=[1.0]"], "members.0.mean: (1.0,) does not have three values; give red, green and blue"),
        (["smoke", "--set", "loss.params.num_classes=3"], "loss.params.num_classes: a recipe cannot set it; leave it out"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_read(prepared: Path, arguments: list[str], message: str) -> None:
    assert message in refusal_of(prepared, "retrain", *arguments)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[trian]\nepochs = 3\n", "mine.toml: trian: no such key (did you mean 'train'?); known here: name, members"),
        (b"x = [\n", "mine.toml: not valid TOML in UTF-8"),
        (b"\xff\xfe", "mine.toml: not valid TOML in UTF-8"),
        (b"members = 3\n", "mine.toml: members: 3 is not a list of tables; write each as [[members]]"),
        (b"train = 3\n", "mine.toml: train: 3 is not a table; write it as a table, with a key for each value"),
    ],
)
def test_recipe_files_that_cannot_be_read(prepared: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    assert message in refusal_of(prepared, "retrain", tmp_path / "mine.toml")


def test_an_unknown_backbone_is_refused_before_anything_is_trained(prepared: Path) -> None:
    message = refusal_of(prepared, "retrain", "smoke", "--set", "members.1.backbone=resent18")
    assert "has no model 'resent18' (did you mean resnet18" in message
    assert list((prepared / "runs").iterdir()) == []


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_machine_without_network_is_told_the_ways_out(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal_of(prepared, "retrain", *option)
    assert message.startswith("members.0.weights: timm's weights of resnet18.a1_in1k are not in ")
    assert message.endswith('name a file with --weights FILE, or start from random weights with --weights ""')
    assert list((prepared / "runs").iterdir()) == []


def test_a_dry_run_refuses_too(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "my weights.pt").write_bytes(b"garbage")
    message = refusal_of(
        prepared, "retrain", "smoke", "--set", f"members.1.weights={tmp_path / 'my weights.pt'}", "--dry-run"
    )
    assert message.startswith(f"members.1.weights: {tmp_path / 'my weights.pt'} cannot be read (")


# --- versions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("data rollback beef", "'beef' is not a data version; there are: "),
        ("data show beef", "'beef' is not a data version; there are: "),
        ("data diff selected beef", "'beef' is not a data version; there are: "),
        ("model show 7", "there is no model version 7; there are none yet; run `cleanshelf retrain` first"),
        ("model show", "there is no current model yet; run `cleanshelf retrain` first"),
        ("model rollback 7", "there is no model version 7; there are none yet"),
        ("model rollback", "no model version has been promoted yet; there are none yet"),
        ("model rollback --dry-run", "no model version has been promoted yet; there are none yet"),
    ],
)
def test_versions_that_do_not_exist(prepared: Path, arguments: str, message: str) -> None:
    assert refusal_of(prepared, *arguments.split()).startswith(message)


def test_data_edited_by_hand_is_not_overwritten(shop: Path, tmp_path: Path) -> None:
    version = DataVersions(Workspace.find(shop)).resolve("selected")
    (shop / "data" / "my notes.txt").write_text("keep me")
    source = deliver(tmp_path / "second", {"a": 1})
    for verb in (["data", "rollback", version[:8]], ["retrain", "smoke"], ["ingest", source, "--dry-run"]):
        message = refusal_of(shop, *verb)
        assert message.startswith(
            f"{shop / 'data'} differs from the selected version {version[:12]}: my notes.txt; move"
        )


def test_no_data_yet(tmp_path: Path) -> None:
    shop = Workspace.init(tmp_path).root
    message = refusal_of(shop, "retrain", "smoke")
    assert message == "'selected' is not a data version; there are: none yet; run `cleanshelf ingest` first"


# --- the machine ---------------------------------------------------------------------------------------------------


def test_a_workspace_in_use(prepared: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from flows.workspace import Workspace
with Workspace.find(Path({str(prepared)!r})).idle("retrain"):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        source = deliver(tmp_path / "second", {"a": 1})
        for verb in (["ingest", source], ["retrain", "smoke"], ["data", "rollback", "selected"]):
            message = refusal_of(prepared, *verb)
            assert message == (
                f"{prepared} is busy: `retrain` (process {holder.pid}) holds it; wait for it to end, or stop it"
            )
        assert cleanshelf("data", "log", "--workspace", prepared).returncode == 0, "reading needs no lock"
        holder.kill()


@pytest.mark.triton
def test_a_port_in_use(prepared: Path, triton_environment: Environment) -> None:
    env = {"CLEANSHELF_TRITON_ENV": str(triton_environment.path)}
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        message = refusal(cleanshelf("serve", "--workspace", prepared, "--http-port", port, env=env))
    assert message == f"http_port {port} is not available (Address already in use); choose another with --http-port"
    same_port = ("--http-port", port, "--grpc-port", port)
    message = refusal(cleanshelf("serve", "--workspace", prepared, *same_port, env=env))
    assert message == f"grpc_port {port} is http_port too; give each its own"
    assert not (prepared / "state" / "triton.json").exists()


@pytest.mark.prefect
def test_a_full_disk(prepared: Path, tmp_path: Path) -> None:
    """A disk of 20 MB holds 240 photos of 49 kB once but not twice; a fuller disk has no room for Prefect's server."""
    with small_disk(tmp_path / "disk", 20) as disk:
        shop = Path(shutil.copytree(prepared, disk / "shop", symlinks=True))
        source = deliver(tmp_path / "big", {"a": 120, "b b": 120}, first_seed=5000, side=128)
        before = snapshot(shop)
        message = refusal(cleanshelf("ingest", source, "--workspace", shop))
        assert "no space left while " in message
        assert message.endswith("free some space and run it again")
        half_written = check_only_whole_objects_were_added(shop, before)
        filler = fill(disk, leaving=100_000)
        message = refusal_of(shop, "ingest", source)
        assert message.startswith(f"{shop / 'state'}: 0 MB are free, ")
        filler.unlink()
        assert DataVersions(Workspace.find(shop)).verify("selected") == []
    assert not half_written


def check_only_whole_objects_were_added(shop: Path, before: dict[str, str]) -> list[str]:
    """Checks that old files are unchanged and new ones are whole objects; returns names of temporary files."""
    after = snapshot(shop)
    assert {name: after.get(name) for name in before} == before
    new = [name for name in after.keys() - before.keys() if (shop / name).is_file()]
    assert all(name.startswith("remote/files/md5/") for name in new), new
    objects = [name for name in new if not Path(name).name.startswith(".")]
    for name in objects:
        md5 = hashlib.md5((shop / name).read_bytes(), usedforsecurity=False).hexdigest()
        assert name.removesuffix(".dir").replace("/", "").endswith(md5)
    return sorted(set(new) - set(objects))


def test_a_file_that_cannot_grow(prepared: Path, tmp_path: Path) -> None:
    """Covers a full disk on machines that cannot mount one: files are limited to 300 kB, and the shard is larger."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    source = deliver(tmp_path / "big", {"a": 10, "b b": 10}, first_seed=5000, side=128)
    before = snapshot(prepared)
    message = refusal(cleanshelf("ingest", source, "--dry-run", "--workspace", prepared, preexec_fn=limit))
    assert message.startswith(f"no space left while ingesting {source} (")
    assert snapshot(prepared) == before


def test_recognise_without_a_server(prepared: Path, tmp_path: Path) -> None:
    message = refusal_of(prepared, "recognise", tmp_path / "x.jpg")
    assert (
        message
        == "no endpoint is running for this workspace; start one with `cleanshelf serve`, or name an ONNX file with --model"
    )
