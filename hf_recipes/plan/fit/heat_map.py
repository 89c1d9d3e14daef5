"""Batch x length as a map: what fits, what is tight and what does not fit, by the curve of `plan --search`.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hf_recipes.plan.fit.show import TEXT_STYLE
from hf_recipes.plan.fit.verdict import FITS, OUT, TIGHT

MARKS = {FITS: "#", TIGHT: "+", OUT: "."}
COLOURS = {FITS: "#59a14f", TIGHT: "#edc948", OUT: "#e15759"}
WORDS = {FITS: "fits", TIGHT: "tight", OUT: "does not fit"}
CELL, LEFT, TOP = 56, 70, 60  # pixels


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """`verdicts[i][j]`: of `batches[i]` rows of `lengths[j]` tokens."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    verdicts: tuple[tuple[str, ...], ...]


def format_heat_map(found: HeatMap) -> list[str]:
    """For the terminal: a row a batch, the largest first."""
    lines = [f"  {MARKS[FITS]} fits, {MARKS[TIGHT]} tight, {MARKS[OUT]} does not fit (predicted from four traces)"]
    for rows, verdicts in zip(reversed(found.batches), reversed(found.verdicts), strict=True):
        lines.append(f"  {rows:>6} {''.join(f'{MARKS[one]:>7}' for one in verdicts)}")
    return [*lines, f"  {'':>6} {''.join(f'{length:>7}' for length in found.lengths)}"]


def svg(found: HeatMap, title: str) -> str:
    """Self-contained, readable in light and dark."""
    width, height = LEFT + CELL * len(found.lengths) + 10, TOP + 28 * len(found.batches) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(width, 480)} {height}" font-family="sans-serif"',
        ' font-size="13">',
        TEXT_STYLE,
        f'<text x="10" y="20">{escape(title)}</text>',
        f'<text x="10" y="{TOP - 14}">rows</text>',
    ]
    for row, (rows, verdicts) in enumerate(zip(reversed(found.batches), reversed(found.verdicts), strict=True)):
        y = TOP + 28 * row
        parts.append(f'<text x="{LEFT - 8}" y="{y + 18}" text-anchor="end">{rows:,}</text>')
        parts += [
            f'<rect x="{LEFT + CELL * i}" y="{y}" width="{CELL - 2}" height="26" fill="{COLOURS[one]}">'
            f"<title>{rows:,} x {length:,}: {WORDS[one]}</title></rect>"
            for i, (length, one) in enumerate(zip(found.lengths, verdicts, strict=True))
        ]
    y = TOP + 28 * len(found.batches)
    parts += [
        f'<text x="{LEFT + CELL * i + CELL // 2}" y="{y + 16}" text-anchor="middle">{length:,}</text>'
        for i, length in enumerate(found.lengths)
    ]
    parts += _legend(y + 34)
    return "\n".join([*parts, "</svg>", ""])


def _legend(y: int) -> Sequence[str]:
    found = []
    for index, (verdict, colour) in enumerate(COLOURS.items()):
        x = LEFT + 130 * index
        found.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        found.append(f'<text x="{x + 18}" y="{y + 11}">{WORDS[verdict]}</text>')
    return found
