"""Blocks to one HTML page: no network, no file beside it, light and dark, tables that sort, readable on a phone.

The template is page.html.j2; Jinja2 escapes all text. A policy in the page forbids it to load anything at all.
"""

from __future__ import annotations

from importlib.resources import files

from hf_recipes.report.blocks import Document, cell
from hf_recipes.report.plots import VARIABLES

# beside the plots' own: (CSS variable, on a light page, on a dark page)
PAGE = (
    ("paper", "#fff", "#15181d"),
    ("good", "#1a7f37", "#4cc26b"),
    ("bad", "#c4281c", "#ff7b6e"),
    ("even", "#7a5c00", "#d9b03c"),
)


def page(document: Document) -> str:
    """The page's text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    environment.tests["of"] = lambda block, name: type(block).__name__ == name
    colours = [*PAGE, *VARIABLES.values()]
    template = files("hf_recipes.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(document=document, colours=colours) + "\n"
