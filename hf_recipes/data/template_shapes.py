"""Chat templates that only write what a message says: conversations of the same roles are then the same text, but for
the messages' contents, and one rendering serves them all.

Whether a template is such a one is read from its syntax tree: a content may be written, joined with other text or
stripped of blanks; a template that looks into it (for `<think>`, for its length) is rendered for each row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from jinja2 import nodes

Spans = list[tuple[int, int]]  # (start, stop) of characters, in order
BLANK = "\u2003"  # strip() takes it away, and no template writes it
OPEN, CLOSE = "\ue001", "\ue002"  # around the number of a message; characters that no template writes
CONTENT = re.compile(f"({BLANK}?){OPEN}(\\d+){CLOSE}({BLANK}?)")
STRIPPED = {(True, True): "", (False, True): "lstrip", (True, False): "rstrip", (False, False): "strip"}
KEYS = {"role", "content"}
MOST = 1_000  # shapes that are kept

MESSAGES, GENERATION = "messages", "_generation_support"
STRIPS = ("strip", "lstrip", "rstrip")
TESTS = ("string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "boolean", "number")
CLOCK = "strftime_now"


class Kind(Enum):
    """What an expression of a template is made of."""

    PLAIN = "nothing of a content"
    MESSAGES = "a list of messages"
    MESSAGE = "a message"
    CONTENT = "a content, perhaps stripped"
    JOINED = "a content in other text"


TEXTS = (Kind.PLAIN, Kind.CONTENT, Kind.JOINED)


class _OtherError(Exception):
    """The template does more with a content than write it."""


def is_by_roles(tree: nodes.Template) -> bool:
    """Whether a parsed template's text depends on the roles alone, where messages are role and text."""
    names: dict[str, Kind] = {MESSAGES: Kind.MESSAGES}
    try:
        while True:  # until no assignment changes what a name is
            before = dict(names)
            _visit_all(tree.body, names)
            if names == before:
                return True
    except _OtherError:
        return False


def _visit_all(body: Sequence[nodes.Node], names: dict[str, Kind]) -> None:
    for node in body:
        _visit(node, names)


def _visit(node: nodes.Node, names: dict[str, Kind]) -> None:
    """A statement. Raises _OtherError."""
    if isinstance(node, nodes.Output):
        for child in node.nodes:
            if not isinstance(child, nodes.TemplateData):
                _require(child, names, *TEXTS)
    elif isinstance(node, nodes.If):
        _require(node.test, names, *TEXTS)  # no content is blank: each is true
        _visit_all([*node.body, *node.elif_, *node.else_], names)
    elif isinstance(node, nodes.For) and isinstance(node.target, nodes.Name) and not node.recursive:
        kind = _require(node.iter, names, Kind.PLAIN, Kind.MESSAGES)
        _bind(node.target.name, Kind.MESSAGE if kind is Kind.MESSAGES else Kind.PLAIN, names)
        if node.test is not None:
            _require(node.test, names, *TEXTS)
        _visit_all([*node.body, *node.else_], names)
    elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
        _bind(node.target.name, _kind(node.node, names), names)
    elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.NSRef):
        _require(node.node, names, Kind.PLAIN)
    elif isinstance(node, nodes.CallBlock) and getattr(node.call.node, "name", "") == GENERATION:
        _visit_all(node.body, names)
    elif not isinstance(node, nodes.Break | nodes.Continue):
        raise _OtherError


def _bind(name: str, kind: Kind, names: dict[str, Kind]) -> None:
    """One name for two kinds of things is a template of another sort, except a text with and without a content."""
    old = names.setdefault(name, kind)
    if old is kind:
        return
    if not {old, kind} <= set(TEXTS):
        raise _OtherError
    names[name] = Kind.JOINED


def _require(node: nodes.Node, names: Mapping[str, Kind], *kinds: Kind) -> Kind:
    found = _kind(node, names)
    if found not in kinds:
        raise _OtherError
    return found


def _kind(node: nodes.Node, names: Mapping[str, Kind]) -> Kind:
    """What an expression is made of. Raises _OtherError."""
    if isinstance(node, nodes.Name):
        return names.get(node.name, Kind.PLAIN)
    if isinstance(node, nodes.Getattr | nodes.Getitem):
        return _kind_of_part(node, names)
    if isinstance(node, nodes.Call):
        return _kind_of_call(node, names)
    if isinstance(node, nodes.Filter) and node.name in ("trim", "length", "count") and node.node is not None:
        kind = _kind(node.node, names)
        if node.name == "trim" and kind is Kind.CONTENT and not node.args and not node.kwargs:
            return kind
        if node.name != "trim" and kind is Kind.MESSAGES:
            return Kind.PLAIN
    if isinstance(node, nodes.Test) and node.name in TESTS:
        _require(node.node, names, Kind.PLAIN, Kind.CONTENT, Kind.MESSAGES, Kind.MESSAGE)
        return Kind.PLAIN
    if isinstance(node, nodes.Add | nodes.Concat | nodes.CondExpr | nodes.And | nodes.Or | nodes.Not):
        kinds = {_require(child, names, *TEXTS) for child in node.iter_child_nodes()}
        return Kind.PLAIN if kinds == {Kind.PLAIN} or isinstance(node, nodes.Not) else Kind.JOINED
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Expr | nodes.Pair | nodes.Keyword | nodes.Operand):
            _require(child, names, Kind.PLAIN)
    return Kind.PLAIN


