"""The command `quietstar`, and `python -m quietstar`: from the first import on, Ctrl-C is a line and no traceback."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command, see `quietstar.cli.main`."""
    try:
        from quietstar.cli import main as commands
    except KeyboardInterrupt:
        print("quietstar: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    commands.main()


if __name__ == "__main__":
    main()
