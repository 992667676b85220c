"""Verbs of the endpoint: serve, recognise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.app import AsJson, At, app, find
from flows.cli.show import show, table


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

    server = local_server(find(workspace), http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port)
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

    answers = ask_file(model, images) if model else ask_endpoint(find(workspace), images)
    rows = [{"image": a["image"], **_best(a["products"]), "model": a["model_version"] or "file"} for a in answers]
    show(answers, as_json=as_json, say=lambda: table(("image", "product", "probability", "then", "model"), rows))


def _best(products: list[dict[str, Any]]) -> dict[str, str]:
    first, *rest = products
    then = ", ".join(f"{p['label']} {p['probability']:.2f}" for p in rest[:2])
    return {"product": first["label"], "probability": f"{first['probability']:.2f}", "then": then}
