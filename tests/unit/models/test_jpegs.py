"""JPEGs decoded on the device: the same photos in the same order as by loaders alone; faults, refusals and resumed trainings.

The device is the CPU here, where torchvision decodes a list of files by libjpeg-turbo.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from pace.data import write_data
from PIL import Image
from torch import Tensor

import models.data.photos
from models.data import jpegs, machine
from models.data.decoder import resize
from models.data.jpegs import decode, require_nvjpeg, squeeze_into
from models.data.manifest import read_manifest
from models.data.photos import Photos
from models.errors import ConfigError, ManifestError
from models.export import calibrate, crops, teacher
from models.networks.inputs import Views
from models.networks.network import build_network
from models.recipe.config import Augment, Export, Member, load_recipe, to_dict
from models.training.check import check
from models.training.decoupling import rebalance
from models.training.features import frozen_features
from models.training.train import save_network
from tests.recording_loss import RECIPE, train, training_job
from tests.unit.models.pretend_card import CARD, pretend_card
from tests.unit.models.test_export import trained

SIDE = 48  # a row has 6,912 bytes
CPU = torch.device("cpu")
ORDER = [np.array([3, 0, 7, 1]), np.array([2, 5, 4]), np.array([6, 8, 0])]


def picture(seed: int, width: int = 60, height: int = 50) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PLAIN = {
    0: encoded(picture(0)),
    1: encoded(picture(1, 80, 70), quality=90, progressive=True),
    2: encoded(picture(2).convert("L")),
    3: encoded(picture(3), subsampling=0),
    4: encoded(picture(4, SIDE, SIDE)),
}
OTHERS = {
    5: encoded(picture(5), "PNG"),
    6: encoded(picture(6).convert("CMYK")),
    7: encoded(picture(7), exif=turned()),
    8: encoded(Image.fromarray(np.random.default_rng(8).integers(0, 256, (90, 90, 3), np.uint8)), quality=95),  # large
}


def broken(seed: int) -> bytes:
    """A JPEG with an impossible table of codes between its scans, where a look at its header does not find it."""
    photo = encoded(picture(seed), progressive=True)
    start = photo.rindex(b"\xff\xc4") + 5
    return photo[:start] + b"\xff" * 16 + photo[start + 16 :]


@pytest.fixture(autouse=True)
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No decoded photo is kept, so that both ways decode each time."""
    monkeypatch.setattr(machine, "available_bytes", lambda: 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of files that the device was asked to decode."""
    numbers: list[int] = []

    def counted(files: Sequence[Tensor], device: torch.device) -> list[Tensor | None]:
        numbers.append(len(files))
        return decode(files, device)

    monkeypatch.setattr(models.data.photos, "decode", counted)
    return numbers


def version(folder: Path, photos: dict[int, bytes]) -> Path:
    """A data version whose row i shows photo i."""
    every = [photos[row] for row in sorted(photos)]
    return write_data(folder, every, [f"class {row % 2}" for row in range(len(every))], ["train"] * len(every))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data version of plain JPEGs on which a network can be trained, balanced and calibrated."""
    splits = ["train"] * 21 + ["val"] * 6 + ["test"] * 3
    return write_data(tmp_path / "data", [*PLAIN.values()], [f"class {row % 2}" for row in range(30)], splits)


def photos_of(data: Path, *, on_device: bool, loaders: int = 0) -> Photos:
    manifest = read_manifest(data)
    return Photos(manifest, np.arange(len(manifest)), side=SIDE, loaders=loaders, is_reduced=True, on_device=on_device)


def drawn(photos: Photos) -> Iterator[tuple[Tensor, list[int]]]:
    needed = [np.arange(len(positions)) for positions in ORDER]
    for batch in photos.batches(ORDER, needed):
        yield batch.photos, batch.positions.tolist()


@pytest.mark.parametrize("loaders", [0, 2])
def test_the_device_gives_the_photos_of_the_loaders_in_their_order(
    tmp_path: Path, asked: list[int], loaders: int
) -> None:
    data = version(tmp_path, PLAIN | OTHERS)
    expected = list(drawn(photos_of(data, on_device=False)))
    assert asked == []
    for (photos, rows), (others, other_rows) in zip(
        drawn(photos_of(data, on_device=True, loaders=loaders)), expected, strict=True
    ):
        assert rows == other_rows
        assert (photos.int() - others.int()).abs().max() <= 2
    assert asked == [sum(row in PLAIN for row in batch.tolist()) for batch in ORDER], (
        "every plain JPEG, and no other file"
    )


def test_views_of_the_same_seed_are_the_same(tmp_path: Path) -> None:
    data, seen = version(tmp_path, PLAIN | OTHERS), []
    network = build_network(Member(backbone="test_resnet", size=32), num_classes=2)
    for on_device in (False, True):
        inputs = Views(photos_of(data, on_device=on_device), network, size=32, augment=Augment(mixup=0.4))
        batches = inputs.training(ORDER, torch.Generator().manual_seed(1))
        seen.append([(each.photos, each.batch.tolist()) for each in batches])
    for (views, rows), (others, other_rows) in zip(*seen, strict=True):
        assert rows == other_rows
        torch.testing.assert_close(views, others, rtol=0, atol=3 / 255)


@pytest.mark.parametrize("loaders", [0, 2])
def test_a_broken_photo_is_replaced_named_and_counted_as_by_loaders(
    tmp_path: Path, asked: list[int], caplog: pytest.LogCaptureFixture, loaders: int
) -> None:
    data = version(tmp_path, PLAIN | OTHERS | {0: broken(0), 5: b"\xff\xd8\xffnothing"})
    found = []
    for on_device in (False, True):
        photos = photos_of(data, on_device=on_device, loaders=loaders)
        caplog.clear()
        batches = list(drawn(photos))
        found.append((photos.faults.why, [rows for _, rows in batches], caplog.messages.copy()))
    assert found[0] == found[1]
    assert found[1][1] == [[3, 7, 7, 1], [2, 4, 4], [6, 8, 6]]
    assert asked == [3, 2, 1], "the broken file was left for the device"
    assert all(photos.float().std() > 5 for photos, _ in batches), "no photo is missing"


def test_many_broken_photos_and_a_batch_without_any_stop_the_run(tmp_path: Path) -> None:
    bad = {row: broken(row) for row in PLAIN}
    with pytest.raises(ManifestError, match=r"4 photos cannot be decoded, more than a run accepts"):
        list(photos_of(version(tmp_path / "many", bad | OTHERS), on_device=True).in_order(9))
    photos = photos_of(version(tmp_path / "all", PLAIN | {0: bad[0], 1: bad[1]}), on_device=True)
    with pytest.raises(ManifestError, match="2 photos cannot be decoded, among them all of one batch"):
        list(photos.batches([np.array([0, 1])], [np.arange(2)]))


def test_the_cpu_decodes_what_the_device_alone_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = version(tmp_path, PLAIN)
    (expected,) = photos_of(data, on_device=False).in_order(5)
    monkeypatch.setattr(models.data.photos, "decode", lambda files, device: [None, *decode(files[1:], device)])
    photos = photos_of(data, on_device=True)
    (found,) = photos.in_order(5)
    assert torch.equal(found[0], expected[0])
    assert (found.int() - expected.int()).abs().max() <= 2
    assert photos.faults.why == {}


def test_refused_files_are_found_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [torch.frombuffer(bytearray(photo), dtype=torch.uint8) for photo in PLAIN.values()]
    files[2] = torch.frombuffer(bytearray(broken(0)), dtype=torch.uint8)
    found = decode(files, CPU)
    assert [None if each is None else tuple(each.shape) for each in found] == [
        (3, 50, 60), (3, 70, 80), None, (3, 50, 60), (3, SIDE, SIDE)
    ]  # fmt: skip

    def without_memory(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(jpegs, "decode_jpeg", without_memory)
    with pytest.raises(torch.OutOfMemoryError):
        decode(files, CPU)


def test_photos_of_any_size_are_squeezed_as_loaders_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpegs, "TOGETHER", 2)
    pixels = [np.array(picture(seed, *size)) for seed, size in enumerate([(60, 50)] * 3 + [(SIDE, SIDE), (20, 90)])]
    places, out = [4, 0, 2, 5, 1], torch.full((6, SIDE, SIDE, 3), 7, dtype=torch.uint8)
    squeeze_into(out, places, [torch.from_numpy(each).permute(2, 0, 1) for each in pixels])
    for place, photo in zip(places, pixels, strict=True):
        expected = np.empty((SIDE, SIDE, 3), np.uint8)
        resize(photo, expected)
        assert np.abs(out[place].numpy().astype(int) - expected).max() <= 1
    assert (out[3] == 7).all()


def test_the_host_does_not_wait_for_a_resize() -> None:
    with pretend_card() as card:
        out = torch.zeros(6, SIDE, SIDE, 3, dtype=torch.uint8, device=CARD)
        photos = [torch.zeros(3, *size, dtype=torch.uint8, device=CARD) for size in ((50, 60), (50, 60), (SIDE, SIDE))]
        card.waits.clear()
        squeeze_into(out, [1, 5, 2], photos)
        assert card.waits == {}


@pytest.mark.parametrize("steps", [1, 4])
def test_a_training_with_photos_from_the_device_resumes_to_the_same_bits(
    shop: Path, tmp_path: Path, asked: list[int], steps: int
) -> None:
    whole, halted = (training_job(shop, tmp_path / name, decode="device") for name in ("whole", "halted"))
    train(whole)
    train(halted, halt_after=steps)
    train(halted)
    assert sum(asked) > 0
    resumed, uninterrupted = (torch.load(job.out / "network.pt")["state"] for job in (halted, whole))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


def test_features_from_the_device_have_a_file_of_their_own(tmp_path: Path, asked: list[int]) -> None:
    manifest = read_manifest(version(tmp_path / "data", PLAIN | OTHERS))
    torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "weights.pt")
    member = Member(backbone="test_resnet", size=32, weights=str(tmp_path / "weights.pt"))
    network, found = build_network(member, num_classes=2), []
    for on_device in (False, True, True):
        features = frozen_features(manifest, np.arange(9), network, member=member, side=SIDE, folder=tmp_path / "shared",
                                   on_device=on_device)  # fmt: skip
        found.append(features.views.clone())
    assert asked == [len(PLAIN)], "once, and not by loaders"
    assert len([*(tmp_path / "shared").glob("*.npy")]) == 2
    assert torch.equal(found[1], found[2])
    assert 0 < (found[0] - found[1]).abs().max() < 0.02 * found[0].abs().max(), "pixels differ by rounding"


