"""Text of a model card: names that cannot become HTML or a link, numbers, tables. Pure: values in, Markdown out."""

from __future__ import annotations

import math
import re
from typing import Any

from hf_recipes.common.text import GIB


def escape_inline(text: Any) -> str:
    """A name as one line of Markdown that is shown as it is: no HTML, no link, no code."""
    plain = " ".join(str(text).split()).replace("<", "&lt;")
    return re.sub(r"([\[\]`\\])", r"\\\1", plain)


def format_code(text: str) -> str:
    """A name in a code span, whatever backticks it has."""
    plain = " ".join(text.split())
    if "`" not in plain:
        return f"`{plain}`"
    fence = "`" * (1 + max(len(run) for run in re.findall(r"`+", plain)))
    return f"{fence} {plain} {fence}"


def format_number(value: float | None) -> str:
    """1234567 -> "1,234,567"; 0.94671 -> "0.9467"; 1992.3 -> "1,992"; nan -> "nan"; None -> ""."""
    if value is None:
        return ""
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    hours, rest = divmod(round(value), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def format_gib(value: int | None) -> str:
    return f"{value / GIB:.2f} GiB" if value else ""


def _cell(value: str) -> str:
    """What a table may hold: one line without HTML."""
    text = " ".join(str(value).split())
    for sign, shown in (("|", "\\|"), ("<", "&lt;")):
        text = text.replace(sign, shown)
    return text


def format_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)
