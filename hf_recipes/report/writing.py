"""A report's files: NAME.md with its plots, and NAME.html; each is complete or absent."""

from __future__ import annotations

from pathlib import Path

from hf_recipes.common.files import put
from hf_recipes.report.blocks import Document, Figure
from hf_recipes.report.markdown import markdown
from hf_recipes.report.page import page


def write_report_files(document: Document, folder: Path, name: str) -> list[Path]:
    """Writes NAME.md, NAME.html and NAME-plots/*.svg; returns the two files. Raises OSError."""
    from hf_recipes.report import plots

    drawn = [block for block in document.blocks if isinstance(block, Figure)]
    beside = folder / f"{name}-plots"
    folder.mkdir(parents=True, exist_ok=True)
    if drawn:
        beside.mkdir(exist_ok=True)
    for old in beside.glob("*.svg"):
        old.unlink()
    for figure in drawn:
        (beside / f"{figure.name}.svg").write_text(plots.make_standalone(figure.svg), encoding="utf-8")
    written = []
    for ending, text in ((".md", markdown(document, beside.name)), (".html", page(document))):
        written.append(put(folder / f"{name}{ending}", text))
    return written
