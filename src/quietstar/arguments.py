"""Arguments of public functions and fields of settings, checked against their annotations: one line says what is wrong.

`checked` wraps a function, or all public methods of a class; `settings` makes a class of settings a pydantic dataclass.
Both read the same annotations. `int` takes whole numbers (numpy's too, True and False are none), `float` takes finite
numbers, `str` takes text that UTF-8 can hold, and `str | Path` takes the name of a file. Bounds and rules of one's own
stand in the annotation: ``Annotated[int, at_least(1)]``. Knows types and values; knows nothing about models.
"""

from __future__ import annotations

import builtins
import difflib
import functools
import inspect
import math
import operator
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, PlainValidator, TypeAdapter, ValidationError, WrapValidator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import PydanticCustomError
from typing_extensions import Unpack, dataclass_transform

from quietstar.errors import QuietStarError, WrongType

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)
INT64 = 2**63  # whole numbers lie below this in size: files and libraries hold no larger ones
_CONFIG = ConfigDict(arbitrary_types_allowed=True)
_RULE, _KIND = "rule", "kind"  # kinds of pydantic errors made here: a value out of bounds, a wrong type

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlong = 30


def shown(value: Any) -> str:
    """A value for a message: its repr, cut where it is long, on one line and encodable."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of {int(value).bit_length()} bits"
    try:
        text = _short.repr(value)
    except Exception:  # a repr of somebody else's class may raise anything
        text = f"an object of type {type(value).__name__}"
    return " ".join(text.encode("utf-8", errors="backslashreplace").decode().split())


# -- rules for annotations --------------------------------------------------------------------------------------------


def rule(allows: Callable[[Any], bool], says: str) -> Any:
    """Metadata for `Annotated`: a value must satisfy `allows`; the message reads "NAME must `says`, got VALUE"."""

    def check(value: Any, inner: Callable[[Any], Any]) -> Any:
        value = inner(value)
        if value is not None and not allows(value):
            raise PydanticCustomError(_RULE, "{says}", {"says": says})
        return value

    return WrapValidator(check)


def at_least(lowest: float) -> Any:
    """The number must be `lowest` or above."""
    return rule(lambda value: value >= lowest, f"be at least {lowest}")


def between(lowest: float, highest: float) -> Any:
    """The number must lie from `lowest` to `highest`, both included."""
    return rule(lambda value: lowest <= value <= highest, f"be from {lowest} to {highest}")


def converted(convert: Callable[[Any], Any], *kinds: type) -> Any:
    """Metadata for `Annotated`: what `convert` makes of a value of these `kinds`; its errors are whole messages."""

    def apply(value: Any) -> Any:
        if kinds and not isinstance(value, kinds):
            raise _refuse()
        try:
            return convert(value)
        except QuietStarError as error:
            kind = "mistyped" if isinstance(error, WrongType) else "told"
            raise PydanticCustomError(kind, "{says}", {"says": str(error)}) from error

    return PlainValidator(apply)


def any_text() -> Any:
    """Metadata for `Annotated[str, ...]`: text with halves of surrogate pairs too, where the function replaces them."""

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise _refuse()
        return value

    return PlainValidator(check)


def any_whole() -> Any:
    """Metadata for `Annotated[int, ...]`: whole numbers of any size."""

    def check(value: Any) -> int:
        if isinstance(value, bool):
            raise _refuse()
        try:
            return operator.index(value)
        except (TypeError, RuntimeError, ValueError) as error:
            raise _refuse() from error

    return PlainValidator(check)


def of_numbers() -> Any:
    """Metadata for `Annotated[Mapping[str, float], ...]`: every value must be a number."""

    def numbers(value: Any) -> bool:
        return all(isinstance(one, (int, float)) and math.isfinite(one) for one in value.values())

    return rule(numbers, "hold numbers")


def one_or_more() -> Any:
    """Metadata for `Annotated[Sequence[str], ...]`: a single text stands for a list of one."""
    return BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)


# -- what a plain annotation means ------------------------------------------------------------------------------------


def _refuse() -> PydanticCustomError:
    return PydanticCustomError(_KIND, "kind")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        raise _refuse()
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise _refuse() from error
    if not -INT64 <= number < INT64:
        raise PydanticCustomError(_RULE, "{says}", {"says": "be a whole number of at most 64 bits"})
    return number


def _real(value: Any) -> float:
    if isinstance(value, (bool, str, bytes)) or type(value).__name__ == "bool_" or not hasattr(value, "__float__"):
        raise _refuse()
    try:
        number = float(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise _refuse() from error
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PydanticCustomError(_RULE, "{says}", {"says": "be a finite number"})
    return number


def _truth(value: Any) -> bool:
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise _refuse()


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise _refuse()
    try:
        value.encode()
    except UnicodeEncodeError as error:
        says = (
            f"be Unicode text: character {error.start} is half of a surrogate pair; decode it again with "
            'errors="replace"'
        )
        raise PydanticCustomError(_RULE, "{says}", {"says": says}) from error
    return value


def _path(value: Any) -> Any:
    if isinstance(value, bytes) or not isinstance(value, (str, os.PathLike)):
        raise _refuse()
    try:
        usable(os.fspath(value))
    except QuietStarError as error:
        raise PydanticCustomError("told", "{says}", {"says": str(error)}) from error
    return value


def usable(name: str | bytes | os.PathLike[str], what: str = "the file name") -> Path:
    """A file's name as a path with ~ put in; the file need not exist.

    Raises:
        QuietStarError: no file can have this name (empty, NUL, not UTF-8, too long, an unknown ~user).
    """
    try:
        text = os.fspath(name)
        if isinstance(text, bytes):
            text = text.decode()
        if not text:
            raise QuietStarError(f"{what} must not be empty")
        if "\0" in text:
            raise QuietStarError(f"{what} {shown(text)} contains a NUL character")
        text.encode()
        path = Path(text).expanduser()
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except UnicodeError as error:
        raise QuietStarError(f"{what} {shown(name)} is not UTF-8; rename the file") from error
    except RuntimeError as error:  # what expanduser raises
        raise QuietStarError(f"{what} {shown(name)} names the home of an unknown user; write out the folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QuietStarError(f"{what} {shown(name)} cannot be used: {reason}") from error
    return path


def _sequence(value: Any, inner: Callable[[Any], Any]) -> Any:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise _refuse()
    try:
        items = list(value)
    except (TypeError, RuntimeError) as error:  # a tensor without dimensions is no sequence
        raise _refuse() from error
    return inner(items)


def _instance(*kinds: type) -> Any:
    def check(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise _refuse()
        return value

    return Annotated[Any, PlainValidator(check)]


_PLAIN: dict[Any, Any] = {
    int: Annotated[int, PlainValidator(_whole)],
    float: Annotated[float, PlainValidator(_real)],
    bool: Annotated[bool, PlainValidator(_truth)],
    str: Annotated[str, PlainValidator(_string)],
    Path: Annotated[Any, PlainValidator(_path)],
}


def _meaning(annotation: Any) -> Any:
    """An annotation as pydantic is to read it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty, None, type(None), object):
        return annotation if annotation is not inspect.Parameter.empty else Any
    if isinstance(annotation, TypeVar):
        return Any
    if origin is Annotated:
        return Annotated.__class_getitem__((_meaning(parts[0]), *parts[1:]))  # type: ignore[attr-defined]
    if origin in (Union, types.UnionType):
        if Path in parts:  # a name of a file, as text or as a path
            parts = tuple(part for part in parts if part is not str)
        return Union[tuple(_meaning(part) for part in parts)]  # noqa: UP007
    if origin is Literal:
        return annotation
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin in (list, tuple, set, frozenset) or (origin is not None and origin is Sequence):
        element = _meaning(parts[0]) if parts else Any
        if origin is tuple and not (len(parts) == 2 and parts[1] is Ellipsis):
            return annotation if not parts else Annotated[Any, _of_length(tuple(map(_meaning, parts)))]
        return Annotated[list[element], WrapValidator(_sequence)]  # type: ignore[valid-type]
    if origin in (dict, Mapping) and parts and (get_origin(parts[1]) or parts[1] not in (float, Any)):
        return Annotated[Any, PlainValidator(_mapping(_meaning(parts[1])))]
    if origin in (Iterable, Iterator) and parts:
        return Annotated[Any, PlainValidator(_lazily(_meaning(parts[0]), annotation))]
    if origin is not None and isinstance(origin, type):
        return _instance(origin)
    if annotation is Callable or not isinstance(annotation, type) or getattr(annotation, "_is_protocol", False):
        return Any
    return _instance(annotation)


