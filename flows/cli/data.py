"""Commands that make and select data versions: init, ingest, feedback, and `data` log, show, diff, rollback."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, DryRun, Version, app, data_verbs, find, prepare, watched
from flows.cli.show import pairs, show, table

Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Also write the rows to a file: .csv, .parquet or .jsonl.")
]


@app.command()
def init(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """Make a workspace: a git repository for the history, DVC with a local remote, and folders."""
    from flows.workspace import Workspace

    root = str(Workspace.init(workspace).root)
    show({"workspace": root}, as_json=as_json, say=lambda: print(f"workspace ready at {root}"))


@app.command("ingest")
def ingest_delivery(
    source: Annotated[
        Path, typer.Argument(help="A folder with one subfolder per class, or a manifest (CSV, Parquet, JSON lines).")
    ],
    workspace: At = Path("."),
    val_share: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Share of the new train photos for validation, if the delivery marks none."),
    ] = 0.1,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the first delivery for testing, if it marks none.")
    ] = 0.2,
    near_duplicates: Annotated[
        str,
        typer.Option(
            metavar="off|LIMIT",
            help="Leave out copies of photos across the test split that differ by at most this, above 0 and up to 1.",
        ),
    ] = "0.7",
    unlabelled: Annotated[
        bool,
        typer.Option(
            "--unlabelled", help="Take all photos below the folder as photos without a label, for distillation."
        ),
    ] = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make a data version from a supplier's delivery."""
    from flows.delivery.near import parse_limit

    rules: dict[str, Any] = {
        "val_share": val_share,
        "test_share": test_share,
        "near_duplicates": parse_limit(near_duplicates),
        "unlabelled": unlabelled,
    }
    found = prepare(workspace)
    if dry_run:
        return _preview(found, source, rules, as_json=as_json)
    from flows.ingest import ingest

    done = ingest(found, source, **rules)
    show(
        dataclasses.asdict(done),
        as_json=as_json,
        say=lambda: _print_report(done.report, f"data version {done.data_version[:12]}"),
    )


