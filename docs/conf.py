"""The documentation site: `make site` builds it from the Markdown pages and the docstrings, warnings as errors."""

from typing import Any

from quietstar._version import __version__

project = "quietstar"
copyright = "the quietstar contributors, Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["default-model/**"]
html_theme = "furo"
html_title = f"quietstar {__version__}"
html_extra_path = ["default-model"]
default_role = "code"  # docstrings write `name` for code
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autoclass_content = "class"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
suppress_warnings = ["myst.header", "misc.highlighting_failure"]


def _literal_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write |x| and tables in Markdown; reStructuredText would read substitutions."""
    lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", _literal_bars)