def _mapping(element: Any) -> Callable[[Any], Any]:
    """Checks the values of a mapping; numbers in it may be NaN, as measured ones are."""
    adapter = TypeAdapter(element, config=_CONFIG)

    def check(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _refuse()
        for one in value.values():
            adapter.validate_python(one)
        return value

    return check


def _lazily(element: Any, annotation: Any) -> Callable[[Any], Any]:
    """Checks the elements of an iterable as they are fetched."""
    parameter = _Parameter(get_args(annotation)[0], None if element is Any else TypeAdapter(element, config=_CONFIG))

    def check(value: Any) -> Any:
        if isinstance(value, (str, bytes)):
            raise _refuse()
        try:
            return _Each(iter(value), parameter)
        except TypeError as error:
            raise _refuse() from error

    return check


class _Each:
    """An iterator whose elements are checked one by one."""

    def __init__(self, values: Iterator[Any], parameter: _Parameter) -> None:
        self._values, self._parameter = values, parameter

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._parameter.take("an element", next(self._values))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._values, name)  # close() of a generator reaches it


def _of_length(parts: tuple[Any, ...]) -> Any:
    adapters = [TypeAdapter(part, config=_CONFIG) for part in parts]

    def check(value: Any) -> Any:
        if not isinstance(value, (tuple, list)) or len(value) != len(adapters):
            raise _refuse()
        return tuple(adapter.validate_python(one) for adapter, one in zip(adapters, value, strict=True))

    return PlainValidator(check)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "the name of a file",
}
_WORDS |= {None: "None", type(None): "None", Any: "anything"}


