"""The documentation site: `make docs`, into build/site. Needs the extra docs, and no network.

The pages are Markdown. Those of operations/ and reference/ are made from the package at each build (`parts/`). English
is written here; Chinese is in locale/zh_CN, and `python docs/untranslated.py` counts what is missing there. The
Chinese site is the same with -D language=zh_CN, in the folder zh of the other. With -A both=1 each page leads to the
same one in the other language.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from parts import operations, reference  # noqa: E402

import tinygpt  # noqa: E402

operations.write(DOCS / "operations")
reference.write(DOCS / "reference")

project = "tinygpt"
author = "The tinygpt authors"
copyright = author
version = release = tinygpt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "parts.extension"]
exclude_patterns = ["worked", "parts", "locale", "_static", "_templates"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
smartquotes = False  # (..., C) is a shape
html_math_renderer = "mathml"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_type_aliases = {
    name: name for name in ("Array", "TensorLike", "Ids", "Axis", "Shape", "Sizes", "DType", "DTypeLike")
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries = False

language = "en"
locale_dirs = ["locale"]
gettext_compact = False
gettext_uuid = False
gettext_location = False  # a line more on a page is no change of its messages

html_theme = "furo"
html_title = "tinygpt"
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html", "sidebar/language.html", "sidebar/search.html", "sidebar/scroll-start.html",
        "sidebar/navigation.html", "sidebar/scroll-end.html",
    ]
}  # fmt: skip
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
