"""Commands of the endpoint: serve, watch, recognise, drift."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import INPUT, AsJson, At, app, find, log_to_stderr, prepare
from flows.cli.show import pairs, show, table

Period = Annotated[float, typer.Option(min=0.5, help="Seconds between two probes of the endpoint.")]
ANSWER = ("image", "product", "probability", "known", "then", "model")
Pem = Annotated[Path | None, typer.Option(help="PEM file, for TLS on gRPC.")]


@app.command()
def serve(
    workspace: At = Path("."),
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    host: Annotated[
        str, typer.Option(help="Address that gRPC listens on; other than loopback only with TLS.")
    ] = "127.0.0.1",
    tls_cert: Pem = None,
    tls_key: Pem = None,
    tls_ca: Pem = None,
    period: Period = 5.0,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once the server answers, and leave it running.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running server.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve the current model with Triton until Ctrl-C, and restart it if it dies."""
    from flows.endpoint.server import start_endpoint, stop_endpoint
    from flows.watch import watch, watch_detached
    from serving.server.command import Listening
    from serving.server.server import running

    found = find(workspace)
    if stop:
        was_running = running(found.state) is not None
        stop_endpoint(found)
        return show({"stopped": was_running}, as_json=as_json, say=lambda: None)
    started = start_endpoint(
        found,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        listening=Listening(host, tls_cert, tls_key, tls_ca),
    )
    if detach:
        watch_detached(found, period_s=period)
    addresses = {
        "grpc": started.url,
        "http": f"127.0.0.1:{started.http_port}",
        "metrics": f"127.0.0.1:{started.metrics_port}",
        "token": str(found.state / "triton.token"),
        "control_token": str(found.state / "triton.control-token"),
    }
    show(addresses, as_json=as_json, say=lambda: _print_addresses(addresses))
    if detach:
        return
    log_to_stderr()
    watch(found, period_s=period, stop_server=True)


def _print_addresses(at: dict[str, str]) -> None:
    print(
        f"Triton answers: gRPC {at['grpc']}, HTTP {at['http']}, metrics {at['metrics']}\n"
        f"Tokens: {at['token']} for inference, {at['control_token']} for loading models",
        flush=True,
    )


@app.command("watch")
def watch_verb(workspace: At = Path("."), period: Period = 5.0, as_json: AsJson = False) -> None:
    """Probe the endpoint every few seconds until Ctrl-C, and repair or restart it if it does not answer."""
    from flows.watch import watch

    found = find(workspace)
    log_to_stderr()
    show({"watches": str(found.root)}, as_json=as_json, say=lambda: None)
    watch(found, period_s=period)


@app.command()
def recognise(
    images: Annotated[list[Path], typer.Argument(help="Photos; with --out, one folder of any size.")],
    workspace: At = Path("."),
    model: Annotated[Path | None, typer.Option("--model", help="Use this ONNX file instead of the server.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the answers as a table: .csv, .parquet or .jsonl; a killed run resumes."),
    ] = None,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Print a table, also where the terminal can show small pictures.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Name the product on each photo."""
    from flows.recognise import ask_endpoint, ask_file
    from flows.report.pictures import has_space_for, print_pictured

    if out:
        return _recognise_folder(images, workspace, model, out, as_json=as_json)
    answers = ask_file(model, images) if model else ask_endpoint(find(workspace), images)

    def say() -> None:
        if not no_pictures and has_space_for(len(images)):
            return print_pictured(images, answers)
        table(ANSWER, [_row(answer) for answer in answers])

    show(answers, as_json=as_json, say=say)
    if bad := [answer for answer in answers if answer["error"]]:
        count = f"{len(bad)} of {len(answers)} photos have no answer, the first is " if len(bad) > 1 else ""
        pronoun = "them" if len(bad) > 1 else "it"
        print(
            f"cleanshelf: {count}{bad[0]['image']}: {bad[0]['error']}; leave {pronoun} out or replace {pronoun}",
            file=sys.stderr,
        )
        raise typer.Exit(INPUT)


def _recognise_folder(folders: list[Path], workspace: Path, model: Path | None, out: Path, *, as_json: bool) -> None:
    from flows.endpoint.folder import check, photos_below
    from flows.errors import InputError
    from flows.recognise import ask_endpoint_of_folder, ask_file_of_folder
    from flows.report.terminal import photo_bar

    if len(folders) != 1:
        raise InputError(f"--out takes one folder, and {len(folders)} paths were given; name one")
    check(folders[0], out)
    with photo_bar(photos_below(folders[0])) as progress:
        if model:
            done = ask_file_of_folder(model, folders[0], out, progress=progress)
        else:
            done = ask_endpoint_of_folder(find(workspace), folders[0], out, progress=progress)
    content = {**dataclasses.asdict(done), "out": str(out)}
    show(content, as_json=as_json, say=lambda: pairs(content))


def _row(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["error"]:
        return {"image": answer["image"], "product": f"no answer: {answer['error']}"}
    known = "known" if answer["known"] else "unknown"
    return {"image": answer["image"], "known": known, **_best(answer), "model": answer["model_version"] or "file"}


def _best(answer: dict[str, Any]) -> dict[str, str]:
    if not answer["products"]:
        return {"product": "none of ours"}
    first, *rest = answer["products"]
    then = ", ".join(f"{p['label']} {p['probability']:.2f}" for p in rest[:2])
    return {"product": first["label"], "probability": f"{first['probability']:.2f}", "then": then}


@app.command()
def drift(
    traffic: Annotated[Path, typer.Argument(help="A folder of recent photos, or the table of `recognise DIR --out`.")],
    workspace: At = Path("."),
    photos: Annotated[int, typer.Option(min=100, help="Number of test photos to compare with, at most.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Tell whether recent photos still look like the test photos of the current model."""
    found = prepare(workspace)
    from flows.drift import run_drift

    result = run_drift(found, traffic, photos=photos)
    show(dataclasses.asdict(result), as_json=as_json, say=lambda: _print_drift(result))


def _print_drift(result: Any) -> None:
    table(("measure", "index", "noise", "distance", "verdict"), [dataclasses.asdict(shift) for shift in result.shifts])
    table(("product", "before", "now"), result.shares())
    print(
        f"unknown: {result.reference_unknown:.1%} of {result.reference_photos} test photos, {result.unknown:.1%} of "
        f"{result.photos} recent ones\n{result.verdict}"
    )
