"""What a person sees in the terminal: the answer with its marks, and thoughts as a readable list.

Everything a model says is printed as text, never as markup or control sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from quietstar.scratchpad.entries import Intervention
from quietstar.scratchpad.trace import Choice, End, Event, Start, ThoughtEvent, TokenEvent, Trace
from quietstar.text import shows, visible

MARK, FLIP = "·", "◆"
MEASURES = ("kl", "weight", "gain", "entropy", "surprise")  # what the answer can be tinted by
_TINTS = ("", "black on #fdebd3", "black on #fbcf9d", "black on #f7a85e", "black on #e97f26")


class Screen:
    """Prints a stream of events as it comes.

    Args:
        live: one token a line with its thought. quiet: the answer only.
        show: how many of the most influential thoughts to list at the end; None is all of them in order.
    """

    def __init__(self, live: bool = False, quiet: bool = False, show: int | None = 8) -> None:
        self.live, self.quiet, self.show = live, quiet, show
        self.console = Console(highlight=False, soft_wrap=True)
        self.traces: list[Trace] = []
        self.pending: ThoughtEvent | None = None
        self.printed = 0

    def event(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, Start):
            self._start(event)
            return
        trace = self.traces[-1]
        trace.add(event)
        if isinstance(event, ThoughtEvent):
            self.pending = event
        elif isinstance(event, TokenEvent):
            self._token(event)
        elif isinstance(event, End):
            rest = event.text[self.printed :]
            if rest and not self.live:
                self._say(rest)

    def _start(self, event: Start) -> None:
        if self.traces and not self.quiet:  # the forced answer follows the reasoning
            lead = event.prompts[0][len(self.traces[-1].start.prompts[0]) + len(self.traces[-1].text) :]
            self._write(Text(safe(lead) + ("\n" if self.live else ""), style="dim"))
        elif self.traces:
            self._write(Text("\n"))
        elif event.untrained and not self.quiet and event.settings["trigger"] != "never":
            self.console.print(
                Text(
                    "The thoughts of this model are untrained: its mixing head is at its start (w = 0), so they cannot "
                    "change the answer yet. `only` is what each would say alone; --mixing-weight 0.2 lets them speak.",
                    style="dim",
                )
            )
        self.traces.append(Trace(event))
        self.printed = 0

    def _say(self, text: str) -> None:
        """The model's words alone; exactly as they are where a program reads them."""
        if self.quiet and not self.console.is_terminal:
            self.console.file.write(text)
            self.console.file.flush()
        else:
            self._write(Text(safe(text)))

    def _write(self, text: Text) -> None:
        self.console.print(text, end="")
        self.console.file.flush()

    def _token(self, event: TokenEvent) -> None:
        thought, self.pending = self.pending, None
        self.printed += len(event.text)
        if self.live:
            line = Text().append(f"{visible(event.text):<14} ", style="bold")
            if thought is not None:
                line.append_text(_summary(thought))
            self.console.print(line)
            return
        text = safe(event.text)
        if thought is None or self.quiet or not text:
            self._say(event.text)
            return
        space = text[: len(text) - len(text.lstrip())] if text.strip() else ""
        mark = Text(FLIP, style="bold magenta") if thought.flipped else Text(MARK, style="cyan")
        self._write(Text(space) + mark + Text(text[len(space) :]))

    def finish(self, interrupted: bool = False, again: str = "") -> None:
        """End the answer and list its thoughts; `again` says how to see them once more."""
        if not self.live:
            self._write(Text("\n"))
        if self.quiet or not self.traces:
            return
        if not self.live and self.show != 0:
            for trace in self.traces:
                chosen = trace.thoughts if self.show is None else trace.most_influential(self.show)
                if chosen:
                    self.console.print()
                    for line in lines(trace, chosen):
                        self.console.print(line)
        thoughts = [thought for trace in self.traces for thought in trace.thoughts]
        said = sum(len(trace.tokens) for trace in self.traces)
        flips = sum(thought.flipped for thought in thoughts)
        note = f"{said} tokens, {len(thoughts)} thoughts, {flips} changed the likeliest word"
        ends = [trace.end for trace in self.traces if trace.end is not None]
        if ends:
            note += f", {sum(end.seconds for end in ends):.1f} s"
            if drafted := sum(end.drafted for end in ends):
                note += f", {sum(end.accepted for end in ends)} of {drafted} drafts came true"
            if ends[-1].reason in ("length", "context"):
                note += ", cut at --max-new-tokens" if ends[-1].reason == "length" else ", cut at the model's context"
        if interrupted:
            note += ", interrupted"
        self.console.print(Text("\n" + note, style="dim"))
        if again:
            self.console.print(Text(again, style="dim"))


