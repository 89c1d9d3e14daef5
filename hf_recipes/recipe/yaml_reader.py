"""YAML 1.2 text to a Document: plain values, each with its line, and every error that does not end the reading.

The node tree is walked here because the constructors of ruamel.yaml stop at the first duplicate key, and turn tags into
Python objects. Only dict, list, str, int, float, bool and None come out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hf_recipes.common.files import describe_special_file
from hf_recipes.common.secrets import mask_secrets
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.document import Document

MOST_BYTES = 1_000_000  # a recipe has two thousand; a data file given by mistake has more
MOST_BITS = 14_000  # of a number: Python writes at most 4,300 digits (sys.get_int_max_str_digits)

_TAG = "tag:yaml.org,2002:"
_LIMITS_FIX = "a recipe is a page of settings: write the values out, or put the data into a data file"


_LEFT_OUT: Any = object()


def read_file(path: str) -> Document:
    """A file's values and locations. Whatever is wrong with the file is in the errors; nothing is raised."""
    data = read_bytes(path)
    if isinstance(data, Diagnostic):
        return Document(path=path, errors=(data,))
    if b"\0" in data:
        return _failed(path, path, "is a binary file, not a recipe", "give a YAML file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        what = f"is not UTF-8 text (byte 0x{data[problem.start]:02x})"
        return _failed(path, f"{path}:{line}", what, "save the file as UTF-8")
    return replace(read_text(text, lambda line: f"{path}:{line}", nothing=path), path=path)


def read_bytes(path: str) -> bytes | Diagnostic:
    """The bytes of a file of at most 1 MB, or why there are none: nothing else is opened, since a FIFO would block."""
    special = describe_special_file(path)
    if special:
        shown = repr(path) if "\0" in path else path
        return Diagnostic(location=shown, message=special, fix="give a YAML file")
    error = _unreadable(path)
    if error is not None:
        return error
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as problem:
        return Diagnostic(location=path, message=f"cannot be read: {problem.strerror}", fix="check its permissions")
    return data if len(data) <= MOST_BYTES else _too_large(path, len(data))


def _failed(path: str, location: str, message: str, fix: str) -> Document:
    return Document(path=path, errors=(masked_error(location, message, fix),))


def masked_error(location: str, message: str, fix: str) -> Diagnostic:
    """An error that may quote the text, which may hold a token."""
    return Diagnostic(location=mask_secrets(location), message=mask_secrets(message), fix=mask_secrets(fix))


def _too_large(path: str, size: int) -> Diagnostic:
    what = f"has {size / 1e6:.1f} MB, and a recipe at most {MOST_BYTES / 1e6:.0f} MB"
    return Diagnostic(location=path, message=what, fix="is this a data file? name it under dataset.data_files")


def _unreadable(path: str) -> Diagnostic | None:
    if os.path.isdir(path):
        names = sorted(n for n in os.listdir(path) if n.endswith((".yaml", ".yml")))
        fix = f"give one file of it, such as {os.path.join(path, names[0])}" if names else "give a YAML file"
        return Diagnostic(location=path, message="is a directory, not a recipe", fix=fix)
    if not os.path.exists(path):
        from hf_recipes.common import shipped
        from hf_recipes.common.text import nearest

        folder = os.path.dirname(path) or "."
        names = os.listdir(folder) if os.path.isdir(folder) else []
        stems = {os.path.splitext(n)[0]: n for n in names if n.endswith((".yaml", ".yml"))}
        stem = os.path.splitext(os.path.basename(path))[0]
        near, built_in = nearest(stem, stems), "" if os.path.dirname(path) else nearest(stem, shipped.names("recipe"))
        if near:
            fix = f"did you mean {os.path.join(os.path.dirname(path), stems[near])!r}?"
        elif built_in:
            fix = f"did you mean {built_in!r}, which came with the package? `hf-recipes recipes` lists these"
        elif names or os.path.isdir(folder):
            fix = f"see what is in {folder!r}"
        else:
            fix = f"there is no folder {folder!r} either"
        return Diagnostic(location=path, message="no such file", fix=fix)
    size = os.path.getsize(path)
    return _too_large(path, size) if size > MOST_BYTES else None


def read_text(text: str, location: Callable[[int], str], nothing: str) -> Document:
    """Values of a YAML text. `location` gives the location of a line (from 1), `nothing` that of an empty text."""
    from ruamel.yaml.error import MarkedYAMLError, YAMLError
    from ruamel.yaml.reader import ReaderError

    from hf_recipes.recipe.bounded_yaml import MOST_DEPTH, LimitError, compose

    try:
        node = compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if isinstance(error, LimitError):
            what, fix = str(error.problem), _LIMITS_FIX
        elif "maximum depth" in str(error.problem or ""):
            what, fix = f"is nested more than {MOST_DEPTH} deep", _LIMITS_FIX
        elif "single document" in str(error.context or ""):
            what, fix = "holds a second document ('---')", "one recipe is one document: give each its own file"
        else:
            what = f"is not YAML: {error.problem or error.context}"
            fix = "check the indentation, the quotes and the brackets here and on the line above"
        return _failed("", location(mark.line + 1) if mark else nothing, what, fix)
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        code = error.character if isinstance(error.character, int) else ord(error.character[0])
        what = f"holds a control character (U+{code:04X})"
        return _failed("", location(line), what, "delete it")
    except (YAMLError, RecursionError, ValueError, AssertionError, LookupError) as error:
        why = str(error).split("\n")[0] or type(error).__name__
        return _failed("", nothing, f"is not YAML: {why}", "check the indentation and the brackets")
    if node is None:
        return _failed("", nothing, "is empty", "a recipe begins with 'task:'")
    bomb = _too_many(node)
    if bomb:
        return _failed("", location(node.start_mark.line + 1), bomb, _LIMITS_FIX)
    walk = _Walk(location=location)
    value = walk.value(node, "")
    return Document(
        values=None if value is _LEFT_OUT else value,
        locations=walk.locations,
        broken=frozenset(walk.broken),
        errors=tuple(walk.errors),
    )


def _too_many(root: Any) -> str:
    """Why the tree may not be unfolded ("" if it may): aliases that stand for themselves or for too many values."""
    from hf_recipes.recipe.bounded_yaml import MOST_DEPTH, MOST_VALUES

    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    open_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:  # without recursion, children first
        node, done = stack.pop()
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(c)] for c in _children(node))
            depths[id(node)] = 1 + max((depths[id(c)] for c in _children(node)), default=0)
            if sizes[id(node)] > MOST_VALUES:
                return f"stands for more than {MOST_VALUES} values"
            if depths[id(node)] > MOST_DEPTH:
                return f"is nested more than {MOST_DEPTH} deep, with its aliases"
        elif id(node) in open_nodes:
            return "holds an alias that stands for itself"
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack.extend((c, False) for c in _children(node))
    return ""


