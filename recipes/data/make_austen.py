"""Writes austen/*.txt from the R data of Debian's r-cran-janeaustenr: one paragraph a line, a blank line between two.

    apt-get download r-cran-janeaustenr && dpkg-deb -x r-cran-janeaustenr_*.deb janeaustenr
    python recipes/data/make_austen.py janeaustenr

Taken out: title pages, chapter headings, editors' remarks in brackets, rows of asterisks, and the underscores that mark
italics. Nothing else is changed, so a paragraph reads as the edition has it.
"""

from __future__ import annotations

import re
import struct
import sys
import zlib
from pathlib import Path

NOVELS = {  # R's name -> ours, in the order in which R's file holds them; None is read over
    "emma": "emma",
    "mansfieldpark": None,
    "northangerabbey": None,
    "persuasion": "persuasion",
    "prideprejudice": "pride_and_prejudice",
    "sensesensibility": "sense_and_sensibility",
}
DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
NOT_PROSE = re.compile(r"(?i)(chapter|volume) [ivxl\d]+|finis|the end|[* ]+|\[.*\]")
R_STRING_VECTOR, HEADER_BYTES = 16, 14


def r_lines(vector: bytes) -> list[str]:
    """The strings of one R character vector, serialised as XDR version 3."""
    at = (
        HEADER_BYTES + 4 + struct.unpack_from(">I", vector, HEADER_BYTES)[0]
    )  # the header ends with the encoding's name
    kind, count = struct.unpack_from(">II", vector, at)
    assert kind == R_STRING_VECTOR, f"an R character vector has type {R_STRING_VECTOR}, not {kind}"
    at, lines = at + 8, []
    for _ in range(count):
        size = struct.unpack_from(">I", vector, at + 4)[0]
        lines.append(vector[at + 8 : at + 8 + size].decode())
        at += 8 + size
    return lines


def r_database(rdb: bytes) -> list[list[str]]:
    """Every vector of an R lazy-load database: a length of 4 bytes, then that much data under zlib, again and again."""
    found, at = [], 0
    while at < len(rdb):
        unpacker = zlib.decompressobj()
        vector = unpacker.decompress(rdb[at + 4 :])
        assert len(vector) == struct.unpack_from(">I", rdb, at)[0]
        at = len(rdb) - len(unpacker.unused_data)
        found.append(r_lines(vector))
    return found


def paragraphs(lines: list[str]) -> list[str]:
    """Lines of a printed page to whole paragraphs, from the first chapter on."""
    start = next(i for i, line in enumerate(lines) if re.match(r"(?i)chapter (1|i)$", line))
    blocks = re.split(r"\n\s*\n", "\n".join(lines[start:]).replace("_", ""))
    clean = (" ".join(block.split()) for block in blocks)
    return [block for block in clean if block and not NOT_PROSE.fullmatch(block)]


def main(unpacked: str) -> None:
    folder = Path(__file__).parent / "austen"
    folder.mkdir(exist_ok=True)
    vectors = r_database((Path(unpacked) / DATA).read_bytes())
    for name, lines in zip(NOVELS.values(), vectors, strict=True):
        if name is not None:
            text = paragraphs(lines)
            (folder / f"{name}.txt").write_text("\n\n".join(text) + "\n", encoding="utf-8")
            print(f"{name}: {len(text)} paragraphs, {sum(map(len, text)):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python recipes/data/make_austen.py FOLDER (where dpkg-deb -x put r-cran-janeaustenr)")
    main(sys.argv[1])
