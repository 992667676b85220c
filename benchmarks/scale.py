"""A whole retraining at 50,030 classes, stage by stage: time, memory, bytes written, and how each grows with the classes.

    python benchmarks/scale.py                                      # 1,000 classes, five photos each; minutes
    python benchmarks/scale.py --classes 1000 10000 50030 --page    # all, and docs/figures/scale.md; an hour or two
    python benchmarks/scale.py --classes 50030 --photos 1000000 --stage cleaning    # one round from drawn scores
    python benchmarks/scale.py --classes 50030 --stage profile      # operators of balancing, calibration; after a whole run

Every size has a workspace of its own below build/scale, and whatever has ended there is not run again. The stages are verbs of
`cleanshelf`: draw, ingest, retrain (each of its steps is a row), serve (load, recognise, enrol, drift). --page writes the
sections of the page that were measured, and leaves the others, such as its notes, as they are.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from browser.told import at_most, told
from figure import PRINTED, header
from scaling import page, pages
from scaling.stages import EACH, STAGES, WHOLE, Place, Size, run
from scaling.watched import merged

CLAIM = "at 50,030 classes every stage of a retraining ends, within 4 GB, and takes as long per photo as at 1,000"
SMALL = 1_000  # classes
BUILD = Path(__file__).resolve().parents[1] / "build" / "scale"
GB, MB, MINUTE = 1e9, 1e6, 60
PEAK_GB, OTHERS_MIN, EXPORT_MIN, CLEANING_MIN, LOAD_S = 4.0, 15.0, 5.0, 10.0, 60.0
EXPONENT, LARGE_S = 0.3, 10.0  # of growth, and seconds of a stage from which on it has to keep to it
PAGE = BUILD.parents[1] / "docs" / "figures" / "scale.md"
DRAWN = ("draw", "draw of scores")  # the benchmark's own part
LEARNS = ("train member", "score fold", *DRAWN)


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="*", type=int, default=[SMALL])
    parser.add_argument("--photos", type=int, help=f"by default {EACH} of each class; only with one number of classes")
    parser.add_argument("--members", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--epoch-length", type=int, default=20_000)
    parser.add_argument("--stage", nargs="*", choices=list(STAGES), default=list(WHOLE))
    parser.add_argument("--place", type=Path, default=BUILD)
    parser.add_argument("--page", nargs="?", type=Path, const=PAGE, help="write docs/figures/scale.md, or this file")
    parser.add_argument("--fresh", action="store_true", help="forget what ended before")
    args = parser.parse_args(words)
    if args.fresh:
        shutil.rmtree(args.place, ignore_errors=True)
    header(CLAIM)
    places, before = list[Place](), len(PRINTED)
    for classes in args.classes:
        size = Size(classes, args.photos or EACH * classes, args.members, args.epochs, args.epoch_length)
        places.append(Place(args.place, size))
        run(places[-1], args.stage)
        tell(places[-1])
        if "retrain" in args.stage:
            for say in (pages.compare_plan, pages.weigh, pages.measure):
                say(places[-1].workspace, places[-1].at)
    for place in places[:-1]:
        grow(place, places[-1])
    if args.page is not None:
        page.write(args.page, places, PRINTED[before:])


def tell(place: Place) -> None:
    """Prints what every stage of a size took, and the sums and peaks that have a target."""
    at, taken = place.at, merged(place.taken)
    for name, each in taken.items():
        told(f"{at}: {name}, s", each.seconds)
        if each.peak_bytes:
            told(f"{at}: {name}, processor time, s", each.processor_s)
            told(f"{at}: {name}, peak of any process, GB", each.peak_bytes / GB)
            told(f"{at}: {name}, written, MB", each.written_bytes / MB)
    most = max(taken.keys() - DRAWN, key=lambda name: taken[name].peak_bytes, default="draw")
    at_most(f"{at}: peak of any process, in `{most}`, GB", taken[most].peak_bytes / GB, PEAK_GB)
    if "cleaning" in taken:
        at_most(f"{at}: cleaning, min", taken["cleaning"].seconds / MINUTE, CLEANING_MIN)
    if "export" in taken:
        others = [each for name, each in taken.items() if name not in LEARNS]
        seconds, processor_s = (sum(getattr(each, kind) for each in others) for kind in ("seconds", "processor_s"))
        at_most(f"{at}: all but training and scoring, min", seconds / MINUTE, OTHERS_MIN)
        told(f"{at}: all but training and scoring, processor time, min", processor_s / MINUTE)
        last = [taken[name] for name in ("export", "gate") if name in taken]  # a gate may take less than a look
        at_most(f"{at}: export, parity and gate, min", sum(each.seconds for each in last) / MINUTE, EXPORT_MIN)
        peak = max(each.peak_bytes for each in last) / GB
        at_most(f"{at}: export, parity and gate, peak of any process, GB", peak, PEAK_GB)
    if "serve" in taken:
        at_most(f"{at}: load and check of the version, s", taken["serve"].seconds, LOAD_S)


def grow(small: Place, large: Place) -> None:
    """Prints the exponent of growth of each stage's processor time per photo, with the number of classes."""
    before, after = merged(small.taken), merged(large.taken)
    exponents = {
        name: page.exponent_of(before[name], each, small.size, large.size)
        for name, each in after.items()
        if name in before and name not in LEARNS and each.seconds >= LARGE_S
    }
    at = f"{large.at}: exponent of processor time per photo from {small.size.classes:,} classes"
    for name, exponent in exponents.items():
        told(f"{at}, {name}", exponent)
    if exponents:
        most = max(exponents, key=exponents.__getitem__)
        at_most(f"{at}, at most, in `{most}`", exponents[most], EXPONENT)


if __name__ == "__main__":
    main()
