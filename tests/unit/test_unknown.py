"""The benchmark of unknown products: its groups of photos, its scores, and that it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import unknown
from PIL import Image
from safetensors.torch import save_file
from tail.sets import drawn_set

from models.evaluation.bootstrap import auroc
from models.export.calibrate import in_tiles
from models.export.ood import SCORES
from models.networks.network import build_network
from models.recipe.config import Member


@pytest.fixture
def small() -> unknown.Stall:
    photos, draw = drawn_set(num_classes=10, imbalance=2, largest=20, noise=0.0), torch.Generator().manual_seed(0)
    other, tiles = (2 * torch.randn(2, 100, 24, generator=draw) for _ in range(2))
    return unknown.Stall(photos, other, tiles)


def test_it_prints_every_score_and_the_figures_of_its_tables(
    small: unknown.Stall, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unknown, "drawn_stall", lambda: small)
    assert unknown.main(["--seeds", "0", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    tables = [
        [row for row in rows if len(row) == 6 and row[0] == name] for name in (unknown.AS_IS, *SCORES, unknown.MEANS)
    ]
    assert all(len(found) == 2 for found in tables), "one row of each head"
    figures = [json.loads(line) for line in lines if line.startswith('{"figure"')]
    assert len(figures) == 8
    chosen = [line.split("known by ")[1].split("; ")[0].split(", ") for line in lines if "known by " in line]
    for number, (head, names) in enumerate(zip(unknown.HEADS, chosen, strict=True)):
        assert set(names) <= set(SCORES)
        for each, column in zip(figures[4 * number : 4 * number + 4], (1, 2, 3, 4), strict=True):
            assert head in each["figure"]
            assert each["baseline"] == pytest.approx(float(tables[0][number][column].split(" ±")[0]), abs=0.051)
            if len(set(names)) == 1:
                cell = tables[1 + SCORES.index(names[0])][number][column]
                assert each["value"] == pytest.approx(float(cell.split(" ±")[0]), abs=0.051)


def test_known_and_unknown_products_are_separated(small: unknown.Stall) -> None:
    shelf, rows = unknown.without_classes(small, seed=0)
    assert (shelf.photos.num_classes, set(shelf.photos.target)) == (8, set(range(8)))
    held_out = set(small.photos.target) - set(
        small.photos.target[np.isin(small.photos.views[0, :, 0], shelf.photos.views[0, :, 0])]
    )
    assert set(small.photos.target[rows]) == held_out
    assert (small.photos.split[rows] == "test").all()
    assert shelf.tiles.shape[1] == (shelf.photos.split == "val").sum()
    head = unknown.head(shelf.photos, unknown.HEADS["cross-entropy"], seed=0)
    answers = unknown.ask(head, shelf, small.photos.views[:, rows])
    known, unknown_classes, other = answers.scores[answers.chosen]
    assert (len(known), len(unknown_classes), len(other)) == (320, 80, 100)
    assert min(auroc(known, unknown_classes), auroc(known, other)) > 0.75
    assert answers.accepted[0] > 0.85
    assert answers.accepted[0] > max(answers.accepted[1:]) + 0.2


def test_a_head_calibrated_by_the_benchmark_is_calibrated_as_a_graph(small: unknown.Stall) -> None:
    """NLL and top-1 of the ensemble of both heads at temperature 1 are those of the plain mean."""
    heads = [unknown.head(small.photos, settings, seed=0) for settings in unknown.HEADS.values()]
    plain, both, own = unknown.mixed(heads, small.photos)
    rows = small.photos.rows("test")
    truth = torch.from_numpy(small.photos.target[rows])
    with torch.inference_mode():
        mean = torch.stack(
            [head(view).logits.softmax(1) for head in heads for view in small.photos.views[:, rows]]
        ).mean(0)
    assert plain[0] == pytest.approx(float(-mean.gather(1, truth[:, None]).log().mean()), abs=1e-5)
    assert plain[1] == pytest.approx(float((mean.argmax(1) == truth).float().mean()))
    assert plain[2] == both[2] == 1
    assert own[2] > 1


@pytest.fixture
def delivery(tmp_path: Path) -> Path:
    """Folder with four photos of products, one out-of-distribution photo, and weights of the right network."""
    draw = np.random.default_rng(0)
    for name in "abcde":
        Image.fromarray(draw.integers(0, 256, (150, 150, 3), np.uint8)).save(tmp_path / f"{name}.png")
    table = {"path": [f"{name}.png" for name in "abcde"], "label": list("xyxyx"),
             "split": ["train", "val", "test", "val", "train"]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "mixed.parquet")
    pq.write_table(pa.table({key: values[:4] for key, values in table.items()}), tmp_path / "products.parquet")
    save_file(
        build_network(Member(backbone="mobilenetv2_100"), num_classes=2).backbone.state_dict(),
        tmp_path / "w.safetensors",
    )
    return tmp_path


def test_photos_outside_the_product_manifest_are_out_of_distribution(delivery: Path) -> None:
    args = argparse.Namespace(data=delivery, manifest="mixed", products="products", weights=delivery / "w.safetensors",
                              cache=delivery / "cache")  # fmt: skip
    stall = unknown.read_stall(args)
    assert (stall.photos.views.shape, stall.other.shape, stall.tiles.shape) == (
        (2, 4, 1280),
        (2, 1, 1280),
        (2, 2, 1280),
    )
    assert stall.photos.split.tolist() == ["train", "val", "test", "val"]
    network = unknown.frozen(delivery / "w.safetensors")
    square = unknown.pixels.to_square(unknown.pixels.decode((delivery / "d.png").read_bytes()), 128)
    photo = torch.from_numpy(np.stack([square]))
    with torch.inference_mode():
        view = in_tiles(photo).permute(0, 3, 1, 2).float() / 255
        torch.testing.assert_close(stall.tiles[0, 1], network.features(view)[0], atol=1e-4, rtol=1e-3)


def test_a_missing_file_is_named(delivery: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--manifest", "other", "--products", "products"], "other.parquet does not exist"),
        (["--manifest", "mixed", "--products", "none"], "none.parquet does not exist"),
        (
            ["--manifest", "mixed", "--products", "products", "--weights", "gone.safetensors"],
            "gone.safetensors does not exist",
        ),
    ):
        assert unknown.main(["--data", str(delivery), *arguments]) == 2
        assert message in capsys.readouterr().err
