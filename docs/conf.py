"""Settings of the documentation site: ``sphinx-build -W --keep-going -c docs . site``.

The source folder is the root of the repository, so that links to CHANGELOG.md or to the tables of experiments/ are the
same on the site and in a checkout.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ercfusion import __version__

project = "ercfusion"
author = "The ercfusion developers"
copyright = author
version = release = __version__
language = "en"

root_doc = "docs/index"
highlight_language = "none"
smartquotes = False  # they turn -- into a dash
include_patterns = [
    "docs/**",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
    "experiments/*.md",
    "experiments/*/*.md",
]
exclude_patterns = ["docs/computed", "docs/site.py", "**/records", "**/.*"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "docs.site",
]

# Pages
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "dollarmath"]
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # a loaded machine; else each cell takes seconds
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings of other libraries, with paths of this machine

# API reference
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shapes", ("Class attributes", "params_style"), ("Settings", "params_style")]
python_maximum_signature_line_length = 88

# Appearance
html_theme = "pydata_sphinx_theme"
html_title = "ercfusion"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_static/root"]
html_show_sourcelink = False
html_copy_source = False
templates_path = ["_templates"]
html_sidebars = {"**": ["contents.html"]}
html_theme_options = {
    "navbar_center": [],
    "show_nav_level": 1,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}
copybutton_exclude = ".linenos, .gp, .go"
