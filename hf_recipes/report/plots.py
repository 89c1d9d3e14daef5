"""Plots as SVG by matplotlib, in colours that follow the reader's light or dark page.

matplotlib draws with marker colours, which become CSS variables with a value for a light page; the page sets
them (page.py), a figure's own file brings its dark values itself. The same numbers give the same file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

# marker -> (CSS variable, on a light page, on a dark page)
INK, SOFT, LINE, SHADE = "#010101", "#020202", "#030303", "#040404"
COLOURS = ("#0a0101", "#0b0101", "#0c0101", "#0d0101", "#0e0101", "#0f0101")
VARIABLES = {
    INK: ("ink", "#1d2129", "#e4e7ec"),
    SOFT: ("soft", "#5b6270", "#9aa3b0"),
    LINE: ("line", "#d9dce1", "#363c46"),
    SHADE: ("shade", "#f4f5f7", "#1e232a"),
    COLOURS[0]: ("a", "#2f6fb0", "#6fb0f0"),
    COLOURS[1]: ("b", "#d9731a", "#f2a35c"),
    COLOURS[2]: ("c", "#3d8f45", "#74c47c"),
    COLOURS[3]: ("d", "#8a5bb0", "#bd93e0"),
    COLOURS[4]: ("e", "#b0465e", "#ea8aa0"),
    COLOURS[5]: ("f", "#3b8f8c", "#6fcac6"),
}
WIDTH = 4.6  # inches: one column of a page, and nearly a phone's
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_recipes",
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
}
FEW = 12  # points that are marked each
SMOOTHED = 400  # points of a curve that are drawn: more are averaged


def make_standalone(svg: str) -> str:
    """The SVG as a file of its own, with its dark colours."""
    names = {name: dark for name, _, dark in VARIABLES.values()}
    dark = " ".join(f"--{name}: {value};" for name, value in names.items())
    scheme = ":root { color-scheme: light dark }"  # a browser then gives the file a dark background, too
    style = f"<style>{scheme} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, svg, count=1)


@contextmanager
def _drawing(height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Any, Any, list[str]]]:
    """Yields (figure, axes, list that holds the SVG at the end). No state of pyplot's is touched."""
    import warnings

    import matplotlib
    from matplotlib.figure import Figure

    made: list[str] = []
    style: Any = {**STYLE, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Only the widths of other scripts' letters are unknown: the SVG holds text, and the browser has the letters.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height))
        yield figure, figure.subplots(rows, columns, squeeze=False, **options), made
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    made.append(_use_css_colours(buffer.getvalue()))


def _use_css_colours(text: str) -> str:
    """Marker colours to CSS variables; the size in pixels; without what stands before <svg>."""
    text = text[text.index("<svg") :].strip()
    for marker, (name, light, _) in VARIABLES.items():
        text = text.replace(marker, f"var(--{name}, {light})")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "system-ui, sans-serif")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    width, height = (float(one) * 96 / 72 for one in size.groups())
    text = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', rf'\1 width="{width:.0f}"', text, count=1)
    return re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', rf'\1 height="{height:.0f}" role="img"', text, count=1)


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], ylabel: str) -> str:
    """(step, value) of each name."""
    with _drawing(2.7) as (figure, axes, made):
        axis = axes[0][0]
        for i, (name, points) in enumerate(lines.items()):
            x, y = _thin_out(points)
            mark = "o-" if len(x) < FEW else "-"
            axis.plot(x, y, mark, markersize=4, color=COLOURS[i % len(COLOURS)], label=name)
        axis.set(xlabel="step", ylabel=ylabel)
        if len(lines) > 1:
            _legend(figure)
    return made[0]


def _legend(figure: Any) -> None:
    """Above the axes, where it hides no curve."""
    figure.legend(loc="outside upper left", fontsize=8, ncols=3, handlelength=1.5, columnspacing=1.2)


def _thin_out(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.array(points, float).reshape(-1, 2).T
    if len(x) <= SMOOTHED:
        return x, y
    edges = np.linspace(0, len(x), SMOOTHED + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / sizes, np.add.reduceat(y, edges) / sizes


def differences(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """(name, difference, low, high): each on an axis of its own around zero."""
    with _drawing(0.35 + 0.62 * len(rows), rows=len(rows)) as (_, axes, made):
        for axis, (name, value, low, high) in zip(axes[:, 0], rows, strict=True):
            reach = max(abs(value), *(abs(end) for end in (low, high) if np.isfinite(end)), 1e-12) * 1.15
            axis.axvline(0, color=SOFT, linewidth=1)
            axis.plot([low, high], [0, 0], color=COLOURS[0], linewidth=3, solid_capstyle="round")
            axis.plot([value], [0], "o", color=COLOURS[0], markersize=7)
            axis.set(xlim=(-reach, reach), ylim=(-1, 1), yticks=[])
            axis.set_title(name, loc="left", fontsize=9, color=INK)
            axis.spines["left"].set_visible(False)
            axis.locator_params(axis="x", nbins=5)
    return made[0]


def reliability(bins: Mapping[str, Sequence[tuple[float, float, int]]]) -> str:
    """(confidence, accuracy, examples) of each bin and run: on the diagonal, a run knows how sure it may be."""
    with _drawing(3.4) as (figure, axes, made):
        axis = axes[0][0]
        axis.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=":")
        for i, (name, rows) in enumerate(bins.items()):
            sure, right, size = np.array(rows, float).reshape(-1, 3).T
            colour = COLOURS[i % len(COLOURS)]
            axis.plot(sure, right, color=colour, label=name)
            axis.scatter(sure, right, s=8 + 80 * size / max(size.max(), 1), color=colour)
        least = min((row[0] for rows in bins.values() for row in rows), default=0.0)
        axis.set(xlabel="confidence", ylabel="share that is right", xlim=(max(0, least - 0.05), 1.02), ylim=(0, 1.03))
        if len(bins) > 1:
            _legend(figure)
    return made[0]


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """(K, K) counts, rows gold: shares of a row as shades, the counts in them."""
    from matplotlib.colors import to_rgba

    size = len(names)
    with _drawing(0.9 + min(0.34 * size + 0.6, 4.2)) as (_, axes, made):
        axis = axes[0][0]
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for i in range(size):
            for j in range(size):
                shade = (*to_rgba(COLOURS[0])[:3], 0.06 + 0.7 * float(share[i, j]))
                axis.fill([j - 0.5, j + 0.5, j + 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5], color=shade, lw=0)
                axis.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", fontsize=8 if size < 9 else 6)
        axis.set(xticks=range(size), yticks=range(size), xlabel="predicted", ylabel="gold")
        axis.set_xticklabels(names, rotation=0 if size < 4 else 40, ha="center" if size < 4 else "right")
        axis.set_yticklabels(names)
        axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
        axis.grid(False)
    return made[0]


def parts(rows: Sequence[tuple[str, float]], xlabel: str) -> str:
    """Horizontal bars, the first on top."""
    with _drawing(0.6 + 0.26 * len(rows)) as (_, axes, made):
        axis = axes[0][0]
        names, values = [name for name, _ in rows], [value for _, value in rows]
        axis.barh(range(len(rows)), values, color=COLOURS[0], height=0.7)
        axis.set(yticks=range(len(rows)), xlabel=xlabel, ylim=(len(rows) - 0.4, -0.6))
        axis.set_yticklabels(names)
        axis.grid(False, axis="y")
    return made[0]
