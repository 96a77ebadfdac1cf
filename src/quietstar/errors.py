"""The errors this package raises: one line each, that states what is wrong, where, what is allowed and what to do."""


class QuietStarError(ValueError):
    """A wrong value, file or request. The command line prints its text without a traceback and exits with 2."""


class WrongType(QuietStarError, TypeError):
    """An argument of the wrong type, missing, or unknown; also a `TypeError`, as Python itself would raise."""


class UnsupportedModel(QuietStarError):
    """A model family the rows attention cannot serve exactly, named with the reason."""


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of a library's error, for use in a message of our own; its type where it has no message.

    >>> first_line(ValueError("cannot open the file\\nTraceback ..."))
    'cannot open the file'
    >>> first_line(KeyError())
    'KeyError'
    """
    lines = str(error).strip().splitlines()
    if lines and lines[0].rstrip().endswith(":"):  # it goes on
        lines[0] = " ".join(lines[:3])
    line = " ".join(lines[0].split()) if lines else type(error).__name__
    return line if len(line) <= longest else line[:longest] + "…"
