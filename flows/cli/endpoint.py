"""Verbs of the endpoint: serve, watch, recognise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, app, find, log_to_stderr, prepare
from flows.cli.show import pairs, show, table

Period = Annotated[float, typer.Option(min=0.5, help="Seconds between two looks at whether it answers.")]
Pem = Annotated[Path | None, typer.Option(help="PEM file, for TLS on gRPC.")]


@app.command()
def serve(
    workspace: At = Path("."),
    http_port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535)] = 8002,
    host: Annotated[str, typer.Option(help="Where gRPC listens; beyond this machine only with TLS.")] = "127.0.0.1",
    tls_cert: Pem = None,
    tls_key: Pem = None,
    tls_ca: Pem = None,
    period: Period = 5.0,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it answers, and leave it running.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the running one.")] = False,
) -> None:
    """Run Triton on the model that the registry names, until Ctrl-C, and bring it back when it dies."""
    from flows.endpoint.server import start_endpoint, stop_endpoint
    from flows.watch import watch, watch_detached
    from serving.server.command import Listening

    found = find(workspace)
    if stop:
        return stop_endpoint(found)
    started = start_endpoint(
        found,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        listening=Listening(host, tls_cert, tls_key, tls_ca),
    )
    print(
        f"Triton answers: gRPC {started.url}, HTTP 127.0.0.1:{started.http_port}, metrics 127.0.0.1:{started.metrics_port}"
        f"\nTokens: {found.state / 'triton.token'} to ask, {found.state / 'triton.control-token'} to load models",
        flush=True,
    )
    if detach:
        return watch_detached(found, period_s=period)
    log_to_stderr()
    watch(found, period_s=period, stop_server=True)


@app.command("watch")
def watch_verb(workspace: At = Path("."), period: Period = 5.0) -> None:
    """Look every few seconds whether the endpoint answers, and bring it back when it does not, until Ctrl-C."""
    from flows.watch import watch

    log_to_stderr()
    watch(find(workspace), period_s=period)


@app.command()
def recognise(
    images: Annotated[list[Path], typer.Argument(help="Photos; with --out one folder of any size.")],
    workspace: At = Path("."),
    model: Annotated[Path | None, typer.Option("--model", help="Answer from this ONNX file, without a server.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write a Parquet table of the folder; goes on after a kill.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name the product on each photo."""
    from flows.recognise import ask_endpoint, ask_file

    if out:
        return _recognise_folder(images, workspace, model, out, as_json=as_json)
    answers = ask_file(model, images) if model else ask_endpoint(find(workspace), images)
    rows = [{"image": a["image"], **_best(a["products"]), "model": a["model_version"] or "file"} for a in answers]
    show(answers, as_json=as_json, say=lambda: table(("image", "product", "probability", "then", "model"), rows))


def _recognise_folder(folders: list[Path], workspace: Path, model: Path | None, out: Path, *, as_json: bool) -> None:
    from flows.endpoint.folder import photos_below
    from flows.errors import InputError
    from flows.recognise import ask_endpoint_of_folder, ask_file_of_folder
    from flows.report.terminal import photo_bar

    if len(folders) != 1:
        raise InputError(f"--out is for one folder, and there are {len(folders)} paths; name one")
    with photo_bar(photos_below(folders[0])) as progress:
        if model:
            done = ask_file_of_folder(model, folders[0], out, progress=progress)
        else:
            done = ask_endpoint_of_folder(find(workspace), folders[0], out, progress=progress)
    content = {**dataclasses.asdict(done), "out": str(out)}
    show(content, as_json=as_json, say=lambda: pairs(content))


def _best(products: list[dict[str, Any]]) -> dict[str, str]:
    if not products:
        return {"product": "none of ours", "probability": "", "then": ""}
    first, *rest = products
    then = ", ".join(f"{p['label']} {p['probability']:.2f}" for p in rest[:2])
    return {"product": first["label"], "probability": f"{first['probability']:.2f}", "then": then}


@app.command()
def drift(
    traffic: Annotated[Path, typer.Argument(help="A folder of recent photos, or the table of `recognise DIR --out`.")],
    workspace: At = Path("."),
    photos: Annotated[int, typer.Option(min=100, help="At most so many test photos are compared with.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Say whether recent photos still look like those that the serving model was judged by."""
    found = prepare(workspace)
    from flows.drift import run_drift

    seen = run_drift(found, traffic, photos=photos)
    show(dataclasses.asdict(seen), as_json=as_json, say=lambda: _say_drift(seen))


def _say_drift(seen: Any) -> None:
    table(("measure", "index", "noise", "distance", "verdict"), [dataclasses.asdict(shift) for shift in seen.shifts])
    table(("product", "before", "now"), seen.shares())
    print(f"unknown: {seen.reference_unknown:.1%} of {seen.reference_photos} test photos, {seen.unknown:.1%} of "
          f"{seen.photos} recent ones\n{seen.verdict}")  # fmt: skip
