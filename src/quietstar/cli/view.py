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
        typer.Option(metavar="TEXT", help="What one must know to come in; made up when left out."),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for none: every account of this machine may look and ask.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    look: Annotated[bool, typer.Option("--look", help="Show only: no asking, no changing, no model.")] = False,
    model: options.Model = "default",
    db: options.Db = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
) -> None:
    """Look at the record in a browser: read thoughts in their place, change one, ask.

    Serves a page on this machine until Ctrl-C. The model is loaded when the page first asks it something. Nothing
    leaves the machine. The address that is printed holds a token; without it nobody else can open the page.
    """
    from quietstar.viewer.guard import is_loopback

    if not 0 <= port <= 65535:
        raise QuietStarError(f"--port must be from 0 to 65535, got {port}")
    if no_token and token is not None:
        raise QuietStarError("give --token or --no-token, not both")
    if no_token and not is_loopback(host):
        raise QuietStarError(f"--no-token lets in whoever can reach {host}; it goes with this machine's own address")
    if token is not None and (len(token) < 8 or not token.isascii() or not token.replace("-", "_").isidentifier()):
        raise QuietStarError("--token must have at least 8 letters, digits, - or _, and begin with a letter")

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
                typer.echo(f"{address}{place}  (Ctrl-C ends it)")
                if open_ and not open_in_browser(until_the_end.enter_context(private_redirect(address + place))):
                    typer.echo("note: no browser was found to open it", err=True)

            serve(store, worker, host=host, port=port, token="" if no_token else token, ready=ready)
