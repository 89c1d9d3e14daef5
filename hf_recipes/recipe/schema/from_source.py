"""Annotations, signatures and docstrings of upstream, as syntax trees and text, to `Field`s."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hf_recipes.recipe.schema.fields import KINDS, Field

Enums = Callable[[str], tuple[str, ...] | None]
_TYPING = {"Any", "object"}
_NAMES = {
    **{kind: kind for kind in KINDS},
    "List": "list", "Sequence": "list", "Iterable": "list", "tuple": "list", "Tuple": "list", "set": "list",
    "Dict": "dict", "Mapping": "dict", "dtype": "str", "PathLike": "str", "Path": "str", "Version": "str",
}  # fmt: skip


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _branches(node: ast.expr) -> Iterator[ast.expr]:
    """The members of a union, nested or not."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _branches(node.left)
        yield from _branches(node.right)
    elif isinstance(node, ast.Subscript) and _last_name(node.value) in ("Union", "Optional"):
        for part in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
            yield from _branches(part)
        if _last_name(node.value) == "Optional":
            yield ast.Constant(value=None)
    else:
        yield node


def from_annotation(name: str, annotation: ast.expr | None, enums: Enums) -> Field:
    """Kinds, choices and optionality of an annotation; what its text does not decide takes anything."""
    kinds: list[str] = []
    items: list[str] = []
    choices: list[str] = []
    optional = anything = free_text = False
    for branch in _branches(annotation) if annotation is not None else ():
        base = _last_name(branch.value) if isinstance(branch, ast.Subscript) else _last_name(branch)
        inner = branch.slice if isinstance(branch, ast.Subscript) else None
        if isinstance(branch, ast.Constant) and branch.value is None:
            optional = True
        elif base == "Literal" and inner is not None:
            for part in inner.elts if isinstance(inner, ast.Tuple) else [inner]:
                value = part.value if isinstance(part, ast.Constant) else None
                kinds.append(type(value).__name__)
                choices += [value] if isinstance(value, str) else []
        elif (values := enums(base)) is not None:
            kinds.append("str")
            choices += values
            free_text = False
        elif base in _NAMES:
            kinds.append(_NAMES[base])
            free_text = free_text or (base == "str" and not choices)
            if _NAMES[base] == "list" and inner is not None:
                first = inner.elts[0] if isinstance(inner, ast.Tuple) and inner.elts else inner
                inside = from_annotation(name, first, enums)
                items += inside.kinds or ("any",)
                choices += inside.choices
        elif base.endswith("Config"):  # a nested dataclass, which a recipe writes as a mapping
            kinds.append("dict")
        else:
            anything = True
    known = () if anything else tuple(dict.fromkeys(k for k in kinds if k in KINDS))
    return Field(
        name=name,
        kinds=known,
        items=() if "any" in items else tuple(dict.fromkeys(items)),
        choices=tuple(c for c in dict.fromkeys(choices) if "[" not in c),
        open_choices="|".join(re.sub(r"\\\[.*?\\\]", r"\\d+", re.escape(c)) for c in choices if "[" in c),
        optional=optional,
    )


def _is_class_variable(annotation: ast.expr) -> bool:
    return _last_name(annotation.value if isinstance(annotation, ast.Subscript) else annotation) == "ClassVar"


def literal(node: ast.expr | None) -> tuple[bool, Any]:
    """(known, value) of a default as written. `list` and `dict` as factories are the empty ones."""
    if node is None:
        return False, None
    if isinstance(node, ast.Name) and node.id in ("list", "dict"):
        return True, [] if node.id == "list" else {}
    try:
        return True, ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return False, None


def _string(node: ast.expr | None) -> str:
    known, value = literal(node)
    return value if known and isinstance(value, str) else ""


