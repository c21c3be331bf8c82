"""How Sphinx builds the site from the Markdown pages here: ``make docs``. The reference is made first, from the code."""

from __future__ import annotations

import sys
from importlib.metadata import version as version_of
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import make_reference  # noqa: E402

make_reference.main()

project = "AltGrad"
author = "The AltGrad authors"
copyright = author
version = release = version_of("altgrad")
language = "en"

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "pictures", "screens"]
nitpicky = True
# Types in signatures are text: nothing here documents torch, pathlib or what is private.
nitpick_ignore_regex = [("py:.*", ".*")]
myst_enable_extensions = ["colon_fence"]  # the reference uses it; pages by hand are CommonMark
myst_heading_anchors = 4
highlight_language = "none"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = "AltGrad"
html_static_path = ["_static"]
html_css_files = ["altgrad.css"]
html_logo = "_static/altgrad.svg"
html_favicon = "_static/altgrad.svg"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#00507d",
        "color-brand-content": "#0063a0",
        "color-brand-visited": "#0063a0",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7cc4f0",
        "color-brand-content": "#7cc4f0",
        "color-brand-visited": "#7cc4f0",
    },
}
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def readme_is_index(app, name, source):
    """On the site the landing page stands where the README stands in a checkout."""
    source[0] = source[0].replace("](../README.md", "](index.md")


def setup(app):
    """Connect what changes the pages on their way in."""
    app.connect("source-read", readme_is_index)
