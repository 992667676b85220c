"""The noisy-label benchmark: its arguments, its data, its trainings, and how it resumes."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path

import noisy_labels
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from noisy.drawn import drawn_set
from noisy.photos import read_photo_set, stratified
from noisy.protocol import Protocol, build_net
from noisy.published import CIFAR10, as_published, published
from noisy.spec import Method, Noise, parse_method, parse_noise
from noisy.training import Outcome, Task, Trainer, random_view
from PIL import Image

from models.errors import ConfigError, ManifestError


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the benchmark draw few shapes."""
    monkeypatch.setattr(noisy_labels, "drawn_set", partial(drawn_set, num_train=120, num_test=60))


TINY = ("--epochs", "1", "--photos", "60")


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("ce", Method("ce")),
        ("nce+mae:alpha=1,beta=0.5", Method("nce+mae", {"alpha": 1, "beta": 0.5})),
        ("focal:detach_factor=true", Method("focal", {"detach_factor": True})),
        ("ce:init_match=batch", Method("ce", {"init_match": "batch"})),
        ("anl_ce:weight_decay=0,l1=5e-5", Method("anl_ce", {}, {"weight_decay": 0, "l1": 5e-5})),
    ],
)
def test_a_method_is_read_and_written(text: str, method: Method) -> None:
    assert parse_method(text) == method
    assert parse_method(str(method)) == method


@pytest.mark.parametrize(
    "text", ["", ":q=1", "gce:q", "gce:q=", "gce:=1", "gce:q=1,q=2", "ce:lr=fast", "ce:l1=-1", "ce:lr=true"]
)
def test_a_method_that_cannot_be_read_is_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match="--methods: "):
        parse_method(text)


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("clean", Noise("clean")),
        ("symmetric:0.4", Noise("symmetric", rate=0.4)),
        ("pair:0.2", Noise("pair", rate=0.2)),
        ("human:worst", Noise("human", column="worst")),
    ],
)
def test_a_noise_is_read_and_written(text: str, noise: Noise) -> None:
    assert parse_noise(text) == noise
    assert str(noise) == text


@pytest.mark.parametrize(
    "text", ["", "symmetric", "symmetric:", "symmetric:1", "symmetric:nan", "human", "clean:0", "odd:0.1"]
)
def test_a_noise_that_cannot_be_read_is_quoted(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--noise: {text!r}"):
        parse_noise(text)


def test_every_published_method_exists() -> None:
    assert len({row.method.resolved().loss for row in CIFAR10}) == 14


def test_a_figure_belongs_to_its_settings_however_they_are_written() -> None:
    noise = parse_noise("symmetric:0.4")

    assert published("cifar10", parse_method("gce"), noise) == (82.24, 0.25, "A")
    assert published("cifar10", parse_method("gce:q=0.7"), noise) == (82.24, 0.25, "A")
    assert published("cifar10", parse_method("gce:q=0.5"), noise) is None
    assert published("cifar10", parse_method("gce:lr=0.1"), noise) is None
    assert published("fashion_mnist", parse_method("gce"), noise) is None


def test_a_bare_loss_takes_the_settings_published_for_the_noise() -> None:
    bare = parse_method("eps_ce+mae")

    assert as_published(bare, parse_noise("symmetric:0.8")).params["m"] == 1e5
    assert as_published(bare, parse_noise("asymmetric:0.2")).params["m"] == 1e3
    assert as_published(parse_method("anl_ce"), parse_noise("pair:0.1")).training == {"weight_decay": 0, "l1": 5e-5}
    assert as_published(parse_method("gce:q=0.5"), parse_noise("clean")) == parse_method("gce:q=0.5")


def cifar10_folder(folder: Path, *, side: int = 32, people: bool = True) -> Path:
    """Writes four training photos and two test photos of planes and cars, and returns the folder."""
    label = [0, 1, 0, 1, 0, 1]
    jpegs = []
    for k in label:
        data = io.BytesIO()
        Image.new("RGB", (side, side), (200 * k, 0, 0)).save(data, "JPEG")
        jpegs.append(data.getvalue())
    table = {"index": range(6), "split": ["train"] * 4 + ["test"] * 2, "label": label,
             "label_name": ["plane" if k == 0 else "car" for k in label], "jpeg": jpegs}  # fmt: skip
    pq.write_table(
        pa.table({name: pa.array(values) for name, values in table.items()}), folder / "cifar10_jpeg.parquet"
    )
    if people:
        given = pa.table({"index": pa.array(range(6)), "human_worst": pa.array([1, 1, 0, 0, -1, -1])})
        pq.write_table(given, folder / "manifest.parquet")
    return folder


def test_cifar10_is_read_with_the_labels_of_people(tmp_path: Path) -> None:
    photos = read_photo_set(cifar10_folder(tmp_path))

    assert photos.classes == ("plane", "car")
    assert photos.photos.shape == (4, 32, 32, 3)
    assert photos.test_label.tolist() == [0, 1]
    assert parse_noise("human:worst").given_labels(photos).tolist() == [1, 1, 0, 0]
    assert photos.photos[1, 16, 16, 0] > 190 > 10 > photos.photos[0, 16, 16, 0]


def test_fashion_mnist_is_read_as_colour_photos_of_32_px(tmp_path: Path) -> None:
    images = np.full((3, 28, 28), 9, dtype=np.uint8)
    np.savez(
        tmp_path / "images_uint8.npz",
        images=images,
        labels=np.array([1, 0, 1], np.int8),
        is_test=np.array([0, 0, 1], bool),
    )
    pq.write_table(pa.table({"label": [1, 0, 1], "label_name": ["Bag", "Coat", "Bag"]}), tmp_path / "manifest.parquet")

    photos = read_photo_set(tmp_path)

    assert photos.classes == ("Coat", "Bag")
    assert photos.label.tolist() == [1, 0]
    assert photos.photos.sum() == 2 * 28 * 28 * 3 * 9


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"holds neither cifar10_jpeg.parquet .* describes both layouts"):
        read_photo_set(tmp_path)


