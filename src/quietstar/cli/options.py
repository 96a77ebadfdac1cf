"""Options that several commands share, and loading a model for a command."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from quietstar import arguments, jsontext
from quietstar.errors import QuietStarError
from quietstar.text import visible

if TYPE_CHECKING:
    from quietstar.api import QuietStar

Text = TypeVar("Text", str, None, str | None)
_MODEL, _THINKING, _ANSWER = "Model", "Thinking", "Answer"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        rich_help_panel=_MODEL,
        help="default (SmolLM2-135M-Instruct, downloaded once), a folder, a .gguf file or a Hub name.",
    ),
]
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help="auto, float32, bfloat16 or float16; auto keeps the checkpoint's own.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")]
Quantize = Annotated[str | None, typer.Option(metavar="BITS", help="4bit or 8bit, through bitsandbytes.")]
ThoughtLength = Annotated[
    int | None,
    typer.Option(
        "--thought-length", "-t", metavar="T", help="Tokens in a thought [the model's own, 8 unless trained otherwise]."
    ),
]
Samples = Annotated[int, typer.Option(metavar="P", help="Thoughts at each position; their predictions are averaged.")]
ThoughtTemperature = Annotated[
    float | None,
    typer.Option(metavar="X", help="Temperature of the thoughts; 0 is greedy [0 for one sample, 1 for several]."),
]
Control = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The control: own (no control), none, filler, shuffled, donor, only or truncated:J.",
    ),
]
MixingWeight = Annotated[
    float | None,
    typer.Option(metavar="W", help="A fixed mixing weight instead of the mixing head's, as an experiment."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Same seed, same output.")]

Db = Annotated[
    str | None,
    typer.Option(
        "--db", metavar="FILE", help="The record file [$QUIETSTAR_DB, or record.db in the user's data folder]."
    ),
]


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=1024,
        metavar="N",
        help="CPU threads [$OMP_NUM_THREADS, or the cores that are free; 1 for very small models].",
    ),
]
_PATHS = ("FILE", "FOLDER", "RECIPE")  # metavars of parameters that name files


def guard(command: Any) -> None:
    """Check what is typed for every parameter of a command and its subcommands, before the command sees it.

    Whole numbers must fit 64 bits, numbers must be finite, text must be UTF-8 without NUL, and names of files must be
    ones that a file can have. Only a prompt may hold undecodable bytes: it replaces them itself.
    """
    for parameter in command.params:
        _guard(parameter)
    for inner in getattr(command, "commands", {}).values():
        guard(inner)


def _guard(parameter: Any) -> None:
    convert = parameter.process_value
    names = [name for name in parameter.opts if name.startswith("--")] or [parameter.metavar or parameter.name]

    def process_value(context: Any, value: Any) -> Any:
        words = value if isinstance(value, (list, tuple)) else [value]
        if parameter.metavar != "PROMPT":
            for word in words:
                if isinstance(word, str):
                    check_text(word, names[0])
        value = convert(context, value)
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, int) and not -(2**63) <= one < 2**63:
                raise QuietStarError(f"{names[0]} must be a whole number of at most 64 bits")
            if isinstance(one, float) and not math.isfinite(one):
                raise QuietStarError(f"{names[0]} must be a finite number, got {one}")
            if isinstance(one, str) and (parameter.metavar in _PATHS or parameter.name == "model"):
                arguments.usable(one, names[0])
        return value

    parameter.process_value = process_value


def check_text(word: str, what: str) -> None:
    """Refuse a word of the command line that is no UTF-8 text or contains NUL."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise QuietStarError(f"{what} must be UTF-8 text, got {arguments.shown(word)}") from None
    if "\0" in word:
        raise QuietStarError(f"{what} must not contain a NUL character, got {arguments.shown(word)}")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for standard output: characters as they are where its encoding has them all, escaped elsewhere.

    A number that is not finite is null, see `jsontext`.
    """
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return jsontext.to_json(value, ascii_only=encoding != "utf8", indent=indent)


def decoded(raw: bytes, what: str) -> str:
    """Text from standard input; a byte order mark is obeyed, and what is no text is told and read as U+FFFD."""
    from quietstar.documents.files import decode

    text, notes = decode(raw, what)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return text


def argument(text: Text, what: str) -> Text:
    """Text from the command line, told as in `decoded`; bytes that are no UTF-8 come from the shell as surrogates."""
    if text is None or text.isascii():
        return text
    try:
        raw = text.encode("utf-8", errors="surrogateescape")
    except UnicodeEncodeError:  # surrogates of another kind
        raw = text.encode("utf-8", errors="surrogatepass")
    return decoded(raw, what)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, so that no line of output is cut; then it is raised."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def quiet() -> None:
    """Silence the chatter of libraries; what matters to a person is said in one line of our own."""
    import warnings

    from transformers.utils import logging as chatter

    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    for name in ("bitsandbytes", "huggingface_hub", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"note: {message}", file=sys.stderr)


def load(
    model: str,
    dtype: str,
    device: str,
    quantize: str | None,
    *,
    threads: int | None = None,
    status: Callable[[str], None] = lambda text: None,
) -> QuietStar:
    """The model a command asked for, computing with `threads` threads; `status` is told what takes long."""
    status("loading the libraries")
    quiet()

    from quietstar.api import QuietStar
    from quietstar.engine import threads as threading_

    status(f"loading the model {visible(model)}")
    loaded = QuietStar.from_pretrained(model, dtype=dtype, device=device, quantize=quantize)
    threading_.use(threads, loaded.config.hidden_size)
    return loaded
