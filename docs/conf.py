"""The documentation site: `make site` builds it from the Markdown pages and the docstrings, warnings as errors."""

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
autodoc_mock_imports: list[str] = []
autoclass_content = "class"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
nitpicky = False
linkcheck_timeout = 10
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