def test_photos_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="a photo is 40 x 40, want 32 x 32"):
        read_photo_set(cifar10_folder(tmp_path, side=40))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"index": [0], "jpeg": [b""]}), tmp_path / "cifar10_jpeg.parquet")

    with pytest.raises(ManifestError, match="lacks the columns label, label_name, split"):
        read_photo_set(tmp_path)


def test_a_subset_holds_the_same_share_of_every_class() -> None:
    label = np.array([0] * 60 + [1] * 30 + [2] * 10)

    chosen = stratified(label, 50)

    assert np.bincount(label[chosen]).tolist() == [30, 15, 5]
    assert np.array_equal(chosen, stratified(label, 50))
    assert len(stratified(label, 0)) == len(stratified(label, 200)) == 100


def test_a_view_is_the_photo_shifted_over_black_and_perhaps_mirrored() -> None:
    photos = torch.randint(1, 256, (40, 6, 6, 3), dtype=torch.uint8)

    views = random_view(photos, crop_px=1, flip=True, draw=torch.Generator().manual_seed(0))

    padded = torch.nn.functional.pad(photos, (0, 0, 1, 1, 1, 1))
    kinds = set()
    for photo, view in zip(padded, views, strict=True):
        possible = {(y, x, m): photo[y : y + 6, x : x + 6].flip(1) if m else photo[y : y + 6, x : x + 6]
                    for y in range(3) for x in range(3) for m in (False, True)}  # fmt: skip
        kinds.add(next(kind for kind, wanted in possible.items() if torch.equal(view, wanted)))
    assert len(kinds) > 10
    assert torch.equal(random_view(photos, crop_px=0, flip=False, draw=torch.Generator()), photos)


@pytest.mark.parametrize(("kind", "layers"), [("cnn8", 8), ("cnn5", 5)])
def test_a_network_has_the_layers_of_its_name(kind: str, layers: int) -> None:
    net = build_net(kind, num_features=3, num_classes=7)

    assert sum(isinstance(part, torch.nn.Conv2d | torch.nn.Linear) for part in net.modules()) == layers
    assert net(torch.zeros(2, 3, 32, 32)).logits.shape == (2, 7)


