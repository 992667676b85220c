"""A whole retraining at 50,030 classes, stage by stage: time, memory, bytes written, and how each grows from 1,000 classes.

    python benchmarks/scale.py                                      1,000 classes, five photos each; minutes
    python benchmarks/scale.py --classes 1000 50030 --page          both, and docs/figures/scale.md; an hour or two
    python benchmarks/scale.py --classes 50030 --photos 1000000 --stage cleaning    one round from drawn scores

Every size has a workspace of its own below build/scale, and whatever has ended there is not run again. The stages are verbs of
`cleanshelf`: draw, ingest, retrain (each of its steps is a row), serve (load, recognise, enrol, drift).
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from figure import figure, hardware, header, item
from scaling import pages
from scaling.stages import STAGES, WHOLE, Place, Size, run
from scaling.watched import Taken

CLAIM = "at 50,030 classes every stage of a retraining ends, within 4 GB, and takes as long per photo as at 1,000"
CLASSES, EACH = (1_000, 50_030), 5
BUILD = Path(__file__).resolve().parents[1] / "build" / "scale"
GB = 1e9
PEAK_GB, OTHERS_MIN, EXPONENT, LARGE_S = 4.0, 15.0, 0.3, 10.0
PAGE = BUILD.parents[1] / "docs" / "figures" / "scale.md"
INTRODUCTION = """# A whole retraining at any size

Written by `python benchmarks/scale.py --classes 1000 50030 --page`: a drawn assortment of tiny photos with a long
tail, wrong labels and near-duplicates goes through every stage; one small network, two folds, 20,000 draws an epoch.
Columns of a size: seconds on the clock, processor seconds of all processes, peak resident memory of any process, bytes
written. A stage that started a child has the peak of that; the flow itself keeps 0.3 to 0.6 GB. Folds that run side by
side have their seconds once. The exponent is that of the processor time per photo over the number of classes, from the
first size to the last: 0 is proportional to the photos, and below 0 a stage costs its start above all.

""".splitlines()
LEARNS = ("train member", "score fold", "draw")  # the classifier itself, and the benchmark's own part


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="*", type=int, default=list(CLASSES[:1]))
    parser.add_argument("--photos", type=int, help=f"by default {EACH} of each class; only with one number of classes")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--epoch-length", type=int, default=20_000)
    parser.add_argument("--stage", nargs="*", choices=list(STAGES), default=list(WHOLE))
    parser.add_argument("--place", type=Path, default=BUILD)
    parser.add_argument("--page", action="store_true", help="write docs/figures/scale.md")
    parser.add_argument("--fresh", action="store_true", help="forget what ended before")
    args = parser.parse_args(words)
    if args.fresh:
        shutil.rmtree(args.place, ignore_errors=True)
    header(CLAIM)
    places = []
    for classes in args.classes:
        size = Size(classes, args.photos or EACH * classes, args.members, args.epochs, args.epoch_length)
        places.append(Place(args.place, size))
        run(places[-1], args.stage)
        tell(places[-1])
        if "retrain" in args.stage:
            at = f"{classes:,} x {places[-1].size.photos:,}"
            pages.compare_plan(places[-1].workspace, at)
            pages.measure(places[-1].workspace, at)
    if len(places) > 1:
        grow(places[0], places[-1])
    if args.page:
        PAGE.write_text(page(places), encoding="utf-8")


def tell(place: Place) -> None:
    """Prints what every stage of a size took."""
    size, taken = place.size, place.taken
    at = f"{size.classes:,} x {size.photos:,}"
    is_full = (size.classes, size.photos) == (CLASSES[-1], EACH * CLASSES[-1])
    for name, each in taken.items():
        figure(f"{at}: {name}, s", round(each.seconds, 1), target="told", met=True, baseline=None)
        if each.peak_bytes:
            figure(
                f"{at}: {name}, processor time, s", round(each.processor_s, 1), target="told", met=True, baseline=None
            )
            peak = each.peak_bytes / GB
            figure(f"{at}: {name}, peak of any process, GB", round(peak, 3), target=f"<= {PEAK_GB:g}",
                   met=peak <= PEAK_GB, baseline=None)  # fmt: skip
            written = each.written_bytes / 1e6
            figure(f"{at}: {name}, written, MB", round(written, 1), target="told", met=True, baseline=None)
    others = sum(each.seconds for name, each in taken.items() if not name.startswith(LEARNS)) / 60
    figure(f"{at}: everything but training and scoring, min", round(others, 1),
           target=f"<= {OTHERS_MIN:g}" if is_full else "told", met=others <= OTHERS_MIN, baseline=None)  # fmt: skip
    others = sum(each.processor_s for name, each in taken.items() if not name.startswith(LEARNS)) / 60
    figure(f"{at}: everything but training and scoring, processor time, min", round(others, 1),
           target="told", met=True, baseline=None)  # fmt: skip


def grow(small: Place, large: Place) -> None:
    """Prints the exponent of growth of each stage's processor time per photo, with the number of classes."""
    ratio = large.size.classes / small.size.classes
    for name, each in large.taken.items():
        if (first := small.taken.get(name)) and not name.startswith(LEARNS) and each.seconds >= LARGE_S:
            exponent = exponent_of(first, each, small.size.photos, large.size.photos, ratio)
            figure(f"{small.size.classes:,} to {large.size.classes:,} classes: {name}, exponent of processor time per photo",
                   round(exponent, 3), target=f"<= {EXPONENT}", met=exponent <= EXPONENT, baseline=None)  # fmt: skip


def page(places: Sequence[Place]) -> str:
    """Table of every stage at every size, with the exponents of growth from the first size to the last."""
    first, last = places[0], places[-1]
    sizes = [f"{each.size.classes:,} x {each.size.photos:,}" for each in places]
    head = f"| stage | {' | '.join(f'{size}: s | processor s | GB | MB' for size in sizes)} | exponent |"
    lines = [*INTRODUCTION, item(f"hardware: {hardware()}, load {os.getloadavg()[0]:.1f}"), "", head]
    lines.append(f"|---|{'--:|--:|--:|--:|' * len(sizes)}--:|")
    for name in dict.fromkeys(name for each in places for name in each.taken):
        cells = []
        for each in places:
            taken = each.taken.get(name)
            cells += [""] * 4 if taken is None else [f"{taken.seconds:,.1f}", f"{taken.processor_s:,.1f}",
                                                     f"{taken.peak_bytes / GB:.2f}",
                                                     f"{taken.written_bytes / 1e6:,.0f}"]  # fmt: skip
        both = first.taken.get(name), last.taken.get(name)
        grown = (
            ""
            if both[0] is None or both[1] is None or first is last
            else (
                f"{exponent_of(*both, first.size.photos, last.size.photos, last.size.classes / first.size.classes):+.2f}"
            )
        )
        lines.append(f"| {name} | {' | '.join(cells)} | {grown} |")
    return "\n".join(lines) + "\n"


def exponent_of(first: Taken, last: Taken, few: int, many: int, ratio: float) -> float:
    """Exponent e: the processor time per photo grows as (number of classes)^e, if there are `ratio` times as many classes."""
    per_photo = (last.processor_s / many) / (max(first.processor_s, 1e-3) / few)
    return math.log(per_photo) / math.log(ratio)


if __name__ == "__main__":
    main()
