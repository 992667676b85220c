"""The benchmark of the recipe's steps: it runs, reads photos as the graph does, and attributes the right costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import components
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ladder import climb, shelf, steps
from ladder.shelf import CROPS, Shelf, drawn_shelf, read_shelves
from PIL import Image
from safetensors.torch import save_file
from tail.sets import drawn_set

from models.data.augment import whole_view
from models.export.graph import Branch
from models.networks.network import build_network
from models.recipe.config import Export, Member
from models.training.train import Trained


@pytest.fixture
def small() -> Shelf:
    return drawn_shelf(drawn_set(num_classes=6, imbalance=10, largest=20))


def test_it_runs_every_step_and_prints_the_figures_of_its_table(
    small: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(components, "drawn_shelf", lambda: small)
    assert components.main(["--seeds", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    ends = [climb.TEN, climb.LARGE, climb.THREE, climb.EIGHT]
    assert [row[0] for row in rows] == [
        climb.GIVEN,
        climb.UNCLEANED,
        climb.DROPPED,
        climb.AGAIN,
        climb.ALSO,
        climb.WEIGHED,
        *climb.WAYS,
        *ends,
    ]
    (figure,) = [json.loads(line) for line in lines if line.startswith('{"figure"')]
    accuracy = {row[0]: float(row[2].split(" ±")[0]) for row in rows}
    assert figure["value"] == pytest.approx(accuracy[climb.RECIPE], abs=0.051)
    assert figure["baseline"] == pytest.approx(accuracy[climb.GIVEN], abs=0.051)
    assert figure["met"] == (figure["value"] >= figure["baseline"])


def test_the_recipe_alone_gives_the_scores_of_the_whole_benchmark(small: Shelf) -> None:
    whole = {rung.name: rung for rung in climb.climb(small, seed=3)}
    ends = {rung.name: rung for rung in climb.ends([small], seed=3)}
    for name, rung in ends.items():
        assert np.array_equal(rung.scores.probs, whole[name].scores.probs)


def test_steps_include_the_cost_of_the_crops_that_they_need(small: Shelf) -> None:
    cost_s = {(size, crops): 1000.0 * size * (1 + (crops > 2)) for size in shelf.SIZES for crops in (2, CROPS)}

    def camera(rows: np.ndarray, *, size: int, crops: int) -> tuple[torch.Tensor, float]:
        found, _ = small.camera(rows, size=size, crops=crops)
        parts = 3 if crops == 2 else 1  # the three splits are read one by one
        return found, cost_s[size, crops] / parts

    priced = Shelf(small.name, small.target, small.split, small.num_classes, camera)
    seconds = {rung.name: rung.seconds for rung in climb.climb(priced, seed=0)}
    first, large, last = shelf.SIZES

    def cost_of(*sizes: int) -> float:
        return sum(cost_s[size, crops] for size in sizes for crops in (2, CROPS))

    for name, price in (
        (climb.GIVEN, cost_s[first, 2]),
        (climb.RECIPE, cost_s[first, 2]),
        (climb.TEN, cost_of(first)),
        (climb.LARGE, cost_s[first, 2] + cost_of(large)),
        (climb.THREE, cost_of(first, large, last)),
        (climb.EIGHT, cost_of(first, large, last)),
    ):
        assert seconds[name] == pytest.approx(price, abs=60)
    assert seconds[climb.EIGHT] > seconds[climb.THREE]


def test_cameras_answer_together_and_the_recovered_share_is_of_what_noise_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = drawn_set(num_classes=6, imbalance=2, largest=30)
    right = dataclasses.replace(drawn_shelf(photos), target=photos.true, name="clean", kind="a")
    shelves = [dataclasses.replace(drawn_shelf(photos), name="fine30", kind=kind) for kind in "ab"]
    monkeypatch.setattr(components, "read_shelves", lambda *_, **__: [[right, right], shelves])
    words = "--data x --large y --encoders a b --sets fine30 clean --seeds 0"
    assert components.main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    values = {line["figure"]: line["value"] for line in (json.loads(each) for each in lines if each.startswith('{"'))}
    (costs,) = [line.split(": ")[1] for line in lines if line.startswith("fine30, 2 encoders: ") and "without" in line]
    off, on, whole = (float(part.split()[0]) for part in costs.split(", "))
    share = values["fine30, 2 encoders, share of the noise gap recovered, %, mean of 1 seeds"]
    assert share == pytest.approx(100 * (on - off) / (whole - off), abs=15 / (whole - off)), "to rounding"
    assert whole > off
    table = lines[next(row for row, line in enumerate(lines) if line.startswith("fine30, 2 encoders: ")) :]
    rows = {cells[1].strip(): float(cells[3].split(" ±")[0]) for cells in (each.split("|") for each in table) if len(cells) > 8
            and "±" in cells[3]}  # fmt: skip
    assert list(rows) == [climb.GIVEN, climb.UNCLEANED, climb.TEN_UNCLEANED, climb.RECIPE, climb.TEN]
    assert (rows[climb.TEN_UNCLEANED], rows[climb.TEN]) == pytest.approx((off, on), abs=0.051)


def test_wrong_labels_are_flagged_downweighted_and_counted(small: Shelf) -> None:
    photos = drawn_set(num_classes=6, imbalance=10, largest=60)
    rows = photos.rows("train")
    belief = steps.judge(photos, seed=0)
    wrong = photos.target[rows] != photos.true[rows]
    assert belief.weight[wrong].mean() < belief.weight[~wrong].mean() - 0.3
    assert belief.wrong[wrong].mean() > belief.wrong[~wrong].mean() + 0.3
    assert belief.noise.rate == pytest.approx(wrong.mean(), abs=0.15)
    dropped = steps.Lesson(photos=photos, seed=0, belief=belief, drop=True)
    assert (dropped.kept.sum(), dropped.weight) == ((~belief.wrong).sum(), None)


def test_another_look_at_the_same_photos_joins_the_label_scores() -> None:
    photos = drawn_set(num_classes=6, imbalance=10, largest=60)
    noise = dataclasses.replace(
        photos, views=torch.randn(photos.views.shape, generator=torch.Generator().manual_seed(0))
    )
    clearer = dataclasses.replace(
        photos, views=torch.from_numpy(np.eye(6, 24, dtype=np.float32)[photos.true]) + 0.3 * noise.views
    )
    rows = photos.rows("train")
    wrong = photos.target[rows] != photos.true[rows]
    missed = [(steps.judge(photos, *other, seed=0).wrong != wrong).mean() for other in ([], [clearer])]
    assert missed[1] < missed[0]


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """Folder with three photos, a manifest, and weights of the right network."""
    draw = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(draw.integers(0, 256, (200, 200, 3), np.uint8)).save(tmp_path / f"{name}.png")
    table = {"path": ["c.png", "a.png", "b.png"], "label": ["x", "y", "x"], "split": ["test", "train", "val"]}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    save_file(
        build_network(Member(backbone="mobilenetv2_100"), num_classes=2).backbone.state_dict(),
        tmp_path / "mobilenetv2_100_qat.safetensors",
    )
    return tmp_path


def test_photos_are_read_once_and_cropped_as_the_graph_crops_them(delivery: Path) -> None:
    weights = delivery / "mobilenetv2_100_qat.safetensors"
    ((read,),) = read_shelves(delivery, ["m"], weights=[weights], cache=delivery / "cache", truth=delivery / "none")
    whole, crops = read.at(160), read.crops(160)
    assert (whole.views.shape, crops.shape) == ((2, 3, 1280), (CROPS, 1, 1280))
    kept = {path: path.stat().st_mtime_ns for path in (delivery / "cache").iterdir()}
    assert len(kept) == 4
    assert torch.equal(read.at(160).views, whole.views)
    assert {path: path.stat().st_mtime_ns for path in (delivery / "cache").iterdir()} == kept

    member = Member(backbone="mobilenetv2_100", size=160, weights=str(weights), args={"pad_type": "same"},
                    mean=(0.5,) * 3, std=(0.5,) * 3)  # fmt: skip
    network = build_network(member, num_classes=2).eval()
    photo = torch.from_numpy(np.array(Image.open(delivery / "c.png")))[None]
    branch = Branch(Trained(network, member, ["x", "y"], 0.0), settings=Export(input_size=200, crops=CROPS))
    with torch.inference_mode():
        torch.testing.assert_close(whole.views[0, 0], network.features(whole_view(photo, 160))[0], atol=0.05, rtol=0.05)
        embedding = branch(photo.permute(0, 3, 1, 2).float()).embedding.mean(0)
        torch.testing.assert_close(network.head.embedding(crops.mean(0)), embedding, atol=1e-4, rtol=1e-3)


def test_true_labels_and_larger_photos_are_read_where_they_are(delivery: Path) -> None:
    for folder in ("images", "large/images"):
        (delivery / folder).mkdir(parents=True)
    for name, folder in (("a", "large/images"), ("a", "images"), ("b", "images")):
        (delivery / folder / f"{name}.png").write_bytes((delivery / "a.png").read_bytes())
    table = {"path": ["elsewhere/b.png", "elsewhere/a.png"], "label": ["x", "y"], "split": ["test", "train"]}
    pq.write_table(pa.table(table), delivery / "truth.parquet")
    weights = [delivery / "mobilenetv2_100_qat.safetensors"] * 2
    ((first, second),) = read_shelves(delivery, ["clean"], weights=weights, cache=delivery / "cache",
                                      truth=delivery / "truth.parquet", large=delivery / "large")  # fmt: skip
    assert isinstance(first.camera, shelf.Backbone)
    assert first.camera.files == [delivery / "images" / "b.png", delivery / "large" / "images" / "a.png"]
    assert (first.target.tolist(), first.sizes, second.kind) == ([0, 1], (224,), "mobilenetv2_100_qat at 224 px")


def test_a_missing_file_is_named(delivery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert components.main(["--data", str(delivery), "--sets", "other"]) == 2
    assert "other.parquet does not exist; give a folder of manifests" in capsys.readouterr().err
    arguments = [
        "--data",
        str(delivery),
        "--sets",
        "m",
        "--weights",
        "mobilenetv2_100.safetensors",
        "--cache",
        str(delivery / "cache"),
    ]
    assert components.main(arguments) == 2
    assert "mobilenetv2_100.safetensors does not exist" in capsys.readouterr().err
