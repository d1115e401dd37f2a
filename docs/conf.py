"""Sphinx's configuration: ``make docs`` builds the site into build/site, and fails on a broken link or missing name.

The source folder is the repository's root, not docs/: so a link in a page means the same on the site as in the
repository, also one to CHANGELOG.md or to an example. Nothing is fetched, neither by the build nor by who reads.
"""

from __future__ import annotations

from pathlib import Path

from sphinx.application import Sphinx

project = "celery-etcdlock"
copyright = "the authors of celery-etcdlock"

root_doc = "docs/index"
include_patterns = ["docs/**.md", "benchmarks/README.md", "examples/README.md", "*.md"]
exclude_patterns = [".*", "build", "dist", "**/node_modules"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

# Pages are Markdown as GitHub reads it. Links to files that are no pages become downloads.
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]

# The API reference is made of the docstrings, which quote names by one or by two backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80

# A missing name is an error: of ours. Those of others can't be looked up without a network.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!celery_etcdlock).*"),
    (r"py:.*", r"celery_etcdlock\.(tasks\.decorator\.)?[PR]"),
]

html_theme = "furo"
html_title = "celery-etcdlock"
html_copy_source = False
html_css_files = ["site.css"]
html_static_path = ["static"]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

_REDIRECT = """<!doctype html>
<meta charset="utf-8">
<title>celery-etcdlock</title>
<meta http-equiv="refresh" content="0; url=docs/index.html">
<a href="docs/index.html">The documentation</a>
"""


def setup(app: Sphinx) -> None:
    app.connect("build-finished", _first_page)


def _first_page(app: Sphinx, error: Exception | None) -> None:
    """Whoever opens the site's folder is led to its first page."""
    if error is None and app.builder.format == "html":
        Path(app.outdir, "index.html").write_text(_REDIRECT, "utf-8")
