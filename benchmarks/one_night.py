"""Cost of 2.5 million photos of 50,030 products on 1, 8 and 64 cards, on paper: writes docs/figures/one-night.md.

    python benchmarks/one_night.py

Stages and their sums are those of `cleanshelf plan` (flows/run/estimate.py). Rates of cores were measured here; rates of cards
are timm's own benchmarks. Nothing of it ran on a card of ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figure import figure, header

from flows.run.estimate import Counts, Machine, Stage, stages
from models.progress import duration
from models.recipe.config import Recipe, load_recipe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "one-night.md"
COUNTS = Counts(photos=2_500_000, classes=50_030, train=1_800_000, val=200_000, test=500_000)
CARDS, RECIPES = (1, 8, 64), ("modern", "tuned", "aliproducts")
CORES = 8  # of each card, as rented machines have
NEW = COUNTS.test // 10  # test photos that came since the current model was exported: taken, not measured
MACHINE_CARDS = 8  # of one machine; a graph is asked, and an ensemble calibrated, on those of one
HERE, SOURCE, COMPUTED = "measured here", "from a source", "computed"
CORE_PHOTOS_S = 607.0  # 500 px JPEGs decoded for training, one core of this machine: benchmarks/train_loader.py
CORE_GMAC_S = 23.9  # billion products and sums of one core: benchmarks/train_scoring.py, 295 photos/s at .081 each
TWO_WORKERS = 0.67  # photos/s per process of two that share a training over one alone: benchmarks/train_workers.py
FLOAT32 = 2.0  # times as long as in mixed precision, as a graph is asked
FLOPS = 35.6e12  # of a card, float32
PRODUCT_S = 9.0e-4  # s of one core, a photo's product with 50,030 classes; of a card it is FLOPS that counts
PRODUCT = "OMP_NUM_THREADS=1 python -c 'from models.export.pace import time_classes; print(time_classes(50_030))'"
BANDWIDTH, FLOAT, WIDTH, HEAD = 936e9, 4, 512, 512 * 50_030
START_S = 40.0
INGEST_S = 102.8 / 250_150  # s of two cores, a tiny photo: benchmarks/scale.py


@dataclass(frozen=True)
class Card:
    """Photos per second of a backbone on an RTX 3090, mixed precision: while it learns, and without gradients; at `side` px."""

    train: float
    infer: float
    side: int
    infer_side: int
    parameters: float  # in millions
    gmac: float  # of a photo at `infer_side`


RATES = {
    "mobilenetv2_100": Card(2313.1, 3.1 * 2313.1, 224, 224, 3.5, 0.31),
    "resnest101e": Card(96.09, 860.16, 256, 256, 48.3, 13.38),
    "tf_efficientnetv2_m": Card(173.37, 1081.64, 384, 320, 54.1, 11.01),
    "deit_small_patch16_224": Card(1050.7, 4640.58, 224, 224, 22.1, 4.61),
    "vit_base_patch16_siglip_gap_256": Card(math.nan, 1230.86, 256, 256, 85.8, 23.13),
    "vit_base_patch14_reg1_tipsv2": Card(math.nan, 1154.66, 224, 224, 86.6, 23.5),
}


def pace(
    recipe: Recipe, member: int, *, on_card: bool = True, decode_s: float = 1 / CORES / CORE_PHOTOS_S
) -> dict[str, float]:
    """The pace of a member on one card, as models.export.pace would measure it.

    on_card: the graph is asked there too. decode_s: time in which the card's cores decode a photo, beside its passes.
    """
    own = recipe.of(member)
    (settings,), train = own.members, own.train
    card = RATES[settings.backbone.partition(".")[0]]
    logits = 12 * COUNTS.classes * FLOAT / BANDWIDTH  # passes of the loss over the logits of a photo
    update = (
        28 * HEAD / BANDWIDTH / train.batch_size
    )  # weights, gradients and moments of the classifier, read and written
    infer_s = (settings.size / card.infer_side) ** 2 / card.infer
    train_s = 0.0 if train.backbone_lr_scale == 0 else (settings.size / card.side) ** 2 / card.train
    feature_s = 2 * infer_s if train.backbone_lr_scale == 0 else 0.0
    gmac = card.gmac * (settings.size / card.infer_side) ** 2 + HEAD / 1e9
    asked_s = FLOAT32 * infer_s + logits / 3 if on_card else gmac / CORES / CORE_GMAC_S
    return {
        "shown_s": max(infer_s + logits / 3, decode_s),
        "asked_s": max(asked_s, decode_s),
        "drawn_s": max(train_s + logits + update, decode_s if train_s else 0.0),
        "scored_s": logits / 3 if feature_s else max(infer_s + logits / 3, decode_s),
        "product_s": 2 * HEAD / FLOPS,
        "pass_s": 2 * FLOAT * COUNTS.classes / BANDWIDTH,
        "feature_s": max(feature_s, decode_s) if feature_s else 0.0,
        "parameters": 1e6 * card.parameters + HEAD,
        "peak_bytes": 16 * (1e6 * card.parameters + HEAD),
        "measured_s": 0.0,
    }


def night(recipe: Recipe, cards: int) -> list[Stage]:
    """The stages on this many cards: trainings side by side, and several cards for each where there are more than trainings."""
    paces = [pace(recipe, member) for member in range(len(recipe.members))]
    found = []
    for name, number in (("train member", len(paces)), ("score fold", recipe.clean.folds), ("", 1)):
        sharing = max(cards // number, 1)
        speed = sharing * TWO_WORKERS if sharing > 1 else 1.0
        faster = [
            {**each, **{key: each[key] / speed for key in ("drawn_s", "scored_s", "feature_s")}} for each in paces
        ]
        machine = Machine(min(cards, number) if name else 1, START_S, min(cards, MACHINE_CARDS), NEW)
        found += [stage for stage in stages(recipe, COUNTS, faster, machine) if stage.step == name]
        if not name:
            found += [stage for stage in stages(recipe, COUNTS, paces, machine)
                      if stage.step not in ("train member", "score fold", "balance member")]  # fmt: skip
    update = 28 * HEAD / BANDWIDTH / 256 / 2  # of a retrained classifier, in each of the two products of its step
    learning = [each | {"product_s": each["product_s"] + update} for each in paces]
    balance = [stage for stage in stages(recipe, COUNTS, learning, Machine(min(cards, len(paces)), START_S))
               if stage.step == "balance member"]  # fmt: skip
    return [*found, *balance]


def bottleneck(recipe: Recipe, found: Sequence[Stage], cards: int) -> str:
    """The first thing that limits a night: decoding on the cores, or the longest stage."""
    longest = max(found, key=lambda stage: stage.seconds)
    share = longest.seconds / sum(stage.seconds for stage in found)
    fastest = max((1 / each for each in wanted_s(recipe)), default=0.0)
    if fastest > CORES * CORE_PHOTOS_S and longest.step in ("train member", "score fold"):
        return f"decoding: a card takes {fastest:,.0f} photos/s, {CORES} cores give {CORES * CORE_PHOTOS_S:,.0f}"
    return f"{longest.step}, {share:.0%} of the time"


def wanted_s(recipe: Recipe) -> list[float]:
    """Seconds of a card per photo of every pass that decodes: trainings of whole networks, and features of frozen ones."""
    paces = [pace(recipe, member, decode_s=0.0) for member in range(len(recipe.members))]
    return [each["feature_s"] or each["drawn_s"] for each in paces]


def page() -> str:
    """The page."""
    lines = [
        *INTRODUCTION,
        *rates_table(),
        "",
        "## Nights",
        "",
        *totals(),
        "",
        "## Stages on 8 cards",
        "",
        *on_eight(),
        "",
        *end(),
    ]
    return "\n".join(lines) + "\n"


def rates_table() -> list[str]:
    """Every rate with where it is from."""
    rows = ["| rate | value | mark |", "|---|--:|---|"]
    for name, card in RATES.items():
        if not math.isnan(card.train):
            rows.append(f"| `{name}` learns at {card.side} px, photos/s of a card | {card.train:,.0f} | {SOURCE} [1] |")
        source = f"{COMPUTED}: 3.1 times its training" if name == "mobilenetv2_100" else f"{SOURCE} [2]"
        rows.append(
            f"| `{name}` without gradients at {card.infer_side} px, photos/s of a card | {card.infer:,.0f} | {source} |"
        )
    return [
        *rows,
        f"| float32 products of a card, teraflops | {FLOPS / 1e12:.1f} | {SOURCE} [3] |",
        f"| memory bandwidth of a card, GB/s | {BANDWIDTH / 1e9:,.0f} | {SOURCE} [3] |",
        f"| photos decoded for training, photos/s of a core | {CORE_PHOTOS_S:,.0f} | {HERE}, `train_loader` |",
        f"| billion products and sums per s of a core, without gradients | {CORE_GMAC_S} | {HERE}, `train_scoring` |",
        f"| speed of each of two processes that share a training | {TWO_WORKERS} | {HERE}, on CPUs, `train_workers` |",
        f"| product of a photo with 50,030 classes, ms of a core | {1e3 * PRODUCT_S:.2f} | {HERE}, [by hand](#sources) |",
        f"| ingestion, ms per tiny photo on two cores | {1e3 * INGEST_S:.2f} | {HERE}, [`scale`](scale.md) |",
        "| anything measured on a GPU of ours | none | no GPU was at hand |",
    ]


def totals() -> list[str]:
    """Time of each recipe on each number of cards, and its first bottleneck; all computed."""
    rows = ["| recipe | cards | time | card hours | first bottleneck |", "|---|--:|--:|--:|---|"]
    for name in RECIPES:
        recipe = load_recipe(name)
        for cards in CARDS:
            found = night(recipe, cards)
            seconds = sum(stage.seconds for stage in found)
            figure(
                f"{name}, {cards} cards, hours on paper",
                round(seconds / 3600, 1),
                target="told",
                met=True,
                baseline=None,
            )
            rows.append(f"| `{name}` | {cards} | {days(seconds)} | {cards * seconds / 3600:,.0f} | "
                        f"{bottleneck(recipe, found, cards)} |")  # fmt: skip
    return rows


def on_eight() -> list[str]:
    """Time of every stage of each recipe on eight cards."""
    columns = {name: {stage.step: stage for stage in night(load_recipe(name), 8)} for name in RECIPES}
    steps = list(dict.fromkeys(step for column in columns.values() for step in column))
    rows = [f"| stage | {' | '.join(f'`{name}`' for name in RECIPES)} |", f"|---|{'--:|' * len(RECIPES)}"]
    for step in steps:
        cells = (days(column[step].seconds) if step in column else "" for column in columns.values())
        rows.append(f"| {step} | {' | '.join(cells)} |")
    return rows


def end() -> list[str]:
    """Notes and sources, with the time of the export where the graph is asked on cores."""
    told = []
    for name in RECIPES:
        recipe = load_recipe(name)
        paces = [pace(recipe, member, on_card=False) for member in range(len(recipe.members))]
        (export,) = (stage for stage in stages(recipe, COUNTS, paces, Machine(1, START_S)) if stage.step == "export")
        told.append(f"{days(export.seconds)} for `{name}`")
    ingest = days(COUNTS.photos * (INGEST_S + 1 / CORES / CORE_PHOTOS_S))
    epochs = 10 * 2 * COUNTS.train * PRODUCT_S / 3600
    return END.format(cores=", ".join(told), ingest=ingest, epochs=epochs, product=PRODUCT).splitlines()


def days(seconds: float) -> str:
    """Time for people: days from two of them on."""
    return f"{seconds / 86_400:.1f} days" if seconds >= 2 * 86_400 else duration(seconds)


INTRODUCTION = """# One night, on paper

