"""How Sphinx builds these pages: make docs."""

from __future__ import annotations

from faiss_qama import __version__

project = "faiss-qama"
author = "The faiss-qama developers"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_show_copyright = False
html_title = f"faiss-qama {release}"
highlight_language = "none"  # blocks that say nothing are pictures and output

myst_heading_anchors = 4  # links to headings are checked too
nitpicky = True

# Annotations of dataclasses, which lead nowhere here; what docstrings refer to must be there.
nitpick_ignore_regex = [("py:class", r"(numpy|collections|faiss_qama)\..*|Path|Split|os\.PathLike")]
autodoc_typehints = "none"  # the docstrings have shapes, dtypes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_param = False  # types are words, such as ndarray of shape (n, d), and no references
napoleon_use_rtype = False