def trained(method: str, *, epochs: int = 2, noise: float = 1.0, shows_given: bool = False) -> Outcome:
    """Trains on 80 features of 4 classes, a third with wrong labels; the features show true labels, or the given ones."""
    label = torch.arange(80) % 4
    given = torch.where(torch.arange(80) % 3 == 0, (label + 1) % 4, label)
    train = torch.nn.functional.one_hot(given if shows_given else label, 16).float()
    train += noise * torch.randn(80, 16, generator=torch.Generator().manual_seed(1))
    task = Task(train=train, given=given, label=label, test=train, test_label=label, classes=("a", "b", "c", "d"))
    protocol = Protocol(name="tiny", network="head", epochs=epochs, lr=0.1, batch_size=16)
    return Trainer(task, protocol, parse_method(method), seed=0).run()


def test_a_run_depends_on_its_seed_and_the_loss_on_the_epoch() -> None:
    outcomes = {text: trained(text) for text in ("ce", "gce", "gce:warmup_ce_epochs=2", "gce:warmup_ce_epochs=1")}

    def shares(outcome: Outcome) -> tuple[float, float]:
        return outcome.accuracy, outcome.memorised

    assert shares(outcomes["ce"]) == shares(trained("ce"))
    assert shares(outcomes["ce"]) == shares(outcomes["gce:warmup_ce_epochs=2"])
    assert shares(outcomes["ce"]) != shares(outcomes["gce"])
    assert shares(trained("ce:l1=1")) != shares(outcomes["ce"])


def test_memorised_labels_are_counted_separately_from_right_answers() -> None:
    fooled, right = (trained("ce", epochs=10, noise=0, shows_given=shows) for shows in (True, False))

    assert (right.accuracy, right.memorised) == (100, 0)
    assert fooled.memorised == 100
    assert fooled.accuracy == pytest.approx(100 * 53 / 80)


def figures(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"figure":')]


def test_a_killed_command_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new folder" / "runs.jsonl"
    arguments = ["--methods", "gce", "--noise", "symmetric:0.4", "clean", "--out", str(out), *TINY]

    assert noisy_labels.main(arguments) == 0
    first, output = out.read_text(), capsys.readouterr().out
    assert "4 runs, 0 of them done before" in output
    assert "| method | symmetric:0.4 | published | clean | published |" in output
    assert len(figures(output)) == 4

    out.write_text(first[:-20])  # killed while it wrote the last line
    assert noisy_labels.main([*arguments, "--seeds", "0", "1"]) == 0
    output = capsys.readouterr().out
    assert "8 runs, 3 of them done before" in output
    lines = out.read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 8

    assert noisy_labels.main([*arguments, "--epochs", "2"]) == 0, "other settings make other runs"
    assert "4 runs, 0 of them done before" in capsys.readouterr().out


def test_a_line_that_is_not_a_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs.jsonl"
    out.write_text('{"accuracy": 1}\n')

    assert noisy_labels.main(["--out", str(out), *TINY]) == 2
    assert f"{out}, line 1 is not a result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "gcee"], "no loss 'gcee' (did you mean 'gce'?)"),
        (["--methods", "gce:q=0"], "loss.params.q: 0.0 is outside (0, 1]"),
        (["--noise", "human:worst"], "drawn shapes has no column human_worst"),
        (["--noise", "asymmetric:0.2"], "confuses airplane, automobile"),
        (["--protocol", "features"], "the protocol features needs weights"),
        (
            ["--protocol", "features", "--weights", "no.safetensors"],
            "--weights: no.safetensors is not a file; the protocol",
        ),
        (["--data", "nowhere"], "nowhere holds neither"),
        (["--epochs", "0"], "--epochs: 0 is below 1"),
        (["--photos", "-1"], "--photos: -1 is below 0"),
        (["--photos", "6"], "6 are too few for 6 classes"),
        (["--parallel", "0"], "--parallel: 0 is below 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert noisy_labels.main(arguments) == 2
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


def test_drawn_shapes_are_the_same_every_time() -> None:
    shapes, again = (drawn_set(num_train=12, num_test=6) for _ in range(2))

    assert np.array_equal(shapes.photos, again.photos)
    assert np.bincount(shapes.label).tolist() == [2] * 6
