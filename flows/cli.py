"""The `cleanshelf` command: one verb per flow, in the order of the pipeline.

Imports live inside the verbs, so that `--help` is instant and `recognise --model` needs neither Prefect nor DVC.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="From noisy product photos to a Triton endpoint that recognises them, and back again.")  # fmt: skip
data = typer.Typer(no_args_is_help=True, help="Data versions: log, show, diff, rollback.")
model = typer.Typer(no_args_is_help=True, help="Model versions: log, show, rollback.")
app.add_typer(data, name="data")
app.add_typer(model, name="model")

At = Annotated[Path, typer.Option("--workspace", "-w", envvar="CLEANSHELF_WORKSPACE", help="Folder of the workspace.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and change nothing.")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. train.epochs=3.")
]
Version = Annotated[str, typer.Argument(help="The first digits of a version's id, or `selected`.")]

INPUT, WORLD, GATE = 2, 3, 4  # exit codes


@app.command()
def init(workspace: At = Path(".")) -> None:
    """Make a workspace: a ledger repository, DVC with a local remote, folders."""
    from flows.workspace import Workspace

    print(f"workspace ready at {Workspace.init(workspace).root}")


@app.command()
def ingest(
    source: Annotated[Path, typer.Argument(help="A folder per class, or a manifest (CSV or Parquet).")],
    workspace: At = Path("."),
    val_share: Annotated[float, typer.Option(min=0, max=0.9, help="Held out for choosing, if none is marked.")] = 0.1,
    test_share: Annotated[float, typer.Option(min=0, max=0.9, help="Held out for measuring, if none is marked.")] = 0.2,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make a data version from a supplier's delivery."""
    found = _prepare(workspace)
    if dry_run:
        return _preview(found, source, val_share=val_share, test_share=test_share, as_json=as_json)
    from flows.ingest import ingest as flow

    done = flow(found, source, val_share=val_share, test_share=test_share)
    _show(
        dataclasses.asdict(done),
        as_json=as_json,
        say=lambda: _say_intake(done.report, f"data version {done.data_version[:12]}"),
    )


