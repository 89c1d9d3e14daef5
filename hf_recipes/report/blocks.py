"""What a report is made of. Text is plain: each renderer escapes it its own way. Pure and light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table's cell: what is shown, and the number by which a column is sorted (None: by its text)."""

    text: str
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    text: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that must be kept in mind: set apart."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A verdict of compare/verdict.py ("better", "worse", "cannot tell", "no difference") and its sentence."""

    word: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """`code`: columns whose cells are shown as code. `folded`: behind its title, for what few want to read."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    code: frozenset[int] = field(default=frozenset())
    folded: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An SVG that plots.py drew; `name`: of its file beside a Markdown report, without the ending."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Code:
    text: str
    folded: str = ""


Block = Heading | Paragraph | Note | Verdict | Table | Figure | Code


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report."""

    title: str
    blocks: Sequence[Block]
    refresh: int | None = None  # seconds after which a browser reads the page again: of a run that is under way


def cell(value: str | Cell) -> Cell:
    """Text as a cell."""
    return value if isinstance(value, Cell) else Cell(text=value)
