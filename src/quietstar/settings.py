"""Settings as frozen dataclasses that pydantic checks: types, ranges, unknown keys, and one style of error.

`@checked` goes above `@dataclass(frozen=True)`. Built from Python or from a mapping (`build`), a wrong value is one
`QuietStarError` that names the key, the value and what is allowed. `pydantic.TypeAdapter(cls).json_schema()` gives the
schema. Knows nothing about what the settings mean.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from quietstar.errors import QuietStarError

T = TypeVar("T")
_SHOWN = 60  # characters of a wrong value that are shown
LARGEST = 2**53  # largest whole number that every reader of JSON keeps exactly


def _as_tuple(value: Any) -> Any:
    """A single text as a tuple of it."""
    return (value,) if isinstance(value, str) else value


def _printable(text: str) -> str:
    if text and not text.isprintable():
        raise ValueError("must not hold control characters or broken Unicode")
    return text


# strict, so that nothing is guessed: neither "3" nor true is a number
Text = Annotated[str, Field(strict=True), AfterValidator(_printable)]
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, le=LARGEST)]
Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Weight = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple)]
Schedule = Mapping[Whole, Whole]


def checked(cls: type[T]) -> type[T]:
    """Let pydantic check every field of a frozen dataclass, without guessing types: "3" is no number.

    A `ValueError` of the class's own `__post_init__` is reported in the same way.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = validated(cls, config=config, frozen=True)  # type: ignore[call-overload]
    made.__doc__, made.__module__, made.__qualname__ = cls.__doc__, cls.__module__, cls.__qualname__
    plain = made.__init__

    def init(self: Any, *values: Any, **named: Any) -> None:
        try:
            plain(self, *values, **named)
        except ValidationError as error:
            raise QuietStarError(_message(error, made)) from None

    made.__init__ = init
    return typing.cast("type[T]", made)


def build(cls: type[T], raw: Mapping[str, Any], what: str = "key") -> T:
    """An instance from plain Python, as YAML or JSON gives it; what is not named keeps its default.

    Args:
        what: what an unknown key is called, e.g. "recipe key".

    Raises:
        QuietStarError: an unknown key, a wrong type or value; names key, value and what is allowed.
    """
    try:
        return TypeAdapter(cls).validate_python(raw)
    except ValidationError as error:
        raise QuietStarError(_message(error, cls, what)) from None


def key_names(cls: Any, prefix: str = "") -> list[str]:
    """All keys, dotted."""
    hints, found = typing.get_type_hints(cls), []
    for one in fields(cls):
        inner = hints[one.name]
        found += key_names(inner, f"{prefix}{one.name}.") if is_dataclass(inner) else [prefix + one.name]
    return found


def clean(text: str) -> str:
    """A text for a message: as it is where it can be printed on a line, its repr where not; cut where it is long."""
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 4 * _SHOWN else text[: 4 * _SHOWN - 1] + "…"


def shown(value: Any) -> str:
    """A value in a message: its repr on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # whole numbers of thousands of digits, lists that hold themselves
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "tuple": "a list of texts",
    "mapping": "keys and values",
    "dict": "keys and values",
    "finite": "a finite number",
}
_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}


def _message(error: ValidationError, cls: Any, what: str = "key") -> str:
    """The first thing that is wrong, in a line; unknown keys come first, since they explain the rest."""
    every = error.errors(include_url=False)
    first = next((one for one in every if one["type"] == "unexpected_keyword_argument"), every[0])
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    path = [clean(str(part)) for part in first["loc"] if part != "[key]"]
    of_a_key = bool(first["loc"]) and first["loc"][-1] == "[key]"
    name = f"each key of {'.'.join(path[:-1])}" if of_a_key else ".".join(path)
    more = f" (and {len(every) - 1} more)" if len(every) > 1 else ""
    if kind == "unexpected_keyword_argument":
        return _unknown(cls, ".".join(str(part) for part in first["loc"]), what)
    if kind == "value_error":
        reason = context["error"]  # a QuietStarError of the section's own check names the key itself
        return f"{name}{'.' if name else ''}{reason}" if isinstance(reason, QuietStarError) else f"{name} {reason}"
    if kind.startswith("dataclass"):
        return f"{name} is a section with keys of its own, got {shown(value)}"
    if kind in _BOUNDS:
        bound = {key: f"{limit:g}" if isinstance(limit, float) else limit for key, limit in context.items()}
        return f"{name} must be {_BOUNDS[kind].format(**bound)}, got {shown(value)}{more}"
    if kind == "literal_error":
        return f"{name} must be {context['expected'].replace(chr(39), '')}; got {shown(value)}{more}"
    wanted = next((words for begin, words in _WANTED.items() if kind.startswith(begin)), None)
    if wanted is None:
        return f"{name}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {shown(value)}{more}"
    return f"{name} must be {wanted}, got {shown(value)}{more}"


def _unknown(cls: Any, name: str, what: str) -> str:
    every = key_names(cls)
    near = difflib.get_close_matches(name, every, n=1, cutoff=0.5) or [
        one for one in every if one.rpartition(".")[2] == name.rpartition(".")[2]
    ]
    return f"unknown {what} {shown(name)}" + (f"; did you mean {near[0]!r}?" if near else f"; keys: {', '.join(every)}")
