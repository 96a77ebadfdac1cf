"""The errors this package raises for a person to read: each is one line that says what, where and what next."""


class QuietStarError(ValueError):
    """A wrong value, file or request. The command line prints its text without a traceback and exits with 2."""


class WrongType(QuietStarError, TypeError):
    """An argument of the wrong type, missing, or unknown; also a `TypeError`, as Python itself would raise."""


class UnsupportedModel(QuietStarError):
    """A model family the rows attention cannot serve exactly, named with the reason."""


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of what a library raised, for a line of our own; the error's kind where it says nothing."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].rstrip().endswith(":"):  # it goes on
        lines[0] = " ".join(lines[:3])
    line = " ".join(lines[0].split()) if lines else type(error).__name__
    return line if len(line) <= longest else line[:longest] + "…"
