"""The night on paper: a training computed by hand, and a page that is what its program writes."""

from __future__ import annotations

import one_night
import pytest

from models.recipe.config import from_dict

ONE = {
    "name": "one",
    "members": [{"backbone": "mobilenetv2_100", "size": 224}],
    "train": {"epochs": 2, "batch_size": 256},
    "clean": {"rounds": 0},
}


@pytest.mark.parametrize(("cards", "speed"), [(1, 1.0), (8, 8 * 0.67)])
def test_a_training_takes_the_time_that_was_computed_by_hand(cards: int, speed: float) -> None:
    logits = 12 * 50_030 * 4 / 936e9  # 2.57 us
    update = 28 * 512 * 50_030 / 936e9 / 256  # 2.99 us
    drawn_s, scored_s = (
        1 / 2313.1 + logits + update,
        1 / 8 / 607,
    )  # eight cores decode a photo more slowly than a card scores it
    by_hand = 40 + (2 * 1_800_000 * drawn_s + 700_000 * scored_s) / speed
    (training,) = (stage for stage in one_night.night(from_dict(ONE), cards) if stage.step == "train member")
    assert training.seconds == pytest.approx(by_hand)
    assert training.seconds == pytest.approx({1: 1760.5, 8: 361.0}[cards], abs=0.1)


def test_every_stage_of_a_plan_is_in_a_night_once() -> None:
    steps = [stage.step for stage in one_night.night(from_dict(ONE), 1)]
    assert sorted(steps) == sorted(
        ["train member", "balance member", "choose crops", "calibrate", "export", "gate, report and publish"]
    )


def test_the_page_is_that_of_the_program() -> None:
    assert one_night.page() == one_night.PAGE.read_text(encoding="utf-8"), "run python benchmarks/one_night.py"