@app.command()
def feedback(
    file: Annotated[
        Path,
        typer.Argument(
            help="A table (CSV, Parquet, JSON lines) with columns id or path, label, and optionally reason."
        ),
    ],
    workspace: At = Path("."),
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Make a data version from labels that people gave. A blank label means: none of the products."""
    from flows.feedback import feedback as apply
    from flows.feedback import preview

    found = watched(workspace)
    done = dataclasses.asdict(preview(found, file) if dry_run else apply(found, file))
    show(done, as_json=as_json, say=lambda: pairs(done))
    if done["near"] and not as_json:
        typer.echo(f"{done['near']} are near-duplicates and stay out of training; see `cleanshelf data show --near`")


@data_verbs.command("log")
def data_log(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """Show the history of the data, newest first. photos = kept + dropped + conflicts + near."""
    from flows.data.versions import DataVersions

    entries = [_entry(entry) for entry in DataVersions(find(workspace)).listed()]
    parts = ("photos", "kept", "dropped", "conflicts", "near")
    columns = ("entry", "id", "parent", "step", "selected", *parts, "classes", "message")
    rows = [{**e, **_counts(e["counts"]), "id": e["id"][:12], "parent": (e["parent"] or "-")[:12],
             "message": e["message"] + (f" (made by run {e['run']}, not selected)" if e["run"] else ""),
             "entry": e["entry"] or "-"} for e in entries]  # fmt: skip
    show(entries, as_json=as_json, say=lambda: table(columns, rows))


@data_verbs.command("show")
def data_show(
    version: Version = "selected",
    workspace: At = Path("."),
    near: Annotated[bool, typer.Option("--near", help="List near-duplicates across the test split.")] = False,
    conflicts: Annotated[bool, typer.Option("--conflicts", help="List photos that came with several labels.")] = False,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="List refused rows with the reasons.")] = False,
    excluded: Annotated[bool, typer.Option("--excluded", help="List all photos left out and rows refused.")] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Show one data version: its origin, photos per class and split, what was left out and why, and broken links; or a list."""
    from flows.data import contents
    from flows.data.versions import DataVersions
    from flows.errors import InputError
    from flows.report.contents import print_classes, print_listing, print_reasons
    from flows.workspace.tables import check_new, write_new
    from models.data.manifest import class_counts

    lists = [
        (near, "near-duplicates", contents.near_duplicates),
        (conflicts, "claims in conflict", contents.conflicts),
        (quarantined, "refused rows", contents.quarantined),
        (excluded, "photos left out and rows refused", contents.excluded),
    ]
    asked = [(photos, read) for is_asked, photos, read in lists if is_asked]
    if len(asked) > 1:
        raise InputError("--near, --conflicts, --quarantined and --excluded are lists of their own; ask for one")
    if out:
        check_new(out)
    versions = DataVersions(watched(workspace))
    files = contents.files_of(versions, version)
    rows = asked[0][1](files) if asked else class_counts(contents.read(files, "labels"))
    if out:
        write_new(rows, out)
    if asked:
        content = rows.to_pylist() if as_json else []
        return show(content, as_json=as_json, say=lambda: print_listing(rows, photos=asked[0][0]))
    wanted = versions.resolve(version)
    entry = _entry(next(entry for entry in versions.known_entries() if entry.id == wanted))
    entry |= {"counts": contents.counts(files), "problems": [str(each) for each in versions.verify(wanted)]}

    reasons = contents.reasons(files)

    def say() -> None:
        pairs(entry)
        print_classes(rows)
        print_reasons(reasons)

    lists_of_rows = {"per_class": rows.to_pylist(), "excluded": reasons.to_pylist()} if as_json else {}
    show(entry | lists_of_rows, as_json=as_json, say=say)


@data_verbs.command("diff")
def data_diff(
    a: Version, b: Version = "selected", workspace: At = Path("."), out: Out = None, as_json: AsJson = False
) -> None:
    """Show what changed from version A to version B: which photos, from which label and outcome to which."""
    from flows.data.diff import CHANGES, as_table
    from flows.data.versions import DataVersions
    from flows.report.contents import print_diff
    from flows.workspace.tables import check_new, write_new

    if out:
        check_new(out)
    diff = DataVersions(find(workspace)).diff(a, b)
    if out:
        write_new(as_table(diff), out)
    show(dataclasses.asdict(diff) if as_json else {}, as_json=as_json, say=lambda: print_diff(diff, CHANGES))


@data_verbs.command("rollback")
def data_rollback(
    version: Version, workspace: At = Path("."), as_json: AsJson = False, dry_run: DryRun = False
) -> None:
    """Select an earlier data version again, as a new entry of the history. The endpoint is not touched."""
    from flows.data.versions import DataVersions
    from flows.registry.history import advice, model_history, newest_standing
    from flows.rollback import rollback_data

    found = watched(workspace)
    if dry_run:
        versions = DataVersions(found)
        versions.check_clean()
        plan = {"would_select": versions.resolve(version), "in_place_of": versions.selected()}
        return show(plan, as_json=as_json, say=lambda: pairs(plan))
    entry = rollback_data(found, version)
    models = model_history(found)
    stale = [model["version"] for model in models if model["data_withdrawn"]]
    lines = [f"data version {entry.id[:12]} is selected (entry {entry.number})", advice(models)]
    show(
        _entry(entry) | {"stale_models": stale, "newest_standing_model": newest_standing(models)},
        as_json=as_json,
        say=lambda: print("\n".join(filter(None, lines))),
    )


def _preview(workspace: Any, source: Path, rules: dict[str, Any], *, as_json: bool) -> None:
    from flows.ingest import preview

    report = preview(workspace, source, **rules)
    show(dataclasses.asdict(report), as_json=as_json, say=lambda: _print_report(report, "nothing was changed"))


def _counts(counts: dict[str, int]) -> dict[str, int]:
    """The counts of an entry; earlier releases counted parts that do not add up, which are left out."""
    return (
        counts if "near" in counts else {name: counts[name] for name in counts.keys() & {"photos", "kept", "classes"}}
    )


def _entry(entry: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(entry)
    return {"entry": fields.pop("number"), **fields}


def _print_report(report: Any, outcome: str) -> None:
    from flows.report.terminal import print_intake

    print_intake(report, outcome)
