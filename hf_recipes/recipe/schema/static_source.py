"""Sources of the installed packages as syntax trees, none of them imported: that would cost seconds.

Only the statement that is asked for is parsed, not the file around it: modeling_utils.py alone has 280 kB.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from hf_recipes.recipe.schema.packages import text

_INSIDE = " \t\r\n)]}#"  # first characters of lines that do not end a statement at column 0
_CLOSING = (")", "]", "}", "#")  # a line that begins so, at the statement's own indent, still belongs to it


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
        except SyntaxError:  # the line that ended it stood inside a string: try the next end
            tries += 1
            if tries > 20:
                return None
            continue
        first = body[0]
        return first.body[0] if indent and isinstance(first, ast.If) else first
    return None


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
    """The slow way: the tree of the file, for a statement that stands under an `if` or after text at column 0."""
    source = text(package, path)
    if names[0] not in source:
        return None
    found: ast.AST | None = ast.parse(source)
    for name in names:
        inside = ast.walk(found) if found is not None else iter(())
        found = next((n for n in inside if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name), None)
    return found if isinstance(found, ast.stmt) else None


def class_body(package: str, path: str, name: str) -> list[ast.stmt]:
    node = statement(package, path, name)
    return node.body if isinstance(node, ast.ClassDef) else []


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
    """(name, default) of each `kwargs.pop("name", default)` in a function: the names that its open keywords take."""
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