@data.command("log")
def data_log(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """The history of the data, newest first."""
    from flows.data_version import DataVersions

    entries = [_entry(entry) for entry in DataVersions(_find(workspace)).log()]
    columns = ("entry", "id", "parent", "step", "selected", "kept", "dropped", "classes", "message")
    rows = [{**e, **e["counts"], "id": e["id"][:12], "parent": (e["parent"] or "-")[:12]} for e in entries]
    _show(entries, as_json=as_json, say=lambda: _table(columns, rows))


@data.command("show")
def data_show(version: Version = "selected", workspace: At = Path("."), as_json: AsJson = False) -> None:
    """One data version: where it comes from, what it holds, whether every hash holds."""
    from flows.data_version import DataVersions

    versions = DataVersions(_find(workspace))
    wanted = versions.resolve(version)
    entry = _entry(next(entry for entry in versions.log() if entry.id == wanted)) | {
        "problems": versions.verify(wanted)
    }
    _show(entry, as_json=as_json, say=lambda: _pairs(entry))


@data.command("diff")
def data_diff(a: Version, b: Version = "selected", workspace: At = Path("."), as_json: AsJson = False) -> None:
    """What changed from version A to version B: added, dropped, restored, relabelled, by class."""
    from flows.data_version import DataVersions

    diff = DataVersions(_find(workspace)).diff(a, b)
    changes = ("added", "dropped", "restored", "relabelled")
    rows = [{"class": label, **counts} for label, counts in diff.per_class.items()]
    rows.append({"class": "all", **{change: getattr(diff, change) for change in changes}})
    _show(dataclasses.asdict(diff), as_json=as_json, say=lambda: _table(("class", *changes), rows))


@data.command("rollback")
def data_rollback(
    version: Version, workspace: At = Path("."), as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Select an earlier data version again, as a new entry. The endpoint is not touched."""
    from flows.data_version import DataVersions
    from flows.rollback import rollback_data

    found = _find(workspace)
    if dry_run:
        versions = DataVersions(found)
        versions.check_clean()
        plan = {"would_select": versions.resolve(version), "in_place_of": versions.selected()}
        return _show(plan, as_json=as_json, say=lambda: _pairs(plan))
    entry = rollback_data(found, version)
    _show(
        _entry(entry),
        as_json=as_json,
        say=lambda: print(f"data version {entry.id[:12]} is selected (entry {entry.number})"),
    )


@app.command()
def retrain(
    recipe: Annotated[str, typer.Argument(help="A recipe's name, or the path of a .toml file.")] = "robust",
    workspace: At = Path("."),
    overrides: Set = [],  # noqa: B006  # Typer reads the default, nothing changes it
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train, clean, retrain, re-balance, export one graph, judge it, publish it."""
    found = _prepare(workspace)
    from models.config import load_recipe, to_dict

    resolved = load_recipe(recipe, overrides=overrides)
    from flows.retrain import preview
    from flows.retrain import retrain as flow

    if dry_run:
        plan = {"data_version": preview(found, resolved), "recipe": to_dict(resolved)}
        return _show(plan, as_json=as_json, say=lambda: _pairs(plan))
    report = flow(found, resolved)
    _show(dataclasses.asdict(report), as_json=as_json, say=lambda: _say_report(report))


@model.command("log")
def model_log(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """The published models, newest first."""
    from flows.rollback import model_history

    entries = model_history(_find(workspace))
    measured = ("top1", "mean_class", "head", "middle", "tail")
    columns = ("version", "serving", *measured, "data_version", "data_withdrawn", "recipe", "run")
    rows = [{**e, **e["metrics"], "data_version": e["data_version"][:12]} for e in entries]
    _show(entries, as_json=as_json, say=lambda: _table(columns, rows))


@model.command("show")
def model_show(
    version: Annotated[int | None, typer.Argument()] = None, workspace: At = Path("."), as_json: AsJson = False
) -> None:
    """One model version: its record, by default of the one that serves."""
    from flows.rollback import model_record

    record = model_record(_find(workspace), version)
    _show(record, as_json=as_json, say=lambda: _pairs(record))


@model.command("rollback")
def model_rollback(
    version: Annotated[int | None, typer.Argument(help="By default the one that served before.")] = None,
    workspace: At = Path("."),
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Let an earlier model answer again, without a request lost. The data are not touched."""
    from flows.rollback import rollback_model, rollback_target

    found = _find(workspace)
    if dry_run:
        plan = {"would_serve": rollback_target(found, version)}
        return _show(plan, as_json=as_json, say=lambda: _pairs(plan))
    done = rollback_model(found, version)
    _show({"serving": done}, as_json=as_json, say=lambda: print(f"model version {done} answers"))


@app.command()
def serve(
    workspace: At = Path("."),
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it answers, and leave it running.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running one.")] = False,
) -> None:
    """Run Triton on the workspace's models, until Ctrl-C."""
    from flows.endpoint import local_server

    server = local_server(_find(workspace), http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)
    if stop:
        return server.stop()
    started = server.start()
    print(
        f"Triton answers: gRPC {started.url}, HTTP 127.0.0.1:{started.http_port}, metrics 127.0.0.1:{started.metrics_port}",
        flush=True,
    )
    if not detach:
        server.wait()


@app.command()
def recognise(
    images: list[Path],
    workspace: At = Path("."),
    model: Annotated[Path | None, typer.Option("--model", help="Answer from this ONNX file, without a server.")] = None,
    as_json: AsJson = False,
) -> None:
    """Name the product on each photo."""
    from flows.recognise import ask_endpoint, ask_file

    answers = ask_file(model, images) if model else ask_endpoint(_find(workspace), images)
    rows = [{"image": a["image"], **_best(a["products"]), "model": a["model_version"] or "file"} for a in answers]
    _show(answers, as_json=as_json, say=lambda: _table(("image", "product", "probability", "then", "model"), rows))


@app.command()
def losses(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables of docs/losses.md.")] = False,
    as_json: AsJson = False,
) -> None:
    """The losses that a recipe may name: formula, parameters, needs, source."""
    from models.losses.catalogue import catalogue, markdown, outline

    if as_markdown:
        return print(markdown())
    columns = ("loss", "formula", "parameters", "needs", "source")
    _show([dataclasses.asdict(e) for e in catalogue()], as_json=as_json, say=lambda: _table(columns, outline()))


@app.command()
def doctor(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """Check that everything is here that CleanShelf needs."""
    from flows.doctor import examine
    from flows.errors import WorkspaceMissing

    try:
        found = _find(workspace)
    except WorkspaceMissing:
        found = None
    findings = [dataclasses.asdict(finding) for finding in examine(found)]
    _show(findings, as_json=as_json, say=lambda: _table(("part", "ok", "detail"), findings))
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(WORLD)


@app.command()
def demo(workspace: At = Path("build/demo")) -> None:
    """The whole story on drawn sample products, in a workspace of its own."""
    from flows.sample.place import fresh_workspace

    found = fresh_workspace(workspace.absolute())
    _logging(found.state)
    from flows.demo import tell

    tell(found)


def main() -> None:
    """Runs a verb; what was foreseen becomes one line and an exit code: 2 input, 3 world, 4 gate."""
    from flows.errors import FlowError, GateRefused
    from models.errors import ModelError
    from pixels import BadPhoto
    from serving.errors import ServingError

    for stream in (sys.stdout, sys.stderr):  # labels and file names may hold what an old locale cannot print
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]  # text streams have it
    try:
        app()
    except GateRefused as error:
        _fail(error, GATE)
    except (FlowError, ModelError, ServingError, BadPhoto) as error:
        _fail(error, INPUT if isinstance(error, ValueError) else WORLD)
    except OSError as error:
        if error.errno is None:
            raise
        _fail(error, INPUT)


def _fail(error: Exception, code: int) -> None:
    """One line; only what broke by itself may need more, such as the last words of a process."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    print(f"cleanshelf: {error if code == WORLD else '; '.join(lines)}", file=sys.stderr)
    sys.exit(code)


def _find(workspace: Path) -> Any:
    from flows.workspace import Workspace

    return Workspace.find(workspace)


def _prepare(workspace: Path) -> Any:
    """The workspace, with logging and Prefect set up for it; before Prefect is imported."""
    found = _find(workspace)
    _logging(found.state)
    return found


def _logging(state: Path) -> None:
    from flows.progress import show_progress
    from flows.settings import prepare_prefect

    prepare_prefect(state)
    show_progress()


def _preview(workspace: Any, source: Path, *, val_share: float, test_share: float, as_json: bool) -> None:
    from flows.ingest import preview

    report = preview(workspace, source, val_share=val_share, test_share=test_share)
    _show(dataclasses.asdict(report), as_json=as_json, say=lambda: _say_intake(report, "nothing was changed"))


def _entry(entry: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(entry)
    return {"entry": fields.pop("number"), **fields}


def _best(products: list[dict[str, Any]]) -> dict[str, str]:
    first, *rest = products
    then = ", ".join(f"{p['label']} {p['probability']:.2f}" for p in rest[:2])
    return {"product": first["label"], "probability": f"{first['probability']:.2f}", "then": then}


def _say_intake(report: Any, outcome: str) -> None:
    from flows.progress import print_intake

    print_intake(report, outcome)


def _say_report(report: Any) -> None:
    from flows.progress import print_report

    print_report(report)


def _show(content: Any, *, as_json: bool, say: Callable[[], None]) -> None:
    if as_json:
        from flows.progress import to_json

        print(to_json(content))
    else:
        say()


def _table(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    from flows.progress import print_table

    print_table(columns, rows)


def _pairs(content: dict[str, Any]) -> None:
    for key, value in content.items():
        print(f"{key:16} {value if not isinstance(value, dict | list) else json.dumps(value, ensure_ascii=False)}")


if __name__ == "__main__":
    main()