Written by `python benchmarks/one_night.py`: what a retraining of 2.5 million photos of 50,030 products (1.8 million for
training, 200,000 for validation, 500,000 for tests) would take on 1, 8 and 64 cards with 8 cores each. **No card was at
hand**: the sums are those of `cleanshelf plan`, and the rates are marked. A card is an RTX 3090 with mixed precision;
current cards are several times as fast, and then the cores that decode are the limit sooner.

## Rates

""".splitlines()
END = """Every time in the tables of nights and stages is computed from these rates. Rates at another size are scaled by the
number of pixels. Cards beyond the number of trainings share one, each at the speed of two processes, which is of CPUs.
The product of the classifier is in the published rates of 1,000 classes only; for 50,030 its passes over the logits and
the update of its 25.6 million weights are added, by the bandwidth. The token count of
`vit_base_patch14_reg1_tipsv2` is that of `vit_base_patch16_reg4_gap_256`, whose rate stands for it. Not counted:
delivery over a network, waiting for a queue, faults, and ingestion: a retraining starts from a data version. The first
delivery of all photos takes {ingest}, at the rate of tiny photos and with photos decoded by 8 cores.

The export asks its graph about every test photo, in float32, which is counted as twice the time of mixed precision. The
gate asks the current model about the test photos that are new since its export, here a tenth of them. The cards of one
machine, eight here, share the photos; so they do while crops are chosen and the ensemble is calibrated. Before they
answer, the graph is compared with torch on the cores, and each card with the cores, on 24 photos. Where ONNX Runtime
cannot use the cards it takes the cores and warns; then the export would take, on any number of cards,
{cores}.
`export.crops=2`, or fewer test photos (`ingest --test-share`), shorten it. That it uses the cards was not tried on one.

Photos are decoded by the cores in all of these times, and a card waits for its eight where it is faster.
`train.decode="device"` leaves plain JPEGs to the cards, in trainings, features of frozen backbones and the passes that
follow them; it has no rate here, as it never ran on a card.

Without a card, the ten epochs of a retrained classifier alone (`balance.method="best"`) would take a core {epochs:.0f} hours at
this size, two products of each photo with all classes; `balance.epochs=0` leaves them out.

## Sources

1. timm, `results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv` of `huggingface/pytorch-image-models`.
2. timm, `results/benchmark-infer-amp-nhwc-pt240-cu124-rtx3090.csv` of the same repository, also for the products and
   sums of a photo.
3. NVIDIA's data sheet of the GeForce RTX 3090.

The product of a photo with all classes was measured by
`{product}`,
the smallest of three runs."""


def main() -> None:
    """Writes the page."""
    header("a night with 2.5 million photos of 50,030 products, computed from measured and published rates")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
