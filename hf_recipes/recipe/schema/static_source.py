"""Sources of the installed packages as text and syntax trees, none of them imported: that would cost seconds.

Only the top-level package is looked up with `find_spec`, which does not run it; the files below it are opened by path.
Only the statement that is asked for is parsed, not its whole file: modeling_utils.py alone has 280 kB.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

from hf_recipes.errors import RecipeError

VERSIONED = ("transformers", "trl", "peft", "datasets", "accelerate", "tokenizers", "bitsandbytes", "evaluate", "torch")
_INSIDE = " \t\r\n)]}#"  # first characters of lines that do not end a statement at column 0
_CLOSING = (")", "]", "}", "#")  # a line that begins so, at the statement's own indent, still belongs to it


@cache
def package_folder(package: str) -> str:
    """Folder of an installed top-level package. Raises RecipeError if it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError.at("this environment", f"{package} is not installed", f"pip install {package}")
    return next(iter(spec.submodule_search_locations))


@cache
def version(package: str) -> str:
    """Installed version, or "" if the package is absent.

    Read from the name of the .dist-info folder beside the package, because importlib.metadata costs ten times as much;
    that is asked only where the folder's name leaves doubt (an editable install, two versions side by side).
    """
    try:
        beside = os.path.dirname(package_folder(package))
    except RecipeError:
        return ""
    pattern = re.compile(re.escape(package) + r"-([0-9][^-]*)\.dist-info", re.IGNORECASE)
    found = [m.group(1) for m in map(pattern.fullmatch, os.listdir(beside)) if m]
    if len(found) == 1:
        return found[0]
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@cache
def text(package: str, path: str) -> str:
    """Text of one file of an installed package; "" if that version has no such file."""
    try:
        with open(os.path.join(package_folder(package), *path.split("/")), encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _cut(lines: list[str], start: int) -> ast.stmt | None:
    """The statement that begins on line `start` (0-based), or None if it cannot be cut out."""
    indent = _indent(lines[start])
    tries = 0
    for end in range(start + 1, len(lines) + 1):
        if end < len(lines):
            line = lines[end]
            if not line.strip() or _indent(line) > indent or line.lstrip().startswith(_CLOSING):
                continue
        source = "".join(lines[start:end])
        try:
            body = ast.parse("if 1:\n" + source if indent else source).body
        except SyntaxError:  # the line that ended it stood inside a string: go on
            tries += 1
            if tries > 20:
                return None
            continue
        first = body[0]
        return first.body[0] if indent and isinstance(first, ast.If) else first
    return None


@cache
def statement(package: str, path: str, dotted: str) -> ast.stmt | None:
    """Class, function or assignment of a file by name ("PreTrainedModel.from_pretrained"); the last one of several.

    None if that version has none: callers say what they do without.
    """
    lines = text(package, path).splitlines(keepends=True)
    names = dotted.split(".")
    start, stop, found = 0, len(lines), -1
    for depth, name in enumerate(names):
        head = re.compile(rf"[ ]{{{4 * depth}}}(?:(?:class|def|async def) {name}\b|{name}\s*(?::[^=]+)?=(?!=))")
        hits = [i for i in range(start, stop) if name in lines[i] and head.match(lines[i])]
        if not hits:
            return _walk(package, path, names)
        found = hits[-1]
        if depth == 0 and len(names) > 1:
            start = found + 1
            stop = next((i for i in range(start, stop) if lines[i][0] not in _INSIDE), stop)
    return _cut(lines, found) or _walk(package, path, names)


def _walk(package: str, path: str, names: list[str]) -> ast.stmt | None:
    """The slow way: the whole file's tree, for a statement that stands under an `if` or after text at column 0."""
    source = text(package, path)
    if names[0] not in source:
        return None
    found: ast.AST | None = ast.parse(source)
    for name in names:
        inside = ast.walk(found) if found is not None else iter(())
        found = next((n for n in inside if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)
    return found if isinstance(found, ast.stmt) else None


_DEF = re.compile(r"    (?:def|async def|@)")
_ANNOTATED = re.compile(r"    [A-Za-z]\w*\s*:")


@cache
def class_head(package: str, path: str, name: str) -> ast.ClassDef | None:
    """A class up to its first method: docstring and fields. The whole class if fields follow a method."""
    lines = text(package, path).splitlines(keepends=True)
    heads = (f"class {name}(", f"class {name}:")
    start = next((n for n, line in enumerate(lines) if line.startswith(heads)), None)
    if start is not None:
        first = next((n for n in range(start + 1, len(lines)) if _DEF.match(lines[n])), len(lines))
        stop = next((n for n in range(start + 1, len(lines)) if lines[n][0] not in _INSIDE), len(lines))
        if first < stop and not any(_ANNOTATED.match(line) for line in lines[first:stop]):
            node = _cut(lines[:first], start)
            if isinstance(node, ast.ClassDef):
                return node
    node = statement(package, path, name)
    return node if isinstance(node, ast.ClassDef) else None


def class_body(package: str, path: str, name: str) -> list[ast.stmt]:
    node = class_head(package, path, name)
    return node.body if node is not None else []


def pair_of(package: str, path: str, table: str, key: str) -> str:
    """The second string of `("key", "value")` in a table of pairs, found without parsing the table; else ""."""
    source = text(package, path)
    begin = source.find(f"\n{table} =")
    end = source.find("\n)", begin)
    match = re.search(rf'\("{re.escape(key)}",\s*"([^"]+)"\)', source[begin:end]) if begin >= 0 else None
    return match[1] if match else ""


def docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return ast.get_docstring(node) or ""
    return ""


def enum_values(package: str, path: str, name: str) -> tuple[str, ...]:
    """Values of a string enum, in the order of the source."""
    values = (n.value for n in class_body(package, path, name) if isinstance(n, ast.Assign))
    return tuple(v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str))


def table_keys(package: str, path: str, dotted: str) -> tuple[str, ...]:
    """String keys of a dict literal that is assigned to a name ("AttentionInterface._global_mapping")."""
    node = statement(package, path, dotted)
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    keys = value.keys if isinstance(value, ast.Dict) else []
    return tuple(k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str))


def popped(node: ast.stmt | None, owner: str = "kwargs") -> Iterator[tuple[str, ast.expr | None]]:
    """(name, default) of each `kwargs.pop("name", default)` in a function: the words that its open keywords take."""
    for call in ast.walk(node) if node is not None else ():
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "pop"
            and call.args
        ):
            base, first = call.func.value, call.args[0]
            named = isinstance(base, ast.Name) and base.id == owner
            if named and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value, call.args[1] if len(call.args) > 1 else None
