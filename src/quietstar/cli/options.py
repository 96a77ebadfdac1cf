"""Options that several commands share, and loading a model for a command."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from quietstar.api import QuietStar

Text = TypeVar("Text", str, None, str | None)
_MODEL, _THINKING, _ANSWER = "Model", "Thinking", "Answer"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME", rich_help_panel=_MODEL,
        help="default (SmolLM2-135M-Instruct, fetched once), a folder, a .gguf file or a hub name.",
    ),
]  # fmt: skip
Dtype = Annotated[
    str, typer.Option(metavar="TYPE", help="auto, float32, bfloat16 or float16; auto is the checkpoint's own.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")]
Quantize = Annotated[str | None, typer.Option(metavar="BITS", help="4bit or 8bit, through bitsandbytes.")]
ThoughtLength = Annotated[
    int | None, typer.Option("--thought-length", "-t", metavar="T", help="Tokens in a thought; the model's own (8).")
]
Samples = Annotated[int, typer.Option(metavar="P", help="Thoughts at each position; their predictions are averaged.")]
ThoughtTemperature = Annotated[
    float | None,
    typer.Option(metavar="X", help="Of the thoughts; 0 is greedy. 0 for one sample, 1 for several unless given."),
]
Control = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What stands in a thought's place: own, none, filler, shuffled, donor, only or truncated:J.",
    ),
]
MixingWeight = Annotated[
    float | None, typer.Option(metavar="W", help="A fixed mixing weight in place of the head's, as an experiment.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Same seed, same output.")]

Db = Annotated[
    str | None,
    typer.Option("--db", metavar="FILE", help="The record [$QUIETSTAR_DB, or record.db in the user's data folder]."),
]


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for standard output: characters as they are where its encoding has them all, escaped elsewhere."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    return json.dumps(value, ensure_ascii=encoding != "utf8", indent=indent)


def decoded(raw: bytes, what: str) -> str:
    """Text from standard input; a byte order mark is obeyed, and what is no text is told and read as U+FFFD."""
    from quietstar.datafiles import decode

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


def load(model: str, dtype: str, device: str, quantize: str | None) -> QuietStar:
    """The model a command asked for."""
    quiet()

    from quietstar.api import QuietStar

    return QuietStar.from_pretrained(model, dtype=dtype, device=device, quantize=quantize)
