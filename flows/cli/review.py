"""Commands of the review: its page, export to other tools, and import of decisions."""

from __future__ import annotations

import dataclasses
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import AsJson, At, DryRun, find, log_to_stderr, review_verbs
from flows.cli.show import show

FORMATS = "csv|labelstudio|fiftyone|lightly"


@review_verbs.callback(invoke_without_command=True)
def review(
    context: typer.Context,
    workspace: At = Path("."),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the pages; 0 takes a free one.")] = 8080,
    show_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
) -> None:
    """Review label issues in a browser, the worst first; or export them, and import decisions."""
    if context.invoked_subcommand:
        return
    from flows.web import running_pages, serve_pages
    from serving.server.command import Listening

    found = find(workspace)

    def ready(address: str) -> None:
        print(f"review at {address}review", flush=True)
        if show_browser:
            webbrowser.open(f"{address}review")

    if address := running_pages(found):
        return ready(address)
    log_to_stderr()
    serve_pages(found, Listening(), port=port, ready=ready)


@review_verbs.command("export")
def export_issues(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[str, typer.Option(metavar=FORMATS, help="The tool that the folder is for.")] = "csv",
    workspace: At = Path("."),
    version: Annotated[str, typer.Option(help="Data version; its first digits, or `selected`.")] = "selected",
    given: Annotated[str, typer.Option(metavar="LABEL", help="Only photos with this given label.")] = "",
    suggested: Annotated[str, typer.Option(metavar="LABEL", help="Only photos with this suggestion.")] = "",
    limit: Annotated[int, typer.Option(min=0, help="Number of photos at most, worst first; 0: all.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Write label issues with their photos for another tool."""
    from flows.exchange.export import Wanted, export

    wanted = Wanted(version, given, suggested, limit)
    log_to_stderr()
    done = export(find(workspace), out, to, wanted=wanted)

    def say() -> None:
        print(f"{done.photos} photos in {done.folder}, {done.with_suggestion} with a suggestion")
        print(f"next: {done.after}")

    show(dataclasses.asdict(done), as_json=as_json, say=say)


@review_verbs.command("import")
def import_decisions(
    file: Annotated[Path, typer.Argument(help="What the tool exported, or the filled-in suspects.csv.")],
    source: Annotated[str, typer.Option("--from", metavar=FORMATS, help="The tool; found out if not given.")] = "",
    who: Annotated[str, typer.Option(metavar="NAME", help="Who decided, where the file does not say.")] = "",
    version: Annotated[str, typer.Option(help="Data version that was looked at.")] = "selected",
    workspace: At = Path("."),
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Take in the decisions that people made in another tool."""
    from flows.exchange.incoming import take_in
    from flows.pages.access import user

    done = take_in(find(workspace), file, format=source, who=who or user(), version=version, dry_run=dry_run)

    def say() -> None:
        numbers = (
            f"{done.kept} labels kept, {done.relabelled} changed, {done.none} not a product, {done.skipped} skipped"
        )
        print(f"{numbers}; {done.unchanged} were decided like this before{' (nothing was written)' if dry_run else ''}")

    show(dataclasses.asdict(done), as_json=as_json, say=say)


@review_verbs.command("save")
def save_reviewed(workspace: At = Path("."), as_json: AsJson = False) -> None:
    """Make a data version with the decisions of the review."""
    from flows.feedback import save_decisions
    from flows.review.decisions import Decisions

    found = find(workspace)
    done, left_out = save_decisions(found, Decisions(found.state))

    def say() -> None:
        still_open = f"; {len(left_out)} could not be labelled and stay open" if left_out else ""
        print(f"data version {(done.data_version or '')[:12]}: {done.in_words()}{still_open}")

    show(dataclasses.asdict(done) | {"left_out": left_out}, as_json=as_json, say=say)
