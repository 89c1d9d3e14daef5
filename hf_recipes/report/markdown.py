"""Blocks to GitHub's Markdown: for a pull request, and a run's report.md. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hf_recipes.report.blocks import Block, Code, Document, Figure, Heading, Note, Paragraph, Table, Verdict, cell

OURS = "Made with hf_recipes"  # pipeline/output_dir.py knows our files by it


def markdown(document: Document, plots: str = "plots") -> str:
    """`plots`: the folder of the figures' files, relative to the report's."""
    parts = [f"# {_escaped(document.title)}"]
    for block in document.blocks:
        parts.append("\n".join(_lines(block, plots)))
    return "\n\n".join([*parts, OURS]) + "\n"


def _lines(block: Block, plots: str) -> Iterator[str]:
    if isinstance(block, Heading):
        yield f"{'#' * block.level} {_escaped(block.text)}"
    elif isinstance(block, Paragraph):
        yield _escaped(block.text)
    elif isinstance(block, Note):
        yield f"> {_escaped(block.text)}"
    elif isinstance(block, Verdict):
        yield f"- {_escaped(block.text)}."
    elif isinstance(block, Figure):
        yield f"![{_escaped(block.caption)}]({plots}/{block.name}.svg)"
    elif isinstance(block, Code):
        fence = "`" * max(3, _longest_ticks(block.text) + 1)
        yield from _folded(block.folded, [fence, block.text.rstrip("\n"), fence])
    elif isinstance(block, Table):
        yield from _folded(block.folded, _table(block))


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["<details><summary>" + _escaped(title) + "</summary>", "", *lines, "", "</details>"] if title else lines


def _table(table: Table) -> list[str]:
    found = ["| " + " | ".join(_in_cell(name) for name in table.head) + " |", "|" + "---|" * len(table.head)]
    for row in table.rows:
        cells = [cell(one).text for one in row]
        shown = [f"`{_code(text)}`" if i in table.code and text else _in_cell(text) for i, text in enumerate(cells)]
        found.append("| " + " | ".join(shown) + " |")
    return found


def _in_cell(text: str) -> str:
    return _escaped(text).replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return text.replace("`", "'").replace("|", "\\|").replace("\n", " ")


def _escaped(text: str) -> str:
    """What Markdown would read as a tag or as emphasis stays as it is written."""
    for mark in ("\\", "<", "*", "`", "["):
        text = text.replace(mark, "\\" + mark)
    return text


def _longest_ticks(text: str) -> int:
    longest = run = 0
    for letter in text:
        run = run + 1 if letter == "`" else 0
        longest = max(longest, run)
    return longest