def _kind_of_part(node: nodes.Getattr | nodes.Getitem, names: Mapping[str, Kind]) -> Kind:
    if isinstance(node, nodes.Getattr):
        key: Any = node.attr
    else:
        if isinstance(node.arg, nodes.Slice):
            for part in (node.arg.start, node.arg.stop, node.arg.step):
                if part is not None:
                    _require(part, names, Kind.PLAIN)
            return _require(node.node, names, Kind.PLAIN, Kind.MESSAGES)
        _require(node.arg, names, Kind.PLAIN)
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
    if isinstance(node.node, nodes.Name) and node.node.name == "loop":
        return Kind.MESSAGE if key in ("previtem", "nextitem") else Kind.PLAIN
    kind = _require(node.node, names, Kind.PLAIN, Kind.MESSAGES, Kind.MESSAGE)
    if kind is Kind.MESSAGES and isinstance(node, nodes.Getitem):
        return Kind.MESSAGE
    if kind is Kind.MESSAGE and isinstance(key, str) and not hasattr(dict, key):
        return Kind.CONTENT if key == "content" else Kind.PLAIN
    if kind is Kind.PLAIN:
        return kind
    raise _OtherError


def _kind_of_call(node: nodes.Call, names: Mapping[str, Kind]) -> Kind:
    """Of a content it may be stripped, of a message a key may be asked for; any other call gets neither."""
    called = node.node
    if isinstance(called, nodes.Name) and called.name == CLOCK:
        raise _OtherError  # another text tomorrow
    if isinstance(called, nodes.Getattr):
        owner = _kind(called.node, names)
        if owner is Kind.CONTENT and called.attr in STRIPS and not node.args and not node.kwargs:
            return owner
        if owner is Kind.MESSAGE and called.attr == "get" and node.args and isinstance(node.args[0], nodes.Const):
            for other in node.args[1:]:
                _require(other, names, Kind.PLAIN)
            return Kind.CONTENT if node.args[0].value == "content" else Kind.PLAIN
    for child in node.iter_child_nodes():
        _require(child, names, Kind.PLAIN)
    return Kind.PLAIN


# one rendering for all conversations of the same roles ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The text of conversations of the same roles, in parts: the template's own, and (message, strip) of contents.

    `marks`: for each end of an answer, in order, the part in which it is, and the characters before it in that part.
    """

    parts: tuple[str | tuple[int, str], ...]
    marks: tuple[tuple[int, int], ...]

    def fill(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, Spans]:
        """The conversation's text, and where its answers are."""
        texts = [
            part if isinstance(part, str) else _strip(messages[part[0]]["content"], part[1]) for part in self.parts
        ]
        starts, position = [], 0
        for text in texts:
            starts.append(position)
            position += len(text)
        starts.append(position)
        ends = [starts[part] + offset for part, offset in self.marks]
        return "".join(texts), list(zip(ends[::2], ends[1::2], strict=True))


def has_shape(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every message is a role and a text that is not blank."""
    return all(
        message.keys() == KEYS and type(message["content"]) is str and not message["content"].isspace()
        and message["content"] for message in messages
    )  # fmt: skip


def probes(roles: Sequence[str]) -> list[dict[str, Any]]:
    """A conversation of these roles whose contents can be found in its text."""
    return [{"role": role, "content": f"{BLANK}{OPEN}{i}{CLOSE}{BLANK}"} for i, role in enumerate(roles)]


def read_shape(text: str, spans: Spans) -> Shape | None:
    """The shape of a rendering of `probes`; None where an answer begins or ends inside a content."""
    parts: list[str | tuple[int, str]] = []
    begins: list[tuple[int, int]] = []  # of each part in `text`, with its stop
    position = 0
    for found in CONTENT.finditer(text):
        if found.start() > position:
            parts.append(text[position : found.start()])
            begins.append((position, found.start()))
        left, number, right = found.groups()
        parts.append((int(number), STRIPPED[bool(left), bool(right)]))
        begins.append(found.span())
        position = found.end()
    if position < len(text):
        parts.append(text[position:])
        begins.append((position, len(text)))
    marks = []
    for end in (end for span in spans for end in span):
        place = next(_places(end, parts, begins), None)
        if place is None:
            return None
        marks.append(place)
    return Shape(parts=tuple(parts), marks=tuple(marks))


def _places(end: int, parts: Sequence[Any], begins: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(part, characters before it in that part): at the beginning of a part, or inside the template's own text."""
    for i, (start, stop) in enumerate(begins):
        if end == start or (start < end < stop and isinstance(parts[i], str)):
            yield i, end - start
    if not begins or end == begins[-1][1]:
        yield len(begins), 0


def _strip(content: str, how: str) -> str:
    return str(getattr(content, how)()) if how else content