def lines(trace: Trace, thoughts: Iterable[ThoughtEvent]) -> list[Text]:
    """Thoughts as a readable list: context, {thought}, numbers, and the next token three ways."""
    out = []
    for thought in thoughts:
        head = Text().append(f"{thought.position:>5}  ", style="dim")
        head.append(_context(trace, thought.position))
        out.append(head.append_text(Text(" ")).append_text(_thought_text(thought)))
        out.append(Text("       ").append_text(_numbers(thought)))
    return out


def change(made: Intervention) -> Text:
    """One intervention on a line: what was put there and what it did."""
    text = Text().append(f"{visible(made.kind)} ", style="magenta")
    text.append("{" + visible(made.sample.text) + "}", style="bold").append("  w ", style="dim")
    text.append(f"{made.sample.weight:.3f}").append("  KL ", style="dim").append(f"{made.kl:.4f}  ")
    for label, choices in (("without", made.base), ("with", made.mixed), ("only", made.only)):
        text.append(f"{label} ", style="dim").append(_choice(choices)).append("  ")
    if made.continuation is not None:
        text.append("then ", style="dim").append(visible(made.continuation))
    return text


def tinted(trace: Trace, measure: str) -> tuple[Text, float]:
    """The answer, each token tinted by its thought's measure and marked as when it was said; and the largest value.

    Values below 0 tint like those above, largest in size. Without colours the marks remain.
    """
    found = {thought.position + 1: getattr(thought, measure) for thought in trace.thoughts}
    values = {position: abs(float(value)) for position, value in found.items() if value is not None}
    flips = {thought.position + 1 for thought in trace.thoughts if thought.flipped}
    largest = max((value for value in values.values() if math.isfinite(value)), default=0.0)
    out = Text()
    for token in trace.tokens:
        text = safe(token.text)
        space = text[: len(text) - len(text.lstrip())] if text.strip() else ""
        value = values.get(token.position)
        out.append(space)
        if token.position in found and text:
            out.append(FLIP, "bold magenta") if token.position in flips else out.append(MARK, "cyan")
        share = min(value / largest, 1.0) if value is not None and largest > 0 and value == value else 0.0
        out.append(text[len(space) :], _TINTS[math.ceil(share * (len(_TINTS) - 1))])
    said = "".join(token.text for token in trace.tokens)
    return out.append(safe(trace.text[len(said) :])), largest


def _context(trace: Trace, position: int, width: int = 32) -> str:
    """What was said just before; in a chat the answer alone, elsewhere the prompt too."""
    text = trace.said(position) if trace.start.chat else trace.context(position, width + 1)
    return "…" + visible(text[-width:]) if len(text) > width else visible(text) or "(start)"


def _thought_text(thought: ThoughtEvent) -> Text:
    return Text(" ").join(
        Text("{" + visible(sample.text) + "}", style="bold cyan" if not thought.flipped else "bold magenta")
        for sample in thought.samples
    )


def _numbers(thought: ThoughtEvent) -> Text:
    text = Text().append("w ", style="dim").append(f"{thought.weight:.3f}")
    text.append("  KL ", style="dim").append(f"{thought.kl:.4f}  ")
    for label, choices in (("without", thought.base), ("with", thought.mixed), ("only", thought.only)):
        text.append(f"{label} ", style="dim").append(_choice(choices)).append("  ")
    if thought.flipped:
        text.append(f"{FLIP} flipped  ", style="bold magenta")
    text.append(thought.trigger if thought.control == "own" else f"{thought.trigger}, {thought.control}", style="dim")
    return text


def _summary(thought: ThoughtEvent) -> Text:
    return _thought_text(thought).append("  ").append_text(_numbers(thought))


def _choice(choices: list[Choice]) -> str:
    return f"“{visible(choices[0].text)}” {choices[0].prob:.0%}" if choices else "-"


def safe(text: str) -> str:
    """Text for a terminal: line breaks and tabs stay, other control characters become visible codes."""
    return "".join(c if c in "\n\t" or shows(c) else visible(c) for c in text)
