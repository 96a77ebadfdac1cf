"""Lines of a terminal that end between words, for text that comes in pieces and for lines that are there at once.

A word that has begun is held back until it ends, because only then is it known whether it still fits. Where no terminal
shows the text (a pipe, a file), nothing here is used: lines stay as long as they are.
"""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_TAB = 8


def console() -> Console:
    """The console that commands print by: wraps between words in a terminal, leaves lines whole elsewhere."""
    made = Console(highlight=False)
    made.soft_wrap = not made.is_terminal
    return made


class Flow:
    """Writes text that comes in pieces, breaking lines between words; wide (CJK) characters are words of their own."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.held = Text()  # blanks and the word behind them, neither of them written yet
        self.column = 0

    def write(self, text: Text) -> None:
        """Take in more text and write what is certain; a line break at its end writes everything."""
        whole = self.held + text
        self.held, out = Text(), Text()
        blank = Text()
        for start, end in _words(whole.plain):
            part = whole[start:end]
            if part.plain == "\n":
                out += part
                self.column, blank = 0, Text()
            elif part.plain.isspace():
                blank = part
            elif end == len(whole) and self._may_go_on(part.plain):
                self.held = blank + part
                blank = Text()
            else:
                out += self._placed(blank, part)
                blank = Text()
        self.held = self.held or blank
        if out:
            self.console.print(out, end="", soft_wrap=True)
        self.console.file.flush()

    def flush(self) -> None:
        """Write what is held back."""
        held, self.held = self.held, Text()
        plain = held.plain
        at = len(plain) - len(plain.lstrip())
        if held:
            self.console.print(self._placed(held[:at], held[at:]) if at < len(plain) else held, end="", soft_wrap=True)
        self.console.file.flush()

    def _may_go_on(self, word: str) -> bool:
        return cell_len(word[-1]) < 2 and cell_len(word) < self.console.width

    def _placed(self, blank: Text, word: Text) -> Text:
        """The word behind its blanks, or at the start of the next line."""
        gap = sum(_TAB if c == "\t" else cell_len(c) for c in blank.plain)
        width = cell_len(word.plain)
        if self.column + gap + width > self.console.width:
            blank, gap, self.column = Text("\n" if self.column else ""), 0, 0
        self.column += gap + width
        if self.column > self.console.width:  # a word longer than a line
            self.column = (self.column - 1) % self.console.width + 1
        return blank + word


def hanging(console: Console, line: Text, indent: int) -> Text:
    """A line broken between words to the console's width, what goes on indented; whole where nothing wraps."""
    room = console.width - indent
    if console.soft_wrap or cell_len(line.plain) <= console.width or room < indent:
        return line
    parts = line[indent:].wrap(console, room)
    return line[:indent] + Text("\n" + " " * indent).join(parts)


def _words(text: str) -> list[tuple[int, int]]:
    """Where blanks, line breaks and words stand; wide characters alone."""
    out = []
    for found in _PARTS.finditer(text):
        start = at = found.start()
        if not found[0].isspace():
            for n, character in enumerate(found[0], found.start()):
                if cell_len(character) == 2:
                    out += [(start, n)] if n > start else []
                    out.append((n, n + 1))
                    start = n + 1
            at = start
        if at < found.end():
            out.append((at, found.end()))
    return out