def _children(node: Any) -> list[Any]:
    if isinstance(node.value, str):
        return []
    return [n for item in node.value for n in (item if isinstance(item, tuple) else (item,))]


@dataclass(kw_only=True)
class _Walk:
    """Collects what a walk over the nodes finds."""

    location: Callable[[int], str]
    locations: dict[str, str] = field(default_factory=dict)
    errors: list[Diagnostic] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def error(self, node: Any, what: str, fix: str) -> None:
        self.errors.append(masked_error(self.location(node.start_mark.line + 1), what, fix))

    def value(self, node: Any, dotted: str) -> Any:
        tag = str(node.tag or "")
        kind = tag.removeprefix(_TAG)
        if kind == tag or kind not in (
            "map",
            "seq",
            "str",
            "int",
            "float",
            "bool",
            "null",
            "timestamp",
            "value",
            "merge",
        ):
            shown = tag.replace(_TAG, "!!")
            self.error(node, f"the YAML tag {shown!r} is not supported", "write a plain value without a tag")
            return self.left_out(dotted)
        if isinstance(node.value, str):
            found = self.scalar(node, kind)
            return self.left_out(dotted) if found is _LEFT_OUT else found
        if kind == "seq" and not (node.value and isinstance(node.value[0], tuple)):
            items = [self.value(item, self.at(item, f"{dotted}.{n}")) for n, item in enumerate(node.value)]
            return [item for item in items if item is not _LEFT_OUT]
        if kind == "map" and not (node.value and not isinstance(node.value[0], tuple)):
            return self.mapping(node, dotted)
        self.error(node, f"the YAML tag '!!{kind}' does not fit its value", "write a plain value without a tag")
        return self.left_out(dotted)

    def left_out(self, dotted: str) -> Any:
        self.broken.add(dotted)
        return _LEFT_OUT

    def at(self, node: Any, dotted: str) -> str:
        self.locations[dotted] = self.location(node.start_mark.line + 1)
        return dotted

    def mapping(self, node: Any, dotted: str) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            if str(key_node.tag) == f"{_TAG}merge":
                merged += (
                    value_node.value if isinstance(value_node.value, list) and _is_seq(value_node) else [value_node]
                )
                continue
            if not isinstance(key_node.value, str):
                self.error(key_node, "a key is a list or a mapping", "write a name")
                continue
            key = self.value(key_node, dotted)
            if key is _LEFT_OUT:
                continue
            if isinstance(key, float) and not math.isfinite(key):
                key = key_node.value
            if key in lines:
                fix = f"it is already on line {lines[key]}: keep one of them"
                self.error(key_node, f"duplicate key {key_node.value!r}", fix)
                continue
            lines[key] = key_node.start_mark.line + 1
            path = self.at(key_node, f"{dotted}.{key}" if dotted else str(key))
            value = self.value(value_node, path)
            if value is not _LEFT_OUT:
                found[key] = value
        for source in merged:  # `<<: *anchor`: what stands here already wins
            if not (isinstance(source.value, list) and all(isinstance(i, tuple) for i in source.value)):
                self.error(source, "'<<' merges a mapping, and this is none", "give it an alias of a mapping")
                continue
            for key, value in self.mapping(source, dotted).items():
                found.setdefault(key, value)
        return found

    def scalar(self, node: Any, kind: str) -> Any:
        text = node.value
        words = _WORDS.get(kind)
        if words is not None:
            if text.lower() in words:
                return words[text.lower()]
            self.error(node, f"{text[:40]!r} does not fit its tag '!!{kind}'", "write a plain value without a tag")
            return _LEFT_OUT
        try:
            if kind == "int":
                return _integer(text)
            if kind == "float":
                return _decimal(text)
        except _TooManyDigitsError:
            self.error(node, f"{text[:20]}... is a number of too many digits", "write a number that upstream can use")
            return _LEFT_OUT
        except (ValueError, OverflowError):
            if node.style is None and any(c.isalnum() for c in text):
                self.error(node, f"{text[:40]!r} is not a number", "write a number, or quote it")
        if "\0" in text:
            self.error(node, "a string holds a NUL character", "delete it")
            return text.replace("\0", "")
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            # JSON writes an emoji as a pair of escapes, and YAML 1.2 reads JSON
            units = text.encode("utf-16-le", "surrogatepass")
            text = units.decode("utf-16-le", "replace")
            if text.encode("utf-16-le") != units:
                self.error(node, "a string holds half of a surrogate pair", "write the character itself")
        return text


_WORDS: dict[str, dict[str, bool | None]] = {  # with other words only where a tag is written out
    "bool": {"true": True, "false": False},
    "null": {"null": None, "~": None, "": None},
}


def _is_seq(node: Any) -> bool:
    return not (node.value and isinstance(node.value[0], tuple))


class _TooManyDigitsError(ValueError):
    """A number that Python would not write again."""


def _integer(text: str) -> int:
    plain = text.replace("_", "")
    sign, digits = (-1 if plain[:1] == "-" else 1), plain.lstrip("+-")
    base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2].lower(), 10)
    if base == 10 and len(digits) > MOST_BITS // 4:
        raise _TooManyDigitsError
    found = int(digits[2:] if base != 10 else digits, base)
    if found.bit_length() > MOST_BITS:
        raise _TooManyDigitsError
    return sign * found


def _decimal(text: str) -> float:
    plain = text.replace("_", "").lower()
    if plain.lstrip("+-") in (".inf", ".nan"):
        return float(plain.replace(".", ""))
    return float(plain)
