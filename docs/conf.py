"""How Sphinx builds these pages: make docs."""

from __future__ import annotations

import re

from faiss_qama import __version__

project = "faiss-qama"
author = "The faiss-qama developers"
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["conf.py"]
html_theme = "furo"
html_title = f"faiss-qama {release}"
highlight_language = "none"  # blocks that say nothing are pictures and output

myst_heading_anchors = 4  # links to headings are checked too
nitpicky = True

autodoc_typehints = "none"  # the docstrings have shapes, dtypes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False


def parted(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Put what follows ``name :`` in a docstring's section on a line of its own, as numpydoc takes it for a type."""
    field = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*) : (.+)")
    section, out = "", []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and set(following) == {"-"}:
            section = line
        match = field.fullmatch(line) if section in ("Parameters", "Attributes", "Returns") else None
        typed = f"{match[1]} :" if match and section == "Returns" else match and match[1]
        out += [typed, f"    {match[2]}"] if match else [line]
    lines[:] = out


def setup(app: object) -> None:
    """Connect :func:`parted` before napoleon, which reads what it leaves."""
    app.connect("autodoc-process-docstring", parted, priority=400)  # type: ignore[attr-defined]
