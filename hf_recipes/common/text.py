"""How values, sizes, times and errors are written for a user."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

GIB = 2**30  # bytes
LONGEST_WORD = 200  # characters of a name that somebody may have misspelled


def format_duration(seconds: float) -> str:
    """ "2 h 40 min", "14 min", "38 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def format_bytes(size: float) -> str:
    """Bytes for a reader: "7.55 GiB", "84.0 MiB", "712 bytes"; the sign is kept."""
    for unit, scale in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= 0.1 * scale and abs(size) >= 1024:
            return f"{size / scale:,.{2 if unit == 'GiB' else 1}f} {unit}"
    return f"{size:.0f} bytes"


def join_words(words: Iterable[object]) -> str:
    """ "43", "43 and 80", "43, 80 and 90"."""
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def fill(label: str, text: str, width: int = 80) -> list[str]:
    """`label`, then the text, in lines of `width` characters; further lines begin below the text's first one."""
    import textwrap

    words = {"initial_indent": label, "subsequent_indent": " " * len(label)}
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False, **words) or [label]  # type: ignore[arg-type]


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output is none: a file or another program gets complete lines."""
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def format_columns(
    rows: Sequence[Sequence[str]], *, right: Collection[int] = (), dropped: Sequence[int] = (), width: int | None = None
) -> list[str]:
    """Aligned lines; the first row is the head. Columns of `dropped` are left out, in this order, until the lines have
    `width` characters; a last line then says which."""
    kept = list(range(len(rows[0])))
    widths = [max(len(row[i]) for row in rows) for i in kept]
    for i in dropped:
        if width is None or sum(widths[j] + 2 for j in kept) - 2 <= width:
            break
        kept.remove(i)
    lines = []
    for row in rows:
        cells = (row[i].rjust(widths[i]) if i in right else row[i].ljust(widths[i]) for i in kept)
        lines.append("  ".join(cells).rstrip())
    left_out = [rows[0][i] for i in range(len(rows[0])) if i not in kept]
    return [*lines, *([f"not shown at this width: {', '.join(left_out)}"] if left_out else [])]


def first_line(problem: BaseException) -> str:
    """An upstream error in one line."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The name that was probably meant, or "". Case, `_` and `-` are ignored. `cutoff`: as in difflib."""
    if len(word) > LONGEST_WORD:
        return ""
    from difflib import get_close_matches

    plain = {re.sub(r"[_\-\s]", "", name).lower(): name for name in names if name}
    hits = get_close_matches(re.sub(r"[_\-\s]", "", str(word)).lower(), plain, n=1, cutoff=cutoff)
    return plain[hits[0]] if hits else ""


def format_value(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, strings in quotes, in 60 characters at most."""
    text = repr(value) if isinstance(value, str) else as_yaml(value)
    return text if len(text) <= 60 else text[:57] + "..."


_KINDS = {
    "NoneType": "null",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "dict": "mapping",
}


def kind_of(value: Any) -> str:
    """What YAML calls a value's type: boolean, integer, number, string, list, mapping, null."""
    return _KINDS.get(type(value).__name__, type(value).__name__)


def a_kind_of(value: Any) -> str:
    """The same with its article: "an integer"."""
    kind = kind_of(value)
    return kind if kind == "null" else f"an {kind}" if kind == "integer" else f"a {kind}"


def as_yaml(value: Any) -> str:
    """A value as YAML would write it in one line (also valid YAML: strings are quoted where they must be)."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_yaml(str(key))}: {as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        taken = ("", "null", "true", "false", "yes", "no", "on", "off", "~")
        plain = re.fullmatch(r"[A-Za-z_./][\w./ -]*", value) and value.lower() not in taken and value == value.strip()
        return value if plain and not re.fullmatch(r"\.(inf|nan)|[._]\d.*", value.lower()) else json.dumps(value)
    return repr(value)
