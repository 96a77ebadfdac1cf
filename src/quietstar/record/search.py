"""What a person types into a search box, as SQL conditions; any text is a valid search.

Words are found by their beginnings, in any order and case, with or without accents, whether their letters are composed
(one code point) or decomposed (a letter and its marks); "words in quotes" are found together. Scripts without
spaces between words, and words with symbols (C++), are not words to the full-text index: these are searched for as
substrings, in every row; there only ASCII letters are found in any case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from quietstar.arguments import any_text, checked, of_numbers
from quietstar.errors import QuietStarError
from quietstar.record.columns import plain

SQL_OF_MEASURE = {  # what thoughts can be sorted and bounded by, and how SQLite reads it from `thoughts t`
    "kl": "t.kl",
    "weight": "t.weight",
    "gain": "(t.mixed_logprob - t.base_logprob)",
    "entropy": "t.entropy",
    "surprise": "(-t.mixed_logprob)",
}

ABOVE_NOISE = "(t.kl > r.noise_kl)"  # NULL where the noise floor of the run was not measured

_RUN = (
    "r.id IN (SELECT f.id FROM runs_search s JOIN runs f ON f.number = s.rowid WHERE runs_search MATCH ? "
    "UNION SELECT f.run FROM samples_search s JOIN samples f ON f.number = s.rowid WHERE samples_search MATCH ?)"
)
_RUN_AS_SUBSTRING = (
    "(instr(lower(r.prompt), ?) OR instr(lower(r.text), ?) "
    "OR r.id IN (SELECT run FROM samples WHERE instr(lower(text), ?)))"
)
_THOUGHT = (
    "(t.run, t.position) IN (SELECT f.run, f.position FROM samples_search s JOIN samples f ON f.number = s.rowid "
    "WHERE samples_search MATCH ?)"
)
_THOUGHT_AS_SUBSTRING = "(t.run, t.position) IN (SELECT run, position FROM samples WHERE instr(lower(text), ?))"


def words(query: str) -> list[str]:
    """The words and quoted phrases of a search."""
    found = re.findall(r'"([^"]*)"|([^\s"]+)', plain(query).replace("\0", " "))
    return [" ".join((phrase or word).split()) for phrase, word in found if (phrase or word).strip()]


def in_runs(query: str) -> tuple[list[str], list[Any]]:
    """Conditions on `runs r`: each word occurs in the prompt, the answer or a thought."""
    conditions, values = [], []
    for word in words(query):
        if _indexed(word):
            conditions.append(_RUN)
            values += [_match(word)] * 2
        else:
            forms = _forms(word)
            conditions.append(f"({' OR '.join([_RUN_AS_SUBSTRING] * len(forms))})")
            values += [_folded(form) for form in forms for _ in range(3)]
    return conditions, values


def in_thoughts(query: str) -> tuple[list[str], list[Any]]:
    """Conditions on `thoughts t`: each word occurs in one of its samples."""
    conditions, values = [], []
    for word in words(query):
        if _indexed(word):
            conditions.append(_THOUGHT)
            values.append(_match(word))
        else:
            forms = _forms(word)
            conditions.append(f"({' OR '.join([_THOUGHT_AS_SUBSTRING] * len(forms))})")
            values += [_folded(form) for form in forms]
    return conditions, values


class Names(Protocol):
    """Finds the ids of runs."""

    def find(self, name: str) -> str:
        """The id of the run called `name`; QuietStarError where there is none."""
        ...


@checked
def of_thoughts(
    names: Names,
    query: Annotated[str, any_text()] = "",
    *,
    run: str | None = None,
    tag: str | None = None,
    model: str | None = None,
    trigger: str | None = None,
    control: str | None = None,
    flipped: bool | None = None,
    above_noise: bool | None = None,
    least: Annotated[Mapping[str, float], of_numbers()] | None = None,
    most: Annotated[Mapping[str, float], of_numbers()] | None = None,
) -> tuple[str, list[Any]]:
    """The WHERE clause over `thoughts t` and `runs r` for the filters of `Store.thoughts`, and its values."""
    conditions, values = in_thoughts(query)
    if run is not None:
        conditions.append("t.run = ?")
        values.append(names.find(run))
    if tag is not None:
        conditions.append("t.run IN (SELECT run FROM tags WHERE tag = ?)")
        values.append(tag)
    for column, wanted in (
        ("r.model", model),
        ("t.trigger", trigger),
        ("t.control", control),
        ("t.flipped", None if flipped is None else int(flipped)),
    ):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            values.append(wanted)
    if above_noise is not None:  # a thought without a measured noise floor is in both
        conditions.append(f"coalesce({ABOVE_NOISE}, {int(above_noise)}) = {int(above_noise)}")
    for sign, bounds in ((">=", least), ("<=", most)):
        for measure, bound in (bounds or {}).items():
            if measure not in SQL_OF_MEASURE:
                raise QuietStarError(f"bounds exist for {', '.join(SQL_OF_MEASURE)}; got {measure!r}")
            conditions.append(f"{SQL_OF_MEASURE[measure]} {sign} ?")
            values.append(bound)
    return where(conditions), values


def where(conditions: Sequence[str]) -> str:
    """A WHERE clause, "" without conditions."""
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""


def _match(word: str) -> str:
    """A phrase for FTS5 whose last word may be longer, in each of its forms, quoted so that nothing in it is syntax."""
    return " OR ".join('"' + form.replace('"', '""') + '" *' for form in _forms(word))


def _forms(word: str) -> list[str]:
    """The word as texts may write it: with composed and with decomposed letters, with ß and with ss."""
    folded = word.casefold()
    spelled = [word]
    if folded != word.lower():  # full case folding: ß is ss
        spelled.append(folded)
    if "ss" in folded:
        spelled.append(folded.replace("ss", "ß"))
    forms = [form for one in spelled for form in (one, *(unicodedata.normalize(kind, one) for kind in ("NFC", "NFD")))]
    return list(dict.fromkeys(forms))


def _indexed(word: str) -> bool:
    """True where the index splits this into words as a person would."""
    kinds = {unicodedata.category(c) for c in unicodedata.normalize("NFC", word)}
    return "Lo" not in kinds and not any(k[0] == "S" for k in kinds) and any(k[0] in "LN" for k in kinds)


def _folded(word: str) -> str:
    """In lower case as SQLite's lower() makes it, which is for ASCII alone."""
    return "".join(c.lower() if c.isascii() else c for c in word)
