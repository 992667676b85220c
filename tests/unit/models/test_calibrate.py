"""Calibration: temperatures, out-of-distribution scores and `known`, fitted on real photos and exported."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.data.manifest import Manifest, read_manifest
from models.data.photos import Photos
from models.errors import ParityError
from models.evaluation.bootstrap import auroc
from models.export import calibrate, measure, parity
from models.export.calibrate import Chosen, in_tiles, read_calibration, without
from models.export.discriminant import Rows
from models.export.graph import Branch, DeployGraph
from models.export.onnx_file import write_onnx
from models.export.ood import DISCRIMINANT, SCORES, UNCALIBRATED, Calibration, MemberOutput, fit_threshold, score_of
from models.export.passes import shown
from models.export.temperature import ONE, TEMPERATURES, fit_temperatures, label_probabilities, nll
from models.recipe.config import Export, Recipe, to_dict
from models.training.train import Trained, save_network
from tests.unit.models.test_export import trained

SETTINGS = Export(input_size=40, crops=2, enlarge=(1.25,))
Variant = Callable[[Callable[[Manifest], dict[str, Any]]], Path]


@pytest.fixture(scope="module")
def members() -> list[Trained]:
    return [trained(32, seed=1, tau=0.7), trained(24, seed=2)]


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (9, 40, 40, 3), dtype=torch.uint8, generator=draw)


def biased(member: Trained) -> Trained:
    """The member with a bias, as some re-balancing methods leave it."""
    head = member.network.head
    head.classifier.bias = torch.nn.Parameter(torch.linspace(-1, 1, len(member.classes)))
    return member


@torch.no_grad()
def test_temperatures_fold_exactly(photos: torch.Tensor) -> None:
    pair = [biased(trained(32, seed=1, tau=0.7)), trained(24, seed=2)]
    plain = DeployGraph(pair, settings=SETTINGS).output(photos)
    outputs = DeployGraph(pair, settings=SETTINGS, calibration=Calibration((4.0, 0.3))).output(photos)
    for before, after, temperature in zip(plain, outputs, (4.0, 0.3), strict=True):
        torch.testing.assert_close(after.logits, before.logits / temperature, rtol=1e-5, atol=1e-5)
        assert torch.equal(after.embedding, before.embedding)


def drawn(num: int, *, scales: list[float], seed: int = 0) -> tuple[list[MemberOutput], torch.Tensor, torch.Tensor]:
    """Logits of calibrated members, multiplied by scales; labels are drawn from the mean of the members."""
    draw = torch.Generator().manual_seed(seed)
    right = [2 * torch.randn(2, num, 6, generator=draw) for _ in scales]
    mean = torch.stack([logits.softmax(2).mean(0) for logits in right]).mean(0)
    label = mean.multinomial(1, generator=draw)[:, 0]
    outputs = [
        MemberOutput(scale * logits, torch.ones(2, num, 512)) for scale, logits in zip(scales, right, strict=True)
    ]
    return outputs, label, mean


@pytest.mark.parametrize("scales", [[1.0], [6.0], [0.2], [12.0, 0.5], [1.0, 1.0, 9.0]])
def test_the_temperature_of_drawn_labels_is_found(scales: list[float]) -> None:
    outputs, label, mean = drawn(4000, scales=scales)
    weights = np.full(len(scales), 1 / len(scales))
    found, (before, after) = fit_temperatures(label_probabilities(outputs, label).numpy(), weights, num_classes=6)
    assert found == pytest.approx(scales, rel=0.25)
    entropy = -(mean * mean.log()).sum(1).mean()
    assert after == pytest.approx(float(entropy), abs=0.05), "as sure as it is right"
    assert after <= before


def test_it_is_the_mean_of_the_ensemble_that_is_calibrated() -> None:
    """Members that are calibrated alone but see different clues: their mean is less confident than it should be."""
    draw = torch.Generator().manual_seed(1)
    label = torch.randint(0, 6, (3000,), generator=draw)
    clue = torch.nn.functional.one_hot(label, 6) * 2.0
    outputs = [
        MemberOutput((clue + torch.randn(3000, 6, generator=draw))[None], torch.ones(1, 3000, 512)) for _ in range(4)
    ]
    table, weights = label_probabilities(outputs, label).numpy(), np.full(4, 0.25)
    alone = [fit_temperatures(table[:, [member]], np.ones(1), num_classes=6)[0][0] for member in range(4)]
    together, (_, after) = fit_temperatures(table, weights, num_classes=6)
    assert (np.array(together) < np.array(alone)).all()
    assert after < nll(table, weights, [int(np.argmin(abs(TEMPERATURES - each))) for each in alone])


@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0, 1000.0])
def test_probabilities_at_all_temperatures_are_those_of_a_softmax(spread: float) -> None:
    logits = spread * torch.randn(2, 40, 300, generator=torch.Generator().manual_seed(3))
    label = torch.arange(40)
    label[::2] = logits[0].argmax(1)[::2]
    found = label_probabilities([MemberOutput(logits, torch.ones(2, 40, 512))], label)
    slow = [(logits.double() / t).softmax(2).mean(0).gather(1, label[:, None])[:, 0] for t in map(float, TEMPERATURES)]
    torch.testing.assert_close(found[:, 0].double(), torch.stack(slow, 1), rtol=2e-4, atol=1e-30)


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_is_worse_than_one(seed: int) -> None:
    outputs, label, _ = drawn(12, scales=[1.0, 3.0], seed=seed)
    table, weights = label_probabilities(outputs, label).numpy(), np.array([0.3, 0.7])
    found, (before, after) = fit_temperatures(table, weights, num_classes=6)
    assert before == pytest.approx(nll(table, weights, [ONE, ONE]), abs=1e-6)
    mean = sum(w * (output.logits / t).softmax(2).mean(0) for w, output, t in zip(weights, outputs, found, strict=True))
    own = -mean.gather(1, label[:, None]).log().mean()
    assert after == pytest.approx(float(own), abs=1e-5)
    assert after <= before


def test_a_few_photos_that_are_all_recognised_promise_no_certainty() -> None:
    label = torch.arange(20) % 6
    outputs = [MemberOutput((3.0 * torch.nn.functional.one_hot(label, 6))[None], torch.ones(1, 20, 512))]
    (found,), _ = fit_temperatures(label_probabilities(outputs, label).numpy(), np.ones(1), num_classes=6)
    sure = (outputs[0].logits / found).softmax(2).amax().item()
    assert found < 1
    assert sure == pytest.approx(20 / 21, abs=0.01), "one in 21 is another"


@pytest.mark.parametrize("accept", [0.5, 0.9, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("num", [3, 40, 1001])
def test_the_line_accepts_the_share_that_is_asked_for(accept: float, num: int) -> None:
    draw = np.random.default_rng(num)
    known, unknown = draw.normal(2, 1, num), draw.normal(0, 1, 2 * num)
    line = fit_threshold(known, unknown, accept=accept)
    assert line is not None
    share = (known >= line.threshold).mean()
    assert accept - 1e-9 <= share < accept + 1 / num, "no photo more than must be"
    assert abs(known - line.threshold).min() > 1e-4 * abs(np.diff(np.sort(known))).min(), "none lies on the line"


def test_the_slope_is_that_of_a_logistic_fit_of_groups_that_weigh_the_same() -> None:
    """Log odds of two normals of equal variance rise by (difference of means) / variance, for any group sizes."""
    draw = np.random.default_rng(0)
    for num in (20_000, 2_000):
        line = fit_threshold(draw.normal(30, 2, 20_000), draw.normal(26, 2, num), accept=0.9)
        assert line is not None
        assert line.slope == pytest.approx(1, rel=0.1)


def test_groups_far_apart_have_a_slope_with_an_end() -> None:
    line = fit_threshold(np.linspace(10, 11, 30), np.linspace(-1000, 0, 30), accept=0.95)
    assert line is not None
    assert 0 < line.slope < 10


def test_a_score_that_speaks_for_strangers_draws_no_line() -> None:
    draw = np.random.default_rng(0)
    assert fit_threshold(draw.normal(0, 1, 50), draw.normal(1, 1, 50), accept=0.95) is None
    assert fit_threshold(np.ones(5), np.ones(5), accept=0.95) is None


def test_tiles_are_the_photo_in_another_order() -> None:
    image = torch.arange(2 * 43 * 43 * 3).view(2, 43, 43, 3)
    made = in_tiles(image)
    assert torch.equal(made[:, 40:], image[:, 40:])
    assert torch.equal(made[:, :, 40:], image[:, :, 40:])
    area, before = made[:, :40, :40], image[:, :40, :40]
    assert torch.equal(area.flatten(1).sort(1).values, before.flatten(1).sort(1).values)
    tiles = {before[0, y : y + 5, x : x + 5].numpy().tobytes() for y in range(0, 40, 5) for x in range(0, 40, 5)}
    found = [area[0, y : y + 5, x : x + 5].numpy().tobytes() for y in range(0, 40, 5) for x in range(0, 40, 5)]
    assert set(found) == tiles
    moved = [not torch.equal(area[0, y : y + 5, :5], before[0, y : y + 5, :5]) for y in range(0, 40, 5)]
    assert sum(moved) >= 6


@torch.no_grad()
def test_a_photo_without_its_class_is_never_known_better(members: list[Trained], photos: torch.Tensor) -> None:
    graph = DeployGraph(members, settings=SETTINGS).eval()
    outputs = graph.output(photos)
    first = graph.mean(outputs).argmax(1)
    masked = without(outputs, first)
    for before, after in zip(outputs, masked, strict=True):
        left = torch.nn.functional.one_hot(first, 4) == 0
        assert torch.equal(after.logits[:, left], before.logits[:, left])
    for name in set(SCORES) - {DISCRIMINANT}:
        own, other = (score_of(name, seen, graph.mean(seen), graph.weights) for seen in (outputs, masked))
        assert other.isfinite().all()
        if name != "probability":  # its mates share what the class had
            assert (other < own if name == "energy" else other <= own).all(), name


@torch.no_grad()
def test_the_scores_are_their_formulas(members: list[Trained], photos: torch.Tensor) -> None:
    graph = DeployGraph(members, settings=SETTINGS, weights=[0.25, 0.75]).eval()
    outputs = graph.output(photos)
    mean = graph.mean(outputs)
    formulas: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
        "energy": lambda logits, _: logits.double().exp().sum(2).log(),
        "logit": lambda logits, _: logits.max(2).values,
        "angle": lambda logits, embedding: logits.max(2).values / embedding.square().sum(2).sqrt(),
    }
    assert set(SCORES) == {"probability", *formulas, DISCRIMINANT}
    for name, formula in formulas.items():
        one, two = (formula(*output).mean(0) for output in outputs)
        torch.testing.assert_close(
            score_of(name, outputs, mean, graph.weights)[:, 0].double(),
            (one / 4 + 3 * two / 4).double(),
            rtol=1e-5,
            atol=1e-6,
        )
    assert torch.equal(score_of("probability", outputs, mean, graph.weights)[:, 0], graph(photos).probs[:, 0])


@pytest.mark.parametrize(
    ("score", "reject"), [*((score, False) for score in sorted({*SCORES} - {DISCRIMINANT})), ("angle", True)]
)
def test_the_file_knows_and_rejects_as_the_module(
    score: str, reject: bool, members: list[Trained], photos: torch.Tensor, tmp_path: Path
) -> None:
    plain = DeployGraph(members, settings=SETTINGS, calibration=Calibration((0.5, 2.0))).eval()
    with torch.no_grad():
        outputs = plain.output(photos)
        values = score_of(score, outputs, plain.mean(outputs), plain.weights)[:, 0]
        best = plain(photos)
    middle = float(values.sort().values[3:5].mean())
    calibration = Calibration((0.5, 2.0), score, slope=3.0 / float(values.std()), threshold=middle)
    graph = DeployGraph(members, settings=dataclasses.replace(SETTINGS, reject=reject), calibration=calibration)
    write_onnx(graph, tmp_path / "model.onnx", input_size=40, metadata={})
    ids, probs, known, _ = measure.open_session(tmp_path / "model.onnx").run(None, {"image": photos.numpy()})
    assert known.shape == (9, 1)
    expected = torch.sigmoid(calibration.slope * (values - middle)).numpy()
    assert known[:, 0] == pytest.approx(expected, abs=2e-5)
    accepted = known[:, 0] >= 0.5
    assert accepted.sum() == 5
    assert np.array_equal(accepted, values.numpy() > middle)
    assert np.array_equal(ids, np.where(accepted[:, None] | (not reject), best.ids, -1))
    assert probs == pytest.approx(best.probs.numpy(), abs=1e-6), "what was rejected is still told"
    found = parity.measure_parity(graph, tmp_path / "model.onnx", photos.numpy())
    parity.require_parity(found)
    assert found.known_allowed < 1e-4

    other = DeployGraph(members, settings=dataclasses.replace(SETTINGS, reject=reject),
                        calibration=dataclasses.replace(calibration, threshold=middle * 1.001))  # fmt: skip
    with pytest.raises(ParityError, match="known by"):
        parity.require_parity(parity.measure_parity(other, tmp_path / "model.onnx", photos.numpy()))


def test_uncalibrated_the_top_probability_is_known_as_it_is(members: list[Trained], photos: torch.Tensor) -> None:
    with torch.no_grad():
        answers = DeployGraph(members, settings=SETTINGS).eval()(photos)
    assert torch.equal(answers.known, answers.probs[:, :1])


@pytest.fixture(scope="module")
def lifelike(data: Path) -> list[Trained]:
    """Two networks that recognise the photos of the tiny version: the class means of their embeddings are their rows."""
    manifest = read_manifest(data)
    rows = np.flatnonzero(manifest.target >= 0)
    images = torch.cat(list(Photos(manifest, rows, side=40).in_order(64)))
    pair = [trained(32, seed=1), trained(24, seed=2)]
    for member in pair:
        with torch.no_grad():
            seen = DeployGraph([member], settings=SETTINGS).eval().output(images)[0].embedding.mean(0)
            means = torch.stack([seen[torch.from_numpy(manifest.target[rows] == each)].mean(0) for each in range(4)])
            member.network.head.classifier.weight.copy_(torch.nn.functional.normalize(means - seen.mean(0)))
    return pair


def test_an_ensemble_is_calibrated_on_its_validation_photos(lifelike: list[Trained], variant: Variant) -> None:
    data = variant(lambda manifest: {"split": np.where(np.arange(len(manifest)) % 2 == 0, "val", "train")})
    manifest = read_manifest(data)
    chosen = calibrate.calibrate(lifelike, [0.4, 0.6], manifest, settings=dataclasses.replace(SETTINGS, accept=0.8))
    rows = np.flatnonzero((manifest.split == "val") & (manifest.target >= 0))
    images = torch.cat(list(Photos(manifest, rows, side=40).in_order(64)))
    label = torch.from_numpy(manifest.target[rows])
    made = chosen.calibration
    assert chosen.photos == len(rows)
    assert made.temperature is not None
    assert len(made.temperature) == 2

    asked = [
        DeployGraph(lifelike, settings=SETTINGS, weights=[0.4, 0.6], calibration=each).eval()
        for each in (UNCALIBRATED, made)
    ]
    with torch.no_grad():
        before, after = (-graph.mean(graph.output(images)).gather(1, label[:, None]).log().mean() for graph in asked)
        answers = asked[1](images)
    assert chosen.nll == pytest.approx((float(before), float(after)), abs=1e-4)
    assert after < before, "rows of length 1 are far from sure enough"

    accepted = float((answers.known >= 0.5).float().mean())
    assert chosen.accepted == pytest.approx(accepted)
    assert 0.8 <= accepted < 0.8 + 1 / len(rows)
    separation = chosen.separation
    assert set(separation) == set(SCORES)
    assert separation[made.score].mean == max(each.mean for each in separation.values())
    column = SCORES.index(made.score)
    modules = [Rows(each) for each in made.discriminants]
    scores = calibrate.score_photos(asked[1], Photos(manifest, rows, side=40), modules)
    known, masked, tiles = (each[:, column] for each in scores)
    assert auroc(known, masked) > 0.5, "a photo without its class is less known"
    assert separation[made.score].in_tiles == pytest.approx(auroc(known, tiles), abs=1e-6)
    show = partial(shown, manifest, side=40)
    struck = calibrate.separate_struck(asked[1], manifest, rows, show=show, temperature=made.temperature)
    assert struck is not None
    assert [each.without_class for each in separation.values()] == pytest.approx(struck, abs=1e-6)


def test_a_part_of_many_photos_calibrates(
    lifelike: list[Trained], variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[int]()
    batches = calibrate.batches
    monkeypatch.setattr(calibrate, "TUNED", 4)
    monkeypatch.setattr(calibrate, "SELECTED", 6)
    monkeypatch.setattr(calibrate, "batches", lambda graph, photos, what: (
        seen.append(len(photos)) or batches(graph, photos, what=what)))  # fmt: skip
    data = variant(lambda manifest: {"split": np.where(np.arange(len(manifest)) % 2 == 0, "val", "train")})
    chosen = calibrate.calibrate(lifelike, [0.4, 0.6], read_manifest(data), settings=SETTINGS)
    assert 2 <= seen[0] <= 4 < seen[1] <= 6
    assert chosen.photos == seen[0]


@pytest.mark.parametrize("change", ["no validation photo", "one class"])
def test_with_nothing_to_judge_by_nothing_is_calibrated(change: str, variant: Variant) -> None:
    def changed(manifest: Manifest) -> dict[str, Any]:
        if change == "one class":
            same = np.full(len(manifest), "apple", dtype=object)
            return {"label": same, "given_label": same}
        return {"split": np.where(manifest.split == "val", "test", manifest.split)}

    manifest = read_manifest(variant(changed))
    one = trained(32, seed=1, classes=manifest.classes)
    chosen = calibrate.calibrate([one], [1.0], manifest, settings=SETTINGS)
    assert chosen == Chosen(UNCALIBRATED)
    assert "known is the top probability" in calibrate.summary(chosen)


def test_the_command_line_leaves_what_the_export_reads(
    lifelike: list[Trained], variant: Variant, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = variant(lambda manifest: {"split": np.where(np.arange(len(manifest)) % 2 == 0, "val", "train")})
    for i, member in enumerate(lifelike):
        save_network(tmp_path / f"{i}.pt", member.network, member=member.member, classes=member.classes)
    written = {"recipe": to_dict(recipe), "ensemble": {"weights": [0.0, 1.0]}, "crops": {"crops": 2, "enlarge": 1.5}}
    arguments = ["--data", data, "--out", tmp_path / "out", "--networks", tmp_path / "0.pt", tmp_path / "1.pt"]
    for name, content in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        arguments += [f"--{name}", tmp_path / f"{name}.json"]
    monkeypatch.setattr(sys, "argv", ["calibrate", *map(str, arguments)])
    calibrate.main()
    calibration, evidence = read_calibration(tmp_path / "out" / "calibration.json")
    settings = dataclasses.replace(SETTINGS, enlarge=(1.5,))
    chosen = calibrate.calibrate(lifelike[1:], [1.0], read_manifest(data), settings=settings)
    assert calibration == chosen.calibration
    assert len(calibration.discriminants) == (chosen.calibration.score == DISCRIMINANT)
    for read, made in zip(calibration.discriminants, chosen.calibration.discriminants, strict=False):
        assert all(np.array_equal(getattr(read, name), getattr(made, name)) for name in ("centre", "whiten", "rows"))
    assert evidence == json.loads(json.dumps(chosen.to_dict()["evidence"]))
    assert list(evidence) == ["photos", "surprise", "accepted", "told_apart"], "keys that model versions carry"


def test_initialisers_can_be_told_by_name(members: list[Trained], tmp_path: Path) -> None:
    """Enrolment finds them by name and appends rows."""
    import onnx

    graph = DeployGraph([members[0], biased(trained(24, seed=2))], settings=SETTINGS)
    write_onnx(graph, tmp_path / "model.onnx", input_size=40, metadata={})
    tensors = {each.name: tuple(each.dims) for each in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert tensors["branches.0.classifier.weight"] == tensors["branches.1.classifier.weight"] == (4, 512)
    assert tensors["branches.1.classifier.bias"] == (4,)
    assert isinstance(graph.branches[0], Branch)