def _words(annotation: Any) -> str:
    """What an annotation allows, for a message."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(parts[0])
    if origin in (Union, types.UnionType):
        if Path in parts:
            parts = tuple(part for part in parts if part is not str)
        ways = list(dict.fromkeys(map(_words, parts)))
        return " or ".join(ways) if len(ways) < 3 else ", ".join(ways[:-1]) + " or " + ways[-1]
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin in (list, Sequence, set, frozenset, Iterable, Iterator) and parts:
        return f"a list of {_words(parts[0])}"
    if origin is tuple and parts:
        return f"{len(parts)} values" if parts[-1] is not Ellipsis else f"a list of {_words(parts[0])}"
    if origin is not None and origin is not Callable:
        return f"a {origin.__name__}" if isinstance(origin, type) else str(origin)
    return "a function" if "Callable" in str(annotation) else f"a {getattr(annotation, '__name__', annotation)}"


def _line(name: str, annotation: Any, value: Any, found: Sequence[Mapping[str, Any]]) -> QuietStarError:
    """The one line about a value that does not fit, from pydantic's errors about it."""
    for kind, raised in (("told", QuietStarError), ("mistyped", WrongType)):
        if told := [one["msg"] for one in found if one["type"] == kind]:
            return raised(told[0])
    rules = [one for one in found if one["type"] == _RULE]
    if rules:
        inside = [part for part in rules[0]["loc"] if isinstance(part, int)]
        where = f"item {inside[-1] + 1} of {name}" if inside else name
        item = value[inside[-1]] if inside and isinstance(value, (list, tuple)) else value
        return QuietStarError(f"{where} must {rules[0]['msg']}, got {shown(item)}")
    return WrongType(f"{name} must be {_words(annotation)}, got {shown(value)}")


# -- functions --------------------------------------------------------------------------------------------------------


class _Names(dict[str, Any]):
    """Names of annotations; one that is known to type checkers only stands for anything."""

    def __init__(self, module: Mapping[str, Any]) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        import quietstar

        for place in (self.module, vars(builtins)):
            if name in place:
                return place[name]
        return getattr(quietstar, name) if name in quietstar.__all__ else Any


