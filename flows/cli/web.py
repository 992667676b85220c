"""The command of the pages: web."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.app import At, app, find, log_to_stderr

Pem = Annotated[Path | None, typer.Option(help="PEM file, for HTTPS.")]


@app.command()
def web(
    workspace: At = Path("."),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the pages; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback only with TLS.")] = "127.0.0.1",
    tls_cert: Pem = None,
    tls_key: Pem = None,
    show_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
    *,
    deliveries: Annotated[
        list[Path],
        typer.Option(
            exists=True,
            file_okay=False,
            resolve_path=True,
            default_factory=list,
            show_default=False,
            help="Folder in which deliveries may lie that the page takes in; may be given several times. Without it, any "
            "folder of this machine, or none where tokens are asked for.",
        ),
    ],
    invite: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Print a token for a person, and end. Needed off the loopback, and with TLS."
        ),
    ] = "",
    role: Annotated[
        str, typer.Option(metavar="look|decide|operate", help="What the invited person may do.")
    ] = "decide",
    keep_photos: Annotated[
        bool,
        typer.Option(
            "--keep-photos", help="Keep the last 50 photos of the page Recognise; the page Endpoint shows them."
        ),
    ] = False,
    remove: Annotated[str, typer.Option(metavar="NAME", help="Make the token of a person worthless, and end.")] = "",
) -> None:
    """Review labels, try photos, and see versions and runs in a browser, until Ctrl-C."""
    from flows.web import people_of, serve_pages
    from serving.server.command import Listening

    found = find(workspace)
    listening = Listening("[::1]" if host == "::1" else host, tls_cert, tls_key)
    people = people_of(found, listening)
    if remove:
        return people.remove(remove)
    if invite:
        token = people.invite(invite, role)
        return print(f"token of {invite} (shown once): {token}\nlink: https://HOST:{port}/enter#{token}")

    def ready(address: str) -> None:
        print(f"pages at {address}", flush=True)
        if show_browser:
            webbrowser.open(address)

    log_to_stderr()
    serve_pages(found, listening, port=port, ready=ready, deliveries=deliveries, keeps_photos=keep_photos)
