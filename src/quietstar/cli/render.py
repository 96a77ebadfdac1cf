"""What a person sees in the terminal: the answer with its marks, and thoughts as a readable list.

Everything a model says is printed as text, never as markup or control sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.text import Text

from quietstar.cli.wrapping import Flow, console, hanging
from quietstar.events import Choice, End, Event, Start, ThoughtEvent, TokenEvent, Trace
from quietstar.record import computed, scale
from quietstar.record.compared import Compared
from quietstar.record.entries import Intervention
from quietstar.text import shows, visible

MARK, FLIP = "·", "◆"
_INDENT = 7  # of what stands below a thought's place
MEASURES = tuple(scale.BOUNDS)  # what the answer can be tinted by
UNMEASURED = "noise floor not measured: small values and changed words may be rounding"


class Screen:
    """Prints a stream of events as it comes.

    Args:
        live: one token a line with its thought. quiet: the answer only.
        show: how many of the most influential thoughts to list at the end; None is all of them in order.
    """

    def __init__(self, live: bool = False, quiet: bool = False, show: int | None = 8) -> None:
        self.live, self.quiet, self.show = live, quiet, show
        self.console = console()
        self.flow = Flow(self.console)
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
                    "change the answer yet. `only` is what each would say alone; --mixing-weight 0.2 mixes them in.",
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
        if self.console.soft_wrap:
            self.console.print(text, end="")
            self.console.file.flush()
        else:
            self.flow.write(text)

    def _token(self, event: TokenEvent) -> None:
        thought, self.pending = self.pending, None
        self.printed += len(event.text)
        if self.live:
            line = Text().append(f"{visible(event.text):<14} ", style="bold")
            if thought is not None:
                line.append_text(_summary(self.traces[-1], thought))
            self.console.print(hanging(self.console, line, 15))
            return
        text = safe(event.text)
        if thought is None or self.quiet or not text:
            self._say(event.text)
            return
        space = text[: len(text) - len(text.lstrip())] if text.strip() else ""
        mark = Text(FLIP, style="bold magenta") if self.traces[-1].changed(thought) else Text(MARK, style="cyan")
        self._write(Text(space) + mark + Text(text[len(space) :]))

    def finish(self, interrupted: bool = False, again: str = "") -> None:
        """End the answer and list its thoughts; `again` says how to see them once more."""
        if not self.live:
            self._write(Text("\n"))
        if self.quiet or not self.traces:
            return
        if not self.live and self.show != 0:
            for trace in self.traces:
                chosen = trace.thoughts if self.show is None else strongest(trace)[: self.show]
                if chosen:
                    self.console.print()
                    for line in lines(trace, chosen):
                        self.console.print(hanging(self.console, line, _INDENT))
        thoughts = [thought for trace in self.traces for thought in trace.thoughts]
        said = sum(len(trace.tokens) for trace in self.traces)
        note = f"{said} tokens, {len(thoughts)} thoughts"
        if thoughts:
            flips = sum(trace.changed(thought) for trace in self.traces for thought in trace.thoughts)
            note += f", {floor(self.traces)}, likeliest word changed {times(flips)}"
        ends = [trace.end for trace in self.traces if trace.end is not None]
        if ends:
            note += f", {sum(end.seconds for end in ends):.1f} s"
            if drafted := sum(end.drafted for end in ends):
                note += f", {sum(end.accepted for end in ends)} of {drafted} drafted tokens accepted"
            if ends[-1].reason in ("length", "context"):
                note += ", cut at --max-new-tokens" if ends[-1].reason == "length" else ", cut at the model's context"
        if interrupted:
            note += ", interrupted"
        self.console.print(Text("\n" + note, style="dim"))
        if again:  # to be copied, so never broken
            self.console.print(Text(again, style="dim"), soft_wrap=True)


def strongest(trace: Trace, measure: str = "kl") -> list[ThoughtEvent]:
    """Thoughts above the noise floor by a measure, the largest value first; without a value last."""
    value = {id(one): getattr(one, measure) for one in trace.thoughts}
    known = {key: -math.inf if found is None or math.isnan(found) else found for key, found in value.items()}
    return sorted((one for one in trace.thoughts if trace.above_noise(one)), key=lambda one: -known[id(one)])


def floor(traces: Sequence[Trace]) -> str:
    """How many thoughts are above the noise floor, and what it is; one line for several traces."""
    known = [trace.noise for trace in traces if trace.noise is not None]
    if len(known) < len(traces):
        return "noise floor not measured"
    above = sum(trace.above_noise(thought) for trace in traces for thought in trace.thoughts)
    return f"{above} above the noise floor ({max(one.kl for one in known):.2g} nats)"


def noise(traces: Sequence[Trace]) -> str:
    """The noise floor of a run in words."""
    known = [trace.noise for trace in traces if trace.noise is not None]
    if not known or len(known) < len(traces):
        return UNMEASURED
    kl, logprob, weight = (max(getattr(one, name) for one in known) for name in ("kl", "logprob", "weight"))
    gains = [one.gain for one in known if one.gain is not None]
    gain = f", gain {max(gains):.2g}" if len(gains) == len(known) else ""
    places = sum(one.places for one in known)
    return (
        f"noise floor: kl {kl:.2g}, log-probability {logprob:.2g}, w {weight:.2g}{gain}: what reading the same place "
        f"again in another batch changes, measured at {places} {'place' if places == 1 else 'places'}"
    )


def times(count: int) -> str:
    """A count of how often something happened."""
    return f"{count} {'time' if count == 1 else 'times'}"


def lines(trace: Trace, thoughts: Iterable[ThoughtEvent], measure: str = "kl") -> list[Text]:
    """Thoughts as a readable list: context, {thought}, numbers with `measure` among them, the next token three ways."""
    out = []
    for thought in thoughts:
        head = Text().append(f"{thought.position:>5}  ", style="dim")
        head.append(_context(trace, thought.position))
        out.append(head.append_text(Text(" ")).append_text(_thought_text(thought, trace.changed(thought))))
        out.append(Text(" " * _INDENT).append_text(_numbers(trace, thought, measure)))
    return out


def change(made: Intervention) -> Text:
    """One intervention on a line: what was put there, what it did, and what the own thought did beside it."""
    text = Text().append(f"{visible(made.kind)} ", style="magenta")
    text.append("{" + visible(made.sample.text) + "}", style="bold").append("  w ", style="dim")
    text.append(f"{made.sample.weight:.3f}").append("  KL ", style="dim").append(f"{made.kl:.4f}  ")
    compared = Compared.of(made.settings)
    for label, choices in (
        ("without", made.base),
        ("with", made.mixed),
        ("only", made.only),
        ("own thought", compared.mixed if compared is not None else []),
    ):
        if choices or label != "own thought":
            text.append(f"{label} ", style="dim").append(_choice(choices)).append("  ")
    if compared is not None and compared.changed:
        text.append(f"{FLIP} likeliest word changed  ", style="bold magenta")
    if compared is not None and compared.recorded is not None:
        text.append(f"recomputed in {visible(computed.in_words(compared.computed))}  ", style="dim")
    if made.continuation is not None:
        text.append("then ", style="dim").append(visible(made.continuation))
    return text


def tinted(trace: Trace, measure: str) -> Text:
    """The answer, each token tinted by its thought's measure and marked as when it was said.

    The tint is a step of the measure's scale, none within the noise floor. Without colours the marks remain.
    """
    found = {thought.position + 1: getattr(thought, measure) for thought in trace.thoughts}
    flips = {thought.position + 1 for thought in trace.thoughts if trace.changed(thought)}
    limit = noise_of(trace, measure)
    if measure == "gain":  # a thought that moved nothing has no gain
        found |= {thought.position + 1: None for thought in trace.thoughts if not trace.above_noise(thought)}
    out = Text()
    for token in trace.tokens:
        text = safe(token.text)
        space = text[: len(text) - len(text.lstrip())] if text.strip() else ""
        out.append(space)
        if token.position in found and text:
            out.append(FLIP, "bold magenta") if token.position in flips else out.append(MARK, "cyan")
        tint = scale.colour(measure, found.get(token.position), limit)
        out.append(text[len(space) :], "" if tint is None else f"black on {tint}")
    said = "".join(token.text for token in trace.tokens)
    return out.append(safe(trace.text[len(said) :]))


def noise_of(trace: Trace, measure: str) -> float | None:
    """Up to what size a measure is rounding, None where that is unknown or the measure is no difference."""
    found: float | None = getattr(trace.noise, measure, None) if measure in ("kl", "weight", "gain") else None
    return found


def legend(measure: str) -> Text:
    """What the tints of a measure mean: the number that each begins at."""
    text = Text(f"tint by {measure}: ", style="dim")
    for bound, tint in zip(scale.BOUNDS[measure], scale.COLOURS, strict=True):
        text.append(f" {bound:g} ", f"black on {tint}")
    unit = f" {scale.UNITS[measure]}" if scale.UNITS[measure] else ""
    text.append(f"{unit} and more, the same in every run", "dim")
    if measure in ("gain", "weight"):
        text.append("; grey below 0", "dim")
    return text.append(f"; {MARK} thought, {FLIP} likeliest word changed", "dim")


def _context(trace: Trace, position: int, width: int = 32) -> str:
    """What was said just before; in a chat the answer alone, elsewhere the prompt too."""
    text = trace.said(position) if trace.start.chat else trace.context(position, width + 2)
    return visible(_ending(text, width)) or "(start)"


def _ending(text: str, width: int) -> str:
    """The last words of a text, about `width` characters; a word is cut only where it alone is longer."""
    if len(text) <= width:
        return text
    kept, before = text[-width:], text[-width - 1]
    if not kept[0].isspace() and not before.isspace():  # it begins inside a word
        gap = next((n for n, c in enumerate(kept) if c.isspace()), None)
        kept = kept if gap is None or not kept[gap:].strip() else kept[gap:]
    return "…" + kept


def _thought_text(thought: ThoughtEvent, changed: bool) -> Text:
    return Text(" ").join(
        Text("{" + visible(sample.text) + "}", style="bold magenta" if changed else "bold cyan")
        for sample in thought.samples
    )


def _numbers(trace: Trace, thought: ThoughtEvent, measure: str = "kl") -> Text:
    text = Text().append("w ", style="dim").append(f"{thought.weight:.3f}")
    text.append("  KL ", style="dim").append(f"{thought.kl:.4f}  ")
    if measure not in ("kl", "weight"):
        value = getattr(thought, measure)
        text.append(f"{measure} ", style="dim").append("-" if value is None else f"{value:+.4f}").append("  ")
    for label, choices in (("without", thought.base), ("with", thought.mixed), ("only", thought.only)):
        text.append(f"{label} ", style="dim").append(_choice(choices)).append("  ")
    if trace.changed(thought):
        text.append(f"{FLIP} likeliest word changed  ", style="bold magenta")
    if not trace.above_noise(thought):
        text.append("below the noise floor  ", style="dim")
    asked = visible(thought.trigger)
    text.append(asked if thought.control == "own" else f"{asked}, {visible(thought.control)}", style="dim")
    return text


def _summary(trace: Trace, thought: ThoughtEvent) -> Text:
    return _thought_text(thought, trace.changed(thought)).append("  ").append_text(_numbers(trace, thought))


def _choice(choices: list[Choice]) -> str:
    return f"“{visible(choices[0].text)}” {choices[0].prob:.0%}" if choices else "-"


def safe(text: str) -> str:
    """Text for a terminal: line breaks and tabs stay, other control characters become visible codes."""
    return "".join(c if c in "\n\t" or shows(c) else visible(c) for c in text)
