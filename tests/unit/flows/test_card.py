"""Model cards, read from the file alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.registry.card import read_card, summary
from serving.errors import BadGraph
from tests.command_line import ROOT, cleanshelf, refusal
from tests.graphs import LABELS, write_graph

CARD = {
    "data_version": "0123456789abcdef",
    "commit": "12345678",
    "config_hash": "9876543210",
    "recipe": "robust",
    "produced_by": "cleanshelf",
    "labels": json.dumps(LABELS),
    "labels_sha256": "ab" * 32,
    "members": json.dumps([{"backbone": "resnet10t", "size": 96, "tau": 0.35, "temperature": 1.5, "weight": 1.0,
                            "started_from": "net.safetensors", "weights_sha256": "cd" * 32,
                            "licence": "apache-2.0"}]),
    "views": json.dumps({"crops": 10, "enlarge": 1.25}),
    "known": json.dumps({"score": "angle", "slope": 8.5, "threshold": 0.31, "accept": 0.95, "reject": True}),
    "calibration": json.dumps({"photos": 84, "surprise": [1.25, 0.875], "accepted": 0.952,
                               "told_apart": {"angle": {"without_class": 0.771, "in_tiles": 0.912}}}),
    "metrics": json.dumps({"top1": 0.81, "top5": 0.93, "mean_class": 0.79, "head": 0.88, "middle": 0.8, "tail": None}),
    "parity": json.dumps({"photos": 24, "different_ids": 0, "probability": 2e-7, "known": 3e-7}),
}  # fmt: skip


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "model.onnx", metadata=CARD)


def test_the_card_is_what_the_file_says(graph: Path) -> None:
    card = read_card(graph)
    assert card.keys() == CARD.keys()
    assert (card["labels"], card["members"][0]["tau"]) == (list(LABELS), 0.35)
    assert card["config_hash"] == "9876543210", "digits are a name here, and no number"
    assert card["metrics"]["tail"] is None


def test_the_verb_needs_the_file_alone(graph: Path, tmp_path: Path) -> None:
    shown = cleanshelf("model", "show", graph, "--workspace", tmp_path / "none", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == read_card(graph)
    for part in ("8, sha256 abab", "0123456789abcdef", "12345678", "9876543210", "robust", "10 crops, enlarged 1.25 times",
                 "angle, accepted from 0.31 on", "get no classes", "95.2% of 84 validation photos", "0.771", "0.912",
                 "1.250 -> 0.875", "0 ids differ from torch", "net.safetensors, sha256 cdcd", "apache-2.0", "0.350", "1.500",
                 "head", "0.880"):  # fmt: skip
        assert part in cleanshelf("model", "show", graph).stdout, part


def test_reading_a_card_imports_no_torch(graph: Path) -> None:
    script = f"""
import sys
sys.argv = ["cleanshelf", "model", "show", {str(graph)!r}]
from flows.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, sorted({{"torch", "prefect", "dvc", "onnxruntime"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_file_of_an_earlier_release_tells_what_it_knows(tmp_path: Path) -> None:
    old = {key: CARD[key] for key in ("labels", "labels_sha256", "data_version")}
    lines = summary(read_card(write_graph(tmp_path / "old.onnx", metadata=old)))
    assert list(lines) == ["labels", "data_version"]


def test_known_as_it_is_is_told(tmp_path: Path) -> None:
    known = json.dumps({"score": "probability", "slope": None, "threshold": 0.5, "accept": 0.95, "reject": False})
    evidence = json.dumps({"photos": 0, "surprise": None, "accepted": None, "told_apart": {}})
    plain = write_graph(tmp_path / "plain.onnx", metadata=CARD | {"known": known, "calibration": evidence})
    lines = summary(read_card(plain))
    assert lines["known"] == "the top probability, not calibrated; accepted from 0.5 on"
    assert "temperature" not in lines


@pytest.mark.parametrize("content", [b"", b"no graph"], ids=["empty", "text"])
def test_what_is_no_model_is_refused_in_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(BadGraph, match=r"bad\.onnx"):
        read_card(tmp_path / "bad.onnx")
    assert "bad.onnx" in refusal(cleanshelf("model", "show", tmp_path / "bad.onnx"))
    assert "gone.onnx" in refusal(cleanshelf("model", "show", tmp_path / "gone.onnx"))