@dataclass
class _Parameter:
    annotation: Any
    adapter: TypeAdapter[Any] | None

    @classmethod
    def of(cls, annotation: Any) -> _Parameter:
        meaning = _meaning(annotation)
        return cls(annotation, None if meaning is Any else TypeAdapter(meaning, config=_CONFIG))

    def take(self, name: str, value: Any) -> Any:
        if self.adapter is None:
            return value
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            raise _line(name, self.annotation, value, [dict(one) for one in found]) from error


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, as far as they are known when the program runs."""
    module = vars(sys.modules[function.__module__])
    return typing.get_type_hints(function, localns=cast(dict[str, Any], _Names(module)), include_extras=True)


class _Checker:
    """Checks the arguments of one function; what it needs is made at the first call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.name = function, function.__name__
        self.signature: inspect.Signature | None = None
        self.parameters: dict[str, _Parameter] = {}

    def _prepare(self) -> inspect.Signature:
        found = hints(self.function)
        signature = inspect.signature(self.function)
        for name, parameter in signature.parameters.items():
            default = parameter.default
            annotation = found.get(name, Any)
            if get_origin(annotation) is Unpack:  # a TypedDict of options, for type checkers; whoever takes them checks
                annotation = Any
            if default is None:
                annotation = Union[annotation, None]  # noqa: UP007
            self.parameters[name] = _Parameter.of(annotation)
        self.signature = signature
        return signature

    def bind(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> inspect.BoundArguments:
        signature = self.signature or self._prepare()
        try:
            bound = signature.bind(*arguments, **keywords)
        except TypeError as error:
            raise WrongType(self._misfit(signature, keywords, str(error))) from None
        for name, value in bound.arguments.items():
            parameter = self.parameters[name]
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(parameter.take(name, one) for one in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {key: parameter.take(key, one) for key, one in value.items()}
            elif value is not signature.parameters[name].default:
                bound.arguments[name] = parameter.take(name, value)
        return bound

    def _misfit(self, signature: inspect.Signature, keywords: Mapping[str, Any], says: str) -> str:
        known = [name for name in signature.parameters if name not in ("self", "cls")]
        unknown = [name for name in keywords if name not in signature.parameters]
        called = "" if self.name == "__init__" else f" of {self.name}"
        if unknown:
            return unknown_option(unknown[0], known, called)
        return f"{says}{called}; arguments: {', '.join(known)}"


def unknown_option(name: str, known: Iterable[str], where: str = "") -> str:
    """The message about an option that does not exist, with the most similar one that does.

    >>> unknown_option("sead", ["seed", "stop"], " of generate")
    "unknown option 'sead' of generate; did you mean 'seed'? allowed: seed, stop"
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown option {name!r}{where}; {hint}allowed: {', '.join(known)}"


def checked(what: _Function) -> _Function:
    """Check every call of a function, or of all public methods of a class, against the annotations.

    >>> @checked
    ... def repeat(word: str, times: Annotated[int, at_least(1)]) -> str:
    ...     return word * times
    >>> repeat("ab", 2)
    'abab'
    >>> repeat("ab", 0)
    Traceback (most recent call last):
    quietstar.errors.QuietStarError: times must be at least 1, got 0
    >>> repeat("ab", 1.5)
    Traceback (most recent call last):
    quietstar.errors.WrongType: times must be a whole number, got 1.5

    Raises (the wrapped function):
        WrongType: an argument of the wrong type, a missing or an unknown one.
        QuietStarError: a value that is not allowed.
    """
    if isinstance(what, type):
        return cast(_Function, _checked_class(what))
    checker = _Checker(what)

    @functools.wraps(what)
    def call(*arguments: Any, **keywords: Any) -> Any:
        bound = checker.bind(arguments, keywords)
        return what(*bound.args, **bound.kwargs)

    call.__quietstar_checked__ = True  # type: ignore[attr-defined]
    return cast(_Function, call)


def _checked_class(cls: _Class) -> _Class:
    """A class whose constructor and public methods check their arguments."""
    for name, member in list(vars(cls).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(member, (classmethod, staticmethod)):
            setattr(cls, name, type(member)(checked(member.__func__)))
        elif inspect.isfunction(member) and not hasattr(member, "__quietstar_checked__"):
            setattr(cls, name, checked(member))
    return cls


# -- settings ---------------------------------------------------------------------------------------------------------


@dataclass_transform(field_specifiers=(field,))
def settings(cls: _Class) -> _Class:
    """A dataclass of settings as a pydantic dataclass; a wrong field is one line, as in `checked`."""
    module = vars(sys.modules[cls.__module__])
    raw = {
        name: eval(text, cast(dict[str, Any], dict(module))) if isinstance(text, str) else text
        for name, text in cls.__annotations__.items()
    }
    cls.__annotations__ = {name: _meaning(annotation) for name, annotation in raw.items()}
    made = pydantic_dataclass(config=ConfigDict(arbitrary_types_allowed=True, validate_assignment=False))(cls)
    validate = made.__init__

    @functools.wraps(validate)
    def init(self: Any, *arguments: Any, **keywords: Any) -> None:
        if unknown := [name for name in keywords if name not in raw]:
            raise WrongType(unknown_option(unknown[0], raw))
        given = dict(zip(raw, arguments, strict=False)) | keywords
        try:
            validate(self, *arguments, **keywords)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            if isinstance(own := first.get("ctx", {}).get("error"), QuietStarError):  # of __post_init__
                raise own from None
            name = str(first["loc"][0]) if first["loc"] else ""
            found = error.errors(include_url=False, include_input=False)
            mine = [{**one, "loc": one["loc"][1:]} for one in found if one["loc"][:1] == first["loc"][:1]]
            raise _line(name, raw.get(name, Any), given.get(name), mine) from error

    made.__init__ = init  # type: ignore[method-assign, assignment]
    return cast(_Class, made)
