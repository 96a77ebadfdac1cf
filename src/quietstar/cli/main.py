"""The command `quietstar` and the one place where errors become a line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, NoReturn

import typer

from quietstar._version import __version__
from quietstar.cli import bench, options, plot, runs, score, show, signals, stats, tasks, think, train, view
from quietstar.errors import QuietStarError
from quietstar.text import visible

app = typer.Typer(
    name="quietstar",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    help="See, train and test what a language model thinks before it speaks.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(name="think")(think.think)
app.command(name="show")(show.show)
app.add_typer(runs.app, name="runs")
app.command(name="stats")(stats.stats)
app.command(name="view")(view.view)
app.command(name="score")(score.score)
app.command(name="train", context_settings=train.SETTINGS)(train.train)
app.command(name="plot")(plot.plot)
app.add_typer(tasks.app, name="tasks")
app.add_typer(bench.app, name="bench")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"quietstar {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """See, train and test what a language model thinks before it speaks."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run a command.

    Exit codes: 0 done; 1 the system failed in a way nobody foresaw (a file, memory, an encoding); 2 a wrong value, file
    or request, or nothing left of disk or memory; 70 a fault in quietstar itself; 130 Ctrl-C. All but 0 are one line on
    stderr; QUIETSTAR_TRACEBACK=1 shows the traceback of 1 and 70.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a terminal without some character shows its code instead
        sys.stdout.reconfigure(errors="backslashreplace")
    signals.end_on_signals()
    try:
        command = typer.main.get_command(app)
        options.guard(command)
        code = command(prog_name="quietstar", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be told
    except QuietStarError as error:
        _leave(f"quietstar: {error}", 2)
    except typer.TyperException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", None) or "quietstar"
        _leave(f"quietstar: {error.format_message().rstrip('.')}; see `{where} --help`", 2)
    except signals.Terminated as ended:
        _leave("quietstar: terminated; what was finished is above", ended.code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except RuntimeError as error:  # torch tells a lack of memory so
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            _unexpected(error)
        _leave("quietstar: out of memory; try a shorter text, fewer --samples or a shorter --thought-length", 2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            _unexpected(error)
        _leave("quietstar: no space left on the disk; free some and try again", 2)
    except MemoryError:
        _leave("quietstar: out of memory; try a shorter text, fewer --samples or a shorter --thought-length", 2)
    except Exception as error:
        _unexpected(error)
    if code == 130:
        _leave("quietstar: interrupted; what was finished is above", 130)
    raise SystemExit(code if isinstance(code, int) else 0)  # a command's own value is no exit code


def _unexpected(error: Exception) -> NoReturn:
    """Tell an error that nobody foresaw in one line; a fault of the system is code 1, any other is ours, code 70."""
    if os.environ.get("QUIETSTAR_TRACEBACK"):
        raise error
    cause: BaseException | None = error
    while cause is not None:  # a library may turn Ctrl-C into an error of its own
        if isinstance(cause, KeyboardInterrupt):
            _leave("quietstar: interrupted; what was finished is above", 130)
        cause = cause.__cause__ or cause.__context__
    system = isinstance(error, (OSError, UnicodeError, OverflowError, RecursionError))
    what = "unexpected error" if system else "internal error, please report it"
    text = " ".join(str(error).split())[:500]
    hint = "QUIETSTAR_TRACEBACK=1 shows where"
    _leave(f"quietstar: {what}: {type(error).__name__}: {text} ({hint})", 1 if system else 70)


def _flush() -> None:
    """Write out what is left; where that fails, drop it, or Python would try again on its way out."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = None  # type: ignore[assignment]


def _leave(line: str, code: int) -> NoReturn:
    _flush()
    line = " ".join(line.split()).encode("utf-8", errors="backslashreplace").decode()
    print(visible(line), file=sys.stderr)  # a line may quote what a file or a record says
    raise SystemExit(code)


if __name__ == "__main__":
    main()
