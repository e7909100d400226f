"""Sphinx configuration: Markdown pages (MyST), numpydoc docstrings, examples run by sphinx-gallery.

The build needs no network. `GPVI_INTERSPHINX=1` adds links into the documentation of the packages
below gpvi, whose inventories are fetched over the network.
"""

import os
import re
from importlib.metadata import version as installed_version
from typing import Any

project = "gpvi"
author = "The gpvi developers"
copyright = author
release = installed_version("gpvi")
version = release

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_gallery.gen_gallery",
]
if os.environ.get("GPVI_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "gpytorch": ("https://docs.gpytorch.ai/en/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }

templates_path = ["_templates"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

# The pages of docs/api.md: one for each package and, from its __all__, one for each public name.
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
# Overrides without a docstring of their own would show GPyTorch's, not written for this build.
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
# The class template lists the methods; numpydoc's own list would repeat every inherited one.
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"/(?!plot_)[^/]*\.py$",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_title = f"gpvi {release}"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}


def escape_stars(text: str) -> str:
    """Escape the stars of a shape such as [S, *b, N], but not those of (*emphasised*) words."""
    is_emphasis = re.search(r"\w\*", text)
    return text if is_emphasis else re.sub(r"\*(?=\w+[,\])])", r"\\*", text)


def escape_batch_dimensions(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Keep the stars of shapes, which would open emphasis in reStructuredText."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``|`.*?`)", line)
            parts[::2] = [
                re.sub(r"[\[(][^\[\]()]*[\])]", lambda match: escape_stars(match[0]), part)
                for part in parts[::2]
            ]
            lines[number] = "".join(parts)


def skip_generated_methods(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what scikit-learn adds to estimators; its text links into its own documentation."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Any) -> None:
    """Called by Sphinx; the priority puts the hook behind numpydoc's."""
    app.connect("autodoc-skip-member", skip_generated_methods)
    app.connect("autodoc-process-docstring", escape_batch_dimensions, priority=900)
