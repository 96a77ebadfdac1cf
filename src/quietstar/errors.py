"""The errors this package raises for a person to read: each is one line that says what, where and what next."""


class QuietStarError(ValueError):
    """A wrong value, file or request. The command line prints its text without a traceback and exits with 2."""


class WrongType(QuietStarError, TypeError):
    """An argument of the wrong type, missing, or unknown; also a `TypeError`, as Python itself would raise."""


class UnsupportedModel(QuietStarError):
    """A model family the rows attention cannot serve exactly, named with the reason."""