@pytest.mark.parametrize("decode", ["cpu", "device"])
def test_a_frozen_training_and_its_balance_decode_where_the_recipe_says(
    shop: Path, tmp_path: Path, asked: list[int], decode: str
) -> None:
    job = training_job(shop, tmp_path / "trained", backbone_lr_scale=0.0, decode=decode, epochs=1, best_epochs=0)
    train(job)
    assert bool(asked) == (decode == "device")
    asked.clear()
    network, classes = build_network(job.network, num_classes=2), read_manifest(shop).classes
    save_network(tmp_path / "network.pt", network, member=job.network, classes=classes)
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(job.recipe)))
    (tmp_path / "balanced").mkdir()
    rebalance(tmp_path / "network.pt", data=shop, recipe=tmp_path / "recipe.json", member=0, out=tmp_path / "balanced")
    assert bool(asked) == (decode == "device")


@pytest.mark.parametrize("decode", ["cpu", "device"])
@pytest.mark.parametrize("module", [crops, calibrate, teacher], ids=["crops", "calibrate", "teacher"])
def test_passes_of_an_ensemble_decode_where_the_recipe_says(
    shop: Path,
    tmp_path: Path,
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    decode: Literal["cpu", "device"],
) -> None:
    one = trained(32, seed=1, classes=read_manifest(shop).classes)
    settings = Export(input_size=40, crops=2, enlarge=(1.25, 1.5))
    save_network(tmp_path / "network.pt", one.network, member=one.member, classes=one.classes)
    recipe = dataclasses.replace(RECIPE, export=settings, train=dataclasses.replace(RECIPE.train, decode=decode))
    written = {"recipe": to_dict(recipe), "ensemble": {"weights": [1.0]}}
    written |= {"crops": {"crops": 2, "enlarge": 1.25}} if module is calibrate else {}
    words = ["--data", shop, "--networks", tmp_path / "network.pt", "--out", tmp_path / "out"]
    for name, content in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        words += [f"--{name}", tmp_path / f"{name}.json"]
    monkeypatch.setattr(sys, "argv", ["module", *map(str, words)])
    module.main()
    assert bool(asked) == (decode == "device")


def test_a_machine_that_cannot_decode_on_a_gpu_is_told_so_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("smoke", overrides=["train.decode=device"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = r'^train\.decode: "device" decodes photos on the GPU, but {}; set train\.decode="cpu"$'
    with pytest.raises(ConfigError, match=message.format("this machine has no GPU that torch can use")):
        check(recipe, data=data, present=0)
    check(recipe, data=data)  # another machine trains
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(jpegs, "decode", lambda files, device: [None for _ in files])
    with pytest.raises(ConfigError, match=message.format("the installed torchvision cannot use nvJPEG")):
        require_nvjpeg()
    with pytest.raises(ConfigError, match="cannot use nvJPEG"):
        Photos(read_manifest(data), np.arange(4), side=SIDE, device=torch.device("cuda"), on_device=True)
