"""From token ids to text a person can read, where one character may span several tokens.

Joining the pieces of a sequence gives its text exactly; a token that ends inside a character has an empty piece, and
the token that completes the character has all of it. A thought is read behind the text it follows, so a character
begun in the visible text and finished in the thought is shown whole, and nothing is ever re-tokenised.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"  # what tokenizers put where bytes do not yet make a character
_LONGEST = 8  # more pending tokens than any character has bytes: these bytes are no text, show them as they are
_CONTEXT = 12  # tokens of what came before that are enough to place the next one


class TextStream:
    """Turns token ids into text as they come.

    Args:
        tokenizer: a Hugging Face tokenizer.
        context: ids of the text before; they give no output themselves.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = [int(token) for token in context[-_CONTEXT:]]
        # text up to `_read` was given out; decoding starts at `_anchor`, whose text up to `_read` is `_known`
        self._anchor, self._read = 0, len(self._ids)
        self._known = self._decode(self._ids)
        while self._known.endswith(_INCOMPLETE) and len(self._ids) - self._read < min(_LONGEST, len(self._ids)):
            self._read -= 1
            self._known = self._decode(self._ids[: self._read])

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def push(self, token: int) -> str:
        """Add a token; returns the text it completes, "" while a character is unfinished."""
        self._ids.append(int(token))
        text = self._decode(self._ids[self._anchor :])
        if text.endswith(_INCOMPLETE) and len(self._ids) - self._read <= _LONGEST:
            return ""
        return self._give(text)

    def flush(self) -> str:
        """The text still held back; an unfinished character at the very end reads as U+FFFD."""
        return self._give(self._decode(self._ids[self._anchor :])) if self._read < len(self._ids) else ""

    def _give(self, text: str) -> str:
        new = text[len(self._known) :]
        self._anchor, self._read = self._read, len(self._ids)
        self._known = self._decode(self._ids[self._anchor :])
        return new


def pieces(tokenizer: Any, ids: Sequence[int], context: Sequence[int] = ()) -> list[str]:
    """One string a token; joined they are the text of `ids` behind `context`."""
    stream = TextStream(tokenizer, context)
    out = [stream.push(token) for token in ids]
    if out:
        out[-1] += stream.flush()
    return out


def text_of(tokenizer: Any, ids: Sequence[int], context: Sequence[int] = ()) -> str:
    """The text of `ids` as read behind `context`."""
    return "".join(pieces(tokenizer, ids, context))


def visible(text: str) -> str:
    r"""Text on one line: line breaks and tabs as signs, other control characters as their code.

    >>> visible("two\nlines\x1b[31m")
    'two⏎lines\\x1b[31m'
    """
    signs = {"\n": "⏎", "\r": "␍", "\t": "⇥"}
    return "".join(signs.get(c, c if shows(c) else f"\\x{ord(c):02x}") for c in text)


def shows(character: str) -> bool:
    """True for characters that are safe to print: no control, surrogate, separator or invisible direction mark."""
    kind = unicodedata.category(character)
    return kind not in ("Cc", "Cs", "Zl", "Zp") and (kind != "Cf" or character in "\u200c\u200d")
