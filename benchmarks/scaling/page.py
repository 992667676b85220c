"""The page of the benchmark of whole retrainings: what a run measured, with the sections of the page that it did not."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figure import hardware, item, versions
from run import TABLE, TOLD, read_sections, row

from scaling import pages
from scaling.stages import EACH, Place, Size
from scaling.watched import Taken, merged

GB, MB = 1e9, 1e6
INTRODUCTION = """Written by `{command}`, but for its notes: a drawn assortment of tiny photos with a long tail, wrong labels
and near-duplicates goes through every stage; members: {members}, each a small network; two folds; {draws:,} draws an epoch."""
COLUMNS = """Columns of a size: seconds on the clock, processor seconds of all processes, peak resident memory of any process, bytes
written. A stage that started a child has the peak of that. Members and folds run side by side; a row has the seconds
of all of them once. An exponent is that of the processor time per photo over the number of classes, from a size to the
last: 0 is proportional to the photos, and below 0 a stage costs its start above all.

"""
PLANNED = """`cleanshelf plan` against what the run took. Stages above {long:g} s should be within {off:g} %.

"""
CLEANED = "A round of cleaning from drawn scores"
PROFILED = """Seconds of torch's operators while the first member is balanced and the ensemble calibrated once more, by
`{command} --stage profile`, on {hardware}; the largest {most} of each:"""
MOST = 6  # operators
NAMES = ("Targets", "Stages", "Plan", "Profile", CLEANED, "Notes")


def write(page: Path, places: Sequence[Place], figures: Sequence[Mapping[str, Any]]) -> None:
    """Writes the sections that these places measured, the last of them above all; all other sections stay as they are.

    figures: lines that were printed; those with a target are listed.
    """
    head = page.read_text(encoding="utf-8").partition("\n## ")[0].strip() if page.exists() else ""
    if "export" in places[-1].taken:
        head = introduction(places)
    measured = {name: f"## {name}\n\n{text}\n" for name, text in sections(places, figures).items()}
    found = read_sections(page) | measured
    names = [*(name for name in NAMES if name in found), *(name for name in found if name not in NAMES)]
    page.write_text("\n".join([f"{head}\n", *(found[name] for name in names)]), encoding="utf-8")


def introduction(places: Sequence[Place]) -> str:
    """Title, command, hardware and versions."""
    size = places[-1].size
    text = INTRODUCTION.format(command=command(places), members=size.members, draws=size.epoch_length)
    facts = [item(f"hardware: {hardware()}"), item(f"versions: {versions()}")]
    return "\n".join(["# A whole retraining at any size", "", _filled(text), "", *facts])


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def sections(places: Sequence[Place], figures: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Text of each section that these places measured."""
    last, found = places[-1], dict[str, str]()
    bounds = [{**each, "figure": each["figure"].removeprefix(f"{last.at}: ")} for each in figures
              if each["target"] != TOLD and each["figure"].startswith(last.at)]  # fmt: skip
    targets = "\n".join([*TABLE, *map(row, bounds)])
    if "cleaning" in last.taken:
        text = f"By `{command(places)} --stage cleaning`, on {hardware()}:"
        found[CLEANED] = f"{_filled(text)}\n\n{targets}"
    if "export" in last.taken:
        found["Targets"] = f"{last.at} (classes x photos):\n\n{targets}"
        found["Stages"] = COLUMNS + "\n".join(stage_table(places))
        rows = plan_table(pages.plan_rows(last.workspace))
        found["Plan"] = PLANNED.format(long=pages.LONG_S, off=pages.OFF) + "\n".join(rows)
    if files := sorted(last.folder.glob("*.profile.json")):
        text = PROFILED.format(command=command(places), hardware=hardware(), most=MOST)
        found["Profile"] = "\n".join([_filled(text), "", *profile_table(files)])
    return found


def command(places: Sequence[Place]) -> str:
    """Command line that measures these places and writes the page."""
    size = places[-1].size
    photos = f" --photos {size.photos}" if size.photos != EACH * size.classes else ""
    classes = " ".join(str(place.size.classes) for place in places)
    return f"python benchmarks/scale.py --classes {classes}{photos} --members {size.members} --page"


def stage_table(places: Sequence[Place]) -> list[str]:
    """Rows of every stage at every size, with the exponents of growth from each smaller size to the last."""
    taken, last = [merged(each.taken) for each in places], places[-1].size
    sizes = " | ".join(f"{each.at}: s | processor s | GB | MB" for each in places)
    grown = "".join(f" exponent from {each.size.classes:,} |" for each in places[:-1])
    rows = [f"| stage | {sizes} |{grown}", f"|---|{'--:|' * (5 * len(places) - 1)}"]
    for name in dict.fromkeys(name for each in taken for name in each):
        cells = [cell for each in taken for cell in _cells(each.get(name))]
        for place, each in zip(places[:-1], taken[:-1], strict=True):
            first, final = each.get(name), taken[-1].get(name)
            cells.append(f"{exponent_of(first, final, place.size, last):+.2f}" if first and final else "")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def exponent_of(first: Taken, last: Taken, few: Size, many: Size) -> float:
    """Exponent e: the processor time per photo grows as (number of classes)^e, from one size to another."""
    per_photo = (last.processor_s / many.photos) / (max(first.processor_s, 1e-3) / few.photos)
    return math.log(per_photo) / math.log(many.classes / few.classes)


def _cells(taken: Taken | None) -> list[str]:
    if taken is None:
        return [""] * 4
    return [f"{taken.seconds:,.1f}", f"{taken.processor_s:,.1f}", f"{taken.peak_bytes / GB:.2f}",
            f"{taken.written_bytes / MB:,.0f}"]  # fmt: skip


def plan_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of a plan against what its stages took."""
    lines = ["| stage | planned, s | took, s | off by % | within the target |", "|---|--:|--:|--:|---|"]
    for each in rows:
        within = "yes" if abs(each["off by %"]) <= pages.OFF else "**no**"
        lines.append(f"| {each['stage']} | {each['planned s']:,} | {each['took s']:,} | {each['off by %']:+} | "
                     f"{within if each['took s'] >= pages.LONG_S else 'short'} |")  # fmt: skip
    return lines


def profile_table(files: Sequence[Path]) -> list[str]:
    """Rows of the operators that take most of the time."""
    lines = ["| stage | operator | s | share |", "|---|---|--:|--:|"]
    for file in files:
        taken: dict[str, float] = json.loads(file.read_bytes())
        for name in sorted(taken, key=taken.__getitem__, reverse=True)[:MOST]:
            share = taken[name] / sum(taken.values())
            lines.append(f"| {file.name.partition('.')[0]} | {name} | {taken[name]:,.1f} | {share:.0%} |")
    return lines
