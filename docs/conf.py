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
napoleon_use_rtype = False


FIELD = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*) : (.+)")
FIELDS = ("Parameters", "Attributes", "Returns")


def parted(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make of this package's docstrings what napoleon reads.

    What follows ``name :`` goes on a line of its own, as it is no type. A paragraph that follows a section, as
    "Raises ValueError ..." does, goes before it, as numpydoc ends a section with the next one only. The first line of
    a property says no type either.
    """
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " \N{EN DASH} ", 1) if "`" not in lines[0].split(": ")[0] else lines[0]
    section, first, stray, out = "", 0, False, []
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if after and set(after) == {"-"}:
            section, first, stray = line, len(out), False
        match = FIELD.fullmatch(line) if section in FIELDS else None
        headed = line == section or (line and set(line) == {"-"})
        if section in FIELDS and not before and line and not line.startswith(" ") and not match and not headed:
            stray = True
        if stray:
            out.insert(first, line)
            first += 1
        elif match:
            out += [f"{match[1]} :" if section == "Returns" else match[1], f"    {match[2]}"]
        else:
            out.append(line)
    lines[:] = out


def setup(app: object) -> None:
    """Connect :func:`parted` before napoleon, which reads what it leaves."""
    app.connect("autodoc-process-docstring", parted, priority=400)  # type: ignore[attr-defined]
