"""The report with pictures: one file that needs nothing else, whatever the labels are and whatever is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser.drawn_report import HOSTILE, jpeg, large_report, report
from PIL import Image

from flows.delivery.build import build_version
from flows.gate.verdict import Override, Verdict
from flows.report.figures import Figure
from flows.report.html.page import PAGE, forget, page, write_page
from flows.report.html.pictures import PICTURES, picture, read_pictures, shown_photos, take_pictures
from flows.report.html.summary import duration, summary
from flows.report.markdown import markdown
from flows.report.run_report import Report, to_json
from flows.report.steps import StepAccuracy
from models.data.manifest import read_manifest
from tests.deliveries import deliver

VOID = ("meta", "img", "br", "link", "input")


class Reader(HTMLParser):
    """The elements, the addresses and the visible text of a page; an element that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def read(text: str) -> Reader:
    """The page, after a check that it needs nothing but itself and runs nothing."""
    reader = Reader(text)
    assert {"script", "iframe", "object", "link", "base"}.isdisjoint(reader.tags)
    assert not [name for name in reader.attributes if name.startswith("on")]
    assert [each for each in reader.addresses if not each.startswith(("data:image/jpeg;base64,", "#"))] == []
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert reader.tags.count("h1") == 1
    return reader


@pytest.fixture(scope="module")
def whole() -> str:
    return page(report(), {f"{i:016x}": picture(jpeg(i)) for i in range(40)})


def test_the_page_needs_nothing_else_and_shows_labels_as_they_are(whole: str) -> None:
    reader = read(whole)
    for label in HOSTILE:
        assert label[:100] in reader.text, label
    assert reader.text.count("no picture") == 8, "of the last eight of the 48 label issues"
    assert reader.tags.count("svg") == 7
    assert "<dt>file</dt><dd><bdi>&lt;i&gt;a&lt;/i&gt;.jpg</bdi></dd>" in whole


def test_every_picture_says_what_it_shows(whole: str) -> None:
    images = re.findall(r"<(?:img|svg)\b[^>]*>", whole)
    assert len(images) > 60
    assert [each for each in images if not re.search(r'(?:alt|aria-label)="[^"]{10}', each)] == []


def test_every_chart_takes_its_colours_from_the_page(whole: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", whole, re.DOTALL)
    assert [each for chart in charts for each in re.findall(r"#[0-9a-f]{6}\b", chart)] == []
    names = {name for chart in charts for name in re.findall(r"var\((--\w+)\)", chart)}
    assert names == {"--ink", "--muted", "--line", "--first", "--second", "--bad"}
    assert all(f"{name}:" in whole for name in names)


def test_the_numbers_are_those_of_the_text(whole: str) -> None:
    text, numbers = markdown(report()), read(whole).text
    assert "0.504" in text
    assert "50.4%" in numbers
    for row in report().figures[2].rows:
        assert f"{row['photos']} of {row['of']}" in numbers
    assert "1 h 6 min" in numbers


def verdict(*, passed: bool = True, **changes: Any) -> Verdict:
    return Verdict(passed, ("a reason",), "c" * 64, **changes)


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"model_version": 3, "verdict": verdict()}, "The new model is in use as version 3: it passed all checks."),
        (
            {"model_version": 3, "verdict": verdict(passed=False, override=Override("Ada", "we looked", ["tail"]))},
            "The new model is in use as version 3: a check refused it, and Ada overrode the check.",
        ),
        (
            {"model_version": 3, "promoted": False, "verdict": verdict()},
            "The new model is registered as version 3 and not in use yet: it passed all checks.",
        ),
        ({"verdict": verdict()}, "The new model passed all checks. It is not in use yet."),
        ({"verdict": verdict(passed=False)}, "The new model was refused. There is no model in use."),
        ({}, "The new model was refused. Model version 2 stays in use."),
    ],
)
def test_the_first_line_says_what_became_of_the_model(changes: dict[str, Any], first: str) -> None:
    assert summary(report(**changes), {}).lines[0] == first


def test_the_other_lines_say_how_good_it_is_and_what_to_look_at() -> None:
    told = report()
    figures = {figure.name: figure for figure in told.figures}
    _, good, why = summary(told, figures).lines
    assert good == (
        "It recognises 50.4% of the test photos, as the mean over all products; the model before it 62.5% of the same photos."
    )
    assert why.startswith("The reason: On average over all products, the new model recognises 50.0% of the test photos")
    assert why.endswith("at most 2 points worse are accepted. There is one more reason below.")
    passed = replace(told, verdict=verdict(), steps=[])
    assert summary(passed, figures).lines[1:] == (
        "How good it is could not be measured: there are no test photos.",
        "50 of 200 labels that were checked are probably wrong (25.0%). Please look at the worst of them below.",
    )
    assert summary(passed, {}).lines[2] == "Labels were not checked in this run."
    assert summary(told, {}).when == "30 November 2026, 11:18 UTC"
    assert summary(replace(told, run="mine"), {}).when == "mine"