def from_dataclass(body: Iterable[ast.stmt], enums: Enums) -> dict[str, Field]:
    """Fields of a dataclass's body: annotation, default, `help` and `choices` of the metadata."""
    fields: dict[str, Field] = {}
    for node in body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name, value = node.target.id, node.value
        if _is_class_variable(node.annotation) or name.startswith("_"):
            continue
        field = from_annotation(name, node.annotation, enums)
        if isinstance(value, ast.Call) and _last_name(value.func) == "field":
            arguments = {k.arg: k.value for k in value.keywords}
            if literal(arguments.get("init")) == (True, False):
                continue
            known, default = literal(arguments.get("default") or arguments.get("default_factory"))
            metadata = arguments.get("metadata")
            pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
            entries = {_string(k): v for k, v in pairs}
            listed, choices = literal(entries.get("choices"))
            help_text = _string(entries.get("help")).replace("%%", "%")
            field = replace(
                field,
                help=help_text,
                choices=tuple(choices) if listed and choices else field.choices,
                deprecated=bool(re.search(r"\bDeprecated\b|\bDEPRECATED\b", help_text)),
            )
        else:
            known, default = literal(value)
        fields[name] = replace(field, has_default=known, default=default)
    return fields


def from_signature(node: ast.stmt | None, enums: Enums) -> dict[str, Field]:
    """Fields of a function's named parameters, without self, cls, * and **."""
    if not isinstance(node, ast.FunctionDef):
        return {}
    args = [*node.args.posonlyargs, *node.args.args]
    defaults: list[ast.expr | None] = [None] * (len(args) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(args, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    fields = {}
    for arg, value in pairs:
        if arg.arg in ("self", "cls"):
            continue
        known, default = literal(value)
        field = from_annotation(arg.arg, arg.annotation, enums)
        if (
            arg.annotation is None and known and default is not None
        ):  # BitsAndBytesConfig's are bare: the default decides
            field = replace(field, kinds=(type(default).__name__,))
        field = replace(field, optional=field.optional or (known and default is None))
        fields[arg.arg] = replace(field, has_default=known, default=default)
    return fields


_ENTRY = re.compile(
    r"^(?P<pad> *)(?:-\s*)?\**(?P<name>\w+)\**:? *\(?:?\(?(?P<type>[^\n]*?)\)?\)?:[ ]*(?P<rest>[^\n]*)$", re.M
)
_BRACKETS = re.compile(r"(list|dict|tuple|sequence)[\[(]([^\[\]()]*(?:[\[(][^\]\[()]*[\])])*[^\[\]()]*)[\])]", re.I)
_TYPE_NAME = re.compile(r"\b(bool|int|float|str|list|dict|Dict|tuple|dtype|PathLike|None)\b")


def documented(docstring: str) -> dict[str, tuple[str, str]]:
    """name -> (type as written, help) of a docstring's parameter list."""
    entries: dict[str, tuple[str, str]] = {}
    matches = [m for m in _ENTRY.finditer(docstring) if "`" in m["type"]]
    for n, match in enumerate(matches):
        end = matches[n + 1].start() if n + 1 < len(matches) else len(docstring)
        lines = [match["rest"]]
        for line in docstring[match.end() : end].split("\n")[1:]:
            if line.strip() and _indent_of(line) <= len(match["pad"]):
                break
            lines.append(line.strip())
        entries.setdefault(match["name"], (match["type"], " ".join(" ".join(lines).split())))
    return entries


def _indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def from_entry(name: str, entry: tuple[str, str] | None) -> Field:
    """Field of a docstring's entry; without an entry it takes anything."""
    if entry is None:
        return Field(name=name, optional=True)
    written = re.split(r"\*optional\*|defaults? to", entry[0])[0]
    inside = _BRACKETS.search(written)
    items = _TYPE_NAME.findall(inside[2]) if inside and inside[1].lower() == "list" and "[" not in inside[2] else []
    outside = _BRACKETS.sub(lambda m: m[1], written)
    kinds = [_NAMES.get(w, w) for w in _TYPE_NAME.findall(outside)]
    other = re.search(r"\b(?!Union|Optional|torch|os)[A-Z]\w+", outside)
    return Field(
        name=name,
        kinds=() if other and not kinds else tuple(dict.fromkeys(k for k in kinds if k in KINDS)),
        items=tuple(_NAMES.get(w, w) for w in items),
        optional=True,
        help=entry[1],
    )


def with_help(fields: Mapping[str, Field], entries: Mapping[str, tuple[str, str]]) -> dict[str, Field]:
    """Fields of a signature with the help of the docstring, and its type where the signature has no annotation."""
    merged = {}
    for name, field in fields.items():
        entry = from_entry(name, entries.get(name))
        merged[name] = replace(
            field, help=field.help or entry.help, kinds=field.kinds or entry.kinds, items=field.items or entry.items
        )
    return merged
