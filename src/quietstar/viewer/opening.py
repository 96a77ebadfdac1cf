"""Opening the page in the browser without showing its token to other accounts of this machine.

A browser is started with an address on its command line, which every account can read (`ps`). So the address on the
command line is that of a file which only this account can read, and which redirects to the page.
"""

from __future__ import annotations

import html
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def private_redirect(address: str) -> Iterator[Path]:
    """An HTML file of mode 0600 in a folder of mode 0700 that leads to `address`; removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="quietstar-") as folder:
        path = Path(folder) / "open.html"
        path.touch(mode=0o600)
        target = html.escape(address)
        path.write_text(
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>quietstar</title>\n'
            '<meta name="referrer" content="no-referrer">\n'
            f'<meta http-equiv="refresh" content="0; url={target}">\n<a href="{target}">quietstar</a>\n</html>\n',
            encoding="utf-8",
        )
        yield path


def open_in_browser(redirect: Path) -> bool:
    """Open such a file in the browser; False where there is none."""
    return webbrowser.open(redirect.as_uri())