def test_a_refusal_names_the_ways_out(whole: str) -> None:
    assert "<code>cleanshelf publish 20261130-111834-ba5c7b --despite REASON</code>" in whole
    plain = "The new model hardly recognises &lt;script&gt;alert(1)&lt;/script&gt;, "
    assert whole.count(plain) == 2, "among what you can do, and among the checks"
    assert "<li>mean_class: mean-class accuracy fell</li>" in whole
    assert "What you can do" not in page(report(verdict=verdict()), {})


NOTHING = {"figures": [], "steps": [], "evidence": [], "look_at": [], "seen": []}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name, value in NOTHING.items()),
        NOTHING,
        {"steps": [StepAccuracy("one graph", None, None, None, None, None)]},
        {"figures": [Figure("Labels", [], ("believed",), "labels"), Figure("Numbers", [{"a": None, "b": 1.5}])]},
        {
            "figures": [
                Figure("Test photos", [{"shows": "a", "taken for": "b", "photos": 1, "of": 2}], (), "confusions")
            ]
        },
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_a_part_that_is_missing_leaves_the_others(changes: dict[str, Any]) -> None:
    reader = read(page(report(**changes), {}))
    assert "Checks" in reader.text


def test_a_report_of_an_earlier_release_has_a_page() -> None:
    content = json.loads(to_json(vars(report(figures=[])) | {"figures": [{"title": "Old", "rows": [{"a": 1}], "bars": []}]}
                                | {"steps": [], "seen": [], "verdict": vars(verdict())}))  # fmt: skip
    del content["look_at"]
    assert "Old" in read(page(Report.of(content), {})).text


@pytest.mark.parametrize("count", [1, 50_030])
def test_the_page_stays_small_at_any_number_of_classes(count: int) -> None:
    """Labels as long as they may be, and pictures as large as they can be, of three test photos per class."""
    told, largest = large_report(count), picture(jpeg())
    text = page(told, dict.fromkeys(shown_photos(told), largest))
    read(text)
    assert 80_000 < len(text.encode()) < 2_000_000
    assert len(markdown(told)) < 1_000_000


def test_photos_become_small_pictures_with_their_proportions() -> None:
    wide = io.BytesIO()
    Image.fromarray(np.arange(300 * 100 * 3, dtype=np.uint8).reshape(100, 300, 3)).save(wide, "PNG")
    made = Image.open(io.BytesIO(base64.b64decode(picture(wide.getvalue()).removeprefix("data:image/jpeg;base64,"))))
    assert (made.format, made.size) == ("JPEG", (96, 32))
    assert len(picture(jpeg(side=1000))) < 12_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data version of six photos, of which the first was purged: zeros lie in its place."""
    build_version(deliver(tmp_path / "source", {"tea": 3, "milk": 3}), base=None, out=tmp_path / "data")
    manifest = read_manifest(tmp_path / "data")
    with (tmp_path / "data" / "shards" / f"{manifest.shard[0]}.tar").open("r+b") as shard:
        shard.seek(int(manifest.offset[0]))
        shard.write(bytes(int(manifest.size[0])))
    return tmp_path / "data"


def test_photos_that_are_gone_have_no_picture(data: Path) -> None:
    ids = read_manifest(data).id.tolist()
    assert take_pictures(data, [*ids, "f" * 16]).keys() == set(ids[1:])
    for shard in (data / "shards").iterdir():
        shard.unlink()
    assert take_pictures(data, ids) == {}


def test_pictures_are_taken_once_and_a_purge_takes_them_out(data: Path, tmp_path: Path) -> None:
    first, second = read_manifest(data).id[1:3]
    rows = [{"photo": first, "given label": "tea", "suggested label": None, "score": 0.1, "decision": ""},
            {"photo": second, "given label": "tea", "suggested label": None, "score": 0.2, "decision": ""}]  # fmt: skip
    told = report(**NOTHING | {"figures": [Figure("Issues", rows, name="label issues")]})
    folder, other = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    for each in (folder, other):
        each.mkdir(parents=True)
        (each / "run.json").write_text(to_json(asdict(told)))
        write_page(each, told, data)
    pictures = read_pictures(folder)
    assert pictures.keys() == {first, second}
    before = (folder / PAGE).read_text()
    write_page(folder, told, None)
    assert (folder / PAGE).read_text() == before, "the pictures of an earlier call"
    assert all(each in before for each in pictures.values())

    forget(tmp_path / "runs", {"0" * 16})
    assert (folder / PAGE).read_text() == before
    (other / "run.json").write_text("{")
    forget(tmp_path / "runs", {first, "0" * 16})
    assert read_pictures(folder) == {second: pictures[second]}
    after = (folder / PAGE).read_text()
    assert (pictures[first] in after, pictures[second] in after, after.count("no picture<")) == (False, True, 1)
    assert not (other / PAGE).exists(), "its run.json is damaged, so the page cannot be drawn again"
    (folder / PICTURES).write_text("[")
    assert read_pictures(folder) == {}


def test_times_are_told_in_the_two_largest_units() -> None:
    assert [*map(duration, (0.04, 9.94, 12.3, 75, 3661))] == ["0.0 s", "9.9 s", "12 s", "1 min 15 s", "1 h 1 min"]
