"""`quietstar view`: the page over the record."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from quietstar.cli import options
from quietstar.errors import QuietStarError


def view(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Open this run; the list of runs when left out.")
    ] = None,
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 takes any free one.")] = 8719,
    host: Annotated[str, typer.Option(metavar="NAME", help="Address to listen on.")] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Token that the address must contain; generated when left out."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Require no token: every account of this machine can read and ask.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    look: Annotated[bool, typer.Option("--look", help="Read only: no asking, no editing, no model.")] = False,
    model: options.Model = "default",
    db: options.Db = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
) -> None:
    """Browse the record: read thoughts in context, edit one, ask the model.

    Serves a page on this machine until Ctrl-C. The model is loaded when the page first asks it something. Nothing
    leaves the machine. The address that is printed holds a token; without it nobody else can open the page.
    """
    from quietstar.viewer.guard import is_loopback

    if not 0 <= port <= 65535:
        raise QuietStarError(f"--port must be from 0 to 65535, got {port}")
    if no_token and token is not None:
        raise QuietStarError("give --token or --no-token, not both")
    if no_token and not is_loopback(host):
        raise QuietStarError(
            f"--no-token would admit everyone who can reach {host}; use it only with a loopback --host"
        )
    if token is not None and (len(token) < 8 or not token.isascii() or not token.replace("-", "_").isidentifier()):
        raise QuietStarError("--token must have at least 8 letters, digits, - or _, and start with a letter")

    from quietstar.record.store import Store
    from quietstar.viewer.opening import open_in_browser, private_redirect
    from quietstar.viewer.serving import serve
    from quietstar.viewer.worker import ModelWorker

    with Store.open(db) as store:
        place = f"#/run/{store.find(run)}" if run is not None else ""
        worker = None
        if not look and store.writable:
            worker = ModelWorker(model, lambda: options.load(model, dtype, device, quantize, threads=threads))

        with ExitStack() as until_the_end:

            def ready(address: str) -> None:
                typer.echo(f"{address}{place}  (Ctrl-C stops it)")
                if open_ and not open_in_browser(until_the_end.enter_context(private_redirect(address + place))):
                    typer.echo("note: no browser was found to open it", err=True)

            serve(store, worker, host=host, port=port, token="" if no_token else token, ready=ready)
