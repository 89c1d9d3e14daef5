"""Local data files: their names, what they hold as bytes, and why they cannot be read. No data set is loaded here."""

from __future__ import annotations

import bz2
import codecs
import functools
import glob
import gzip
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hf_recipes.common.files import identify
from hf_recipes.common.text import first_line

COMPRESSED: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}  # by their first bytes
KINDS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def file_names(files: Any, key: str = "dataset.data_files") -> dict[str, str]:
    """Dotted key of the recipe -> file name or pattern, whatever shape data_files has."""
    if isinstance(files, str):
        return {key: files}
    if isinstance(files, Mapping):
        return {k: v for split, part in files.items() for k, v in file_names(part, f"{key}.{split}").items()}
    if isinstance(files, list | tuple):
        return {f"{key}[{i}]": name for i, name in enumerate(files) if isinstance(name, str)}
    return {}


def literal_names(given: Any, base: str) -> Any:
    """data_files as load_dataset takes it: `~` is the home folder, and a file that is there is no pattern, whatever is
    in its name."""
    if isinstance(given, Mapping):
        return {role: literal_names(part, base) for role, part in given.items()}
    if isinstance(given, list | tuple):
        return [literal_names(part, base) for part in given]
    if not isinstance(given, str):
        return given
    name = os.path.expanduser(given)
    return glob.escape(name) if glob.has_magic(name) and os.path.isfile(os.path.join(base, name)) else name


def local_files(path: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """The local files that load_dataset was to read, patterns expanded."""
    base = os.path.join(path if os.path.isdir(path) else "", arguments.get("data_dir") or "")
    for name in dict.fromkeys(file_names(arguments.get("data_files")).values()):
        full = os.path.join(base, name)
        found = [full] if os.path.isfile(full) else sorted(glob.glob(full, recursive=True))
        yield from filter(os.path.isfile, found)


def open_file(name: str) -> IO[bytes]:
    """The file's content, decompressed; by its first bytes, as `datasets` does it."""
    with open(name, "rb") as file:
        begin = file.read(6)
    for magic, opener in COMPRESSED.items():
        if begin.startswith(magic):
            return opener(name)
    return open(name, "rb")


def find_damage(name: str) -> str:
    """Why a compressed file cannot be read to its end; "" for a file that can, and for one that is not compressed."""
    try:
        if name.endswith(".zip"):
            with zipfile.ZipFile(name) as archive:
                bad = archive.testzip()
                return f"{bad} in it is damaged" if bad else ""
        if not name.endswith(tuple(KINDS)):
            return ""
        with open(name, "rb") as file:
            if not file.read(6).startswith(tuple(COMPRESSED)):
                return f"it is no {KINDS[os.path.splitext(name)[1]]} file"
        with open_file(name) as content:
            while content.read(2**20):
                pass
    except EOFError:
        return "it is cut off"
    except zipfile.BadZipFile as problem:
        return f"it is cut off, or no zip file ({first_line(problem)})"
    except (OSError, zlib.error, lzma.LZMAError, ValueError) as problem:
        return f"it is damaged ({first_line(problem)})"
    return ""


def find_other_format(name: str, builder: str) -> tuple[str, str] | None:
    """(what a file is, how to fix it) where it is of another format than its loader reads, by its first bytes. A file
    that nobody wrote meanwhile is opened once: `check` and the loading of its rows both ask."""
    return _find_other_format(name, builder, identify(Path(name)))


@functools.lru_cache(maxsize=256)
def _find_other_format(name: str, builder: str, state: tuple[int, ...]) -> tuple[str, str] | None:
    with open(name, "rb") as file:
        begin = file.read(2**11)
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the data", "git lfs pull"
    if begin.startswith(b"PAR1") and builder != "parquet":
        return "is a parquet file", "write path: parquet"
    if begin.startswith(b"\xd0\xcf\x11\xe0") or (begin.startswith(b"PK\x03\x04") and b"[Content_Types].xml" in begin):
        return "is an Excel file", "save it as CSV (UTF-8)"
    if builder in ("csv", "json") and begin.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not the data", "download the file itself"
    return None


def line_that_is_not_utf8(name: str) -> int:
    """The number of the first line that is not UTF-8; 0 if every line is, or the file cannot be read."""
    try:
        with open_file(name) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    return number
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return 0
    return 0


def guess_encoding(name: str) -> str:
    """What a file that is not UTF-8 probably is: utf-16, cp1252 (Windows), latin-1."""
    try:
        with open_file(name) as content:
            begin = content.read(2**16)
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return "latin-1"
    if begin.startswith(UTF_16):
        return "utf-16"
    if begin.count(b"\0") > len(begin) // 4:  # a letter of two bytes
        return "utf-16-le" if begin[1:2] == b"\0" else "utf-16-be"
    return "cp1252" if any(0x80 <= byte < 0xA0 for byte in begin) else "latin-1"


def is_blank(name: str) -> bool:
    """Whether a file has nothing but blanks and line ends."""
    try:
        with open_file(name) as content:
            while block := content.read(2**20):
                if block.strip():
                    return False
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
    return True


def has_bom(name: str) -> bool:
    """Whether a file begins with UTF-8's byte order mark."""
    try:
        with open_file(name) as content:
            return content.read(3) == codecs.BOM_UTF8
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
