"""The command line without a workspace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import app, show
from flows.errors import ChildFailed, GateRefused, InputError
from flows.gate.verdict import Verdict
from flows.report.run_report import Report, to_json
from flows.report.terminal import print_table
from flows.run.launch import run_child
from tests.command_line import ROOT, cleanshelf, refusal

HEAVY = {"torch", "timm", "prefect", "dvc", "onnx", "onnxruntime", "pyarrow", "tritonclient"}


def verbs(group: typer.Typer, *path: str) -> list[list[str]]:
    found = [[*path, info.name or info.callback.__name__] for info in group.registered_commands]  # type: ignore[union-attr]  # a command has one
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found += [[*path, str(inner.name)], *verbs(inner.typer_instance, *path, str(inner.name))]
    return found


def test_every_verb_has_help() -> None:
    found = verbs(app)
    assert ["init"] in found
    assert ["data", "rollback"] in found
    assert len(found) == 39
    for verb in found:
        shown = CliRunner().invoke(app, [*verb, "--help"])
        assert shown.exit_code == 0, verb
        assert " ".join(verb) in shown.output


def commands() -> dict[str, Any]:
    """Commands of click by their verbs."""
    found: dict[str, Any] = {}
    for verb in verbs(app):
        command: Any = typer.main.get_command(app)
        for name in verb:
            command = command.commands[name]
        if not hasattr(command, "commands"):
            found[" ".join(verb)] = command
    return found


def test_every_verb_prints_json_if_asked() -> None:
    silent = [verb for verb, command in commands().items() if not any("--json" in each.opts for each in command.params)]
    assert silent == ["web", "mcp"], "one serves until it is stopped, the other speaks a protocol"


def test_help_shows_brackets_as_they_are() -> None:
    shown = 0
    for verb, command in commands().items():
        text = " ".join(CliRunner().invoke(app, [*verb.split(), "--help"]).output.split())
        for part in [command.help, *(getattr(each, "help", None) for each in command.params)]:
            if part and "[" in part:
                assert " ".join(part.split()) in text, verb
                shown += 1
    assert shown >= 2, "[gate] of enrol and withdraw"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["ingst"], "UsageError"),
        (["data", "log", "--nothing"], "NoSuchOption"),
        (["serve", "--http-port", "0"], "BadParameter"),
        (["ingest", "x", "--test-share", "2"], "BadParameter"),
        (["data", "log", "-w", "nowhere"], "WorkspaceMissing"),
        (["retrain", "robsut", "-w", "nowhere"], "WorkspaceMissing"),
        (["model", "show", "no.onnx"], "BadGraph"),
    ],
)
def test_an_error_is_a_document_too(arguments: list[str], kind: str, tmp_path: Path) -> None:
    done = cleanshelf(*arguments, "--json", cwd=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert (error["kind"], error["exit"], done.returncode) == (kind, 2, 2)
    assert error["message"] in done.stderr
    assert all(option in error["message"] for option in arguments if kind == "BadParameter" and option[:2] == "--")
    assert cleanshelf(*arguments, cwd=tmp_path).stdout == "", "only if asked"


def test_a_refusal_carries_its_reasons_and_the_report_of_its_run(capsys: pytest.CaptureFixture[str],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(show, "_documents", [])
    report = Report("a run", "d1", "d2", [], [], Verdict(False, ("tail accuracy fell",), "abc"), [])
    assert show.show_error(GateRefused(["tail accuracy fell"], report), 4, as_json=True) == 4
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert {key: error[key] for key in ("kind", "message", "exit", "reasons", "run", "report_file")} == {
        "kind": "GateRefused", "message": "refused: tail accuracy fell", "exit": 4, "reasons": ["tail accuracy fell"],
        "run": "a run", "report_file": "runs/a run/report.md",
    }  # fmt: skip
    assert error["report"]["verdict"]["passed"] is False
    assert printed.err == "cleanshelf: refused: tail accuracy fell\n"
    show.show_error(InputError("later"), 2, as_json=True)
    assert capsys.readouterr().out == "", "one document at most"


def test_errors_of_the_system_name_the_file_first(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_error(FileNotFoundError(2, "No such file or directory", b"M\xfcsli.csv"), 2, as_json=False)
    assert capsys.readouterr().err == "cleanshelf: M\\xfcsli.csv: No such file or directory\n"


def test_output_that_is_not_read_is_no_error() -> None:
    command = [sys.executable, "-m", "flows.cli", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


def test_help_imports_nothing_heavy() -> None:
    script = f"""
import sys
sys.argv = ["cleanshelf", "--help"]
from flows.cli import main
try:
    main()
except SystemExit as end:
    print(end.code, sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "recognise" in done.stdout


@pytest.mark.parametrize("label", ["Cola [0.5 l]", "[/b]", ":smile:", "Müsli", "[red]hot[/red]"])
def test_labels_are_not_markup(label: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("class", "added"), [{"class": label, "added": 3}])
    assert capsys.readouterr().out.splitlines()[1].split("  ")[0] == label


def test_json_has_no_nan() -> None:
    content = {"tail": float("nan"), "steps": [{"top1": 0.5}, (float("nan"),)], "label": "Müsli"}
    assert json.loads(to_json(content), parse_constant=pytest.fail) == {
        "tail": None, "steps": [{"top1": 0.5}, [None]], "label": "Müsli"
    }  # fmt: skip
    assert "Müsli" in to_json(content)


def test_no_workspace(tmp_path: Path) -> None:
    there = tmp_path / "it's here"
    message = refusal(cleanshelf("data", "log", "--workspace", there))
    assert message.startswith(f"no workspace at {there} or above it; make one with `cleanshelf init -w ")
    assert not there.exists()


@pytest.mark.parametrize("verb", ["nothing", "ingest", "serve --http-port 0", "ingest x --val-share 2"])
def test_a_misspelt_command_prints_its_usage_and_no_traceback(verb: str) -> None:
    done = cleanshelf(*verb.split())
    assert done.returncode == 2
    assert "Usage" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_name_that_is_not_unicode_can_be_printed(tmp_path: Path) -> None:
    for locale in ({"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}):
        done = cleanshelf("recognise", b"M\xc3\xbcsli \xff.jpg".decode(errors="surrogateescape"),
                          "--model", tmp_path / "Müsli.onnx", env=locale)  # fmt: skip
        assert "Müsli.onnx is not an ONNX file" in refusal(done)


def test_a_child_that_refuses_its_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "x", "members": []}))
    lines: list[str] = []
    with pytest.raises(InputError) as caught:
        run_child("models.training.check", ["--data", tmp_path, "--recipe", tmp_path / "recipe.json"], say=lines.append)
    assert str(caught.value) == "members: a recipe needs at least one; add a [[members]] table"
    assert lines == [str(caught.value)], "no traceback on the way"


def test_a_failure_of_a_child_ends_with_its_last_lines() -> None:
    with pytest.raises(ChildFailed, match=r"^models\.none ended with code 1(.|\n)*No module named models\.none"):
        run_child("models.none", [], say=lambda line: None)
