"""What a tokenizer puts before and behind a text, and long texts cut so that every piece begins as a text does.

A model that was trained with a begin-of-text token before every text predicts worse without it. So each window of a
long text and each span of training begins with the tokens the tokenizer gives a text; what it puts behind stands at
the end of the text only. Tokenizers that add nothing leave texts as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_PROBES = ("a", "the", "1", ".", "b c")


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that the tokenizer puts before and behind a text; empty ones without a tokenizer."""
    if tokenizer is None:
        return [], []
    ids: list[int] = []
    for probe in _PROBES:
        found = tokenizer(probe, add_special_tokens=True, return_special_tokens_mask=True, verbose=False)
        ids, special = list(found["input_ids"]), list(found["special_tokens_mask"])
        if 0 in special:
            return ids[: special.index(0)], ids[len(special) - special[::-1].index(0) :]
    return ids, []  # it knows none of these texts


def windows(body: Sequence[int], begin: Sequence[int], length: int) -> list[list[int]]:
    """Windows of at most `length` tokens over `body`, each with `begin` before it; every token stands in one of them.

    Args:
        body: the tokens of a text, those that begin it left out. length: more than `begin` has.
    """
    room = length - len(begin)
    return [[*begin, *body[start : start + room]] for start in range(0, len(body), room)]


def pack(
    documents: Iterable[Sequence[int]], begin: Sequence[int], end: Sequence[int], length: int
) -> Iterator[list[int]]:
    """Documents one behind the other in spans of `length` tokens.

    Every document has `begin` before it and `end` behind it, so that a border is seen where a span holds several; a
    span that begins inside a document has `begin` before it too. Where both are empty no border could be seen, so no
    span holds tokens of two documents. Every other token stands in exactly one span, in order.

    Args:
        documents: tokens of each. length: more than `begin` has.
    """
    border = bool(begin or end)
    span: list[int] = []
    for document in documents:
        tokens, at = [*document, *end], 0
        while at < len(tokens):
            if span and (len(span) + len(begin) >= length if at == 0 and border else at == 0):
                yield span
                span = []
            if at == 0 or not span:
                span += begin
            room = length - len(span)
            span += tokens[at : at + room]
            at += room
            if len(span) >= length:
                yield span
                span = []
    if span:
        yield span
