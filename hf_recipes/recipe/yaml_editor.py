"""Small edits of YAML text that leave every other byte as it is: rename, drop, set and insert keys of mappings."""

from __future__ import annotations

import copy
import functools
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from hf_recipes.common.text import as_yaml
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.recipe.bounded_yaml import compose
from hf_recipes.recipe.document import Document
from hf_recipes.recipe.yaml_reader import read_text


class YamlText:
    """One YAML document whose top is a mapping, and edits of it by splicing, each of which gives a new one.

    Raises RecipeError with every error (file:line) of a text that is not such a document.
    """

    def __init__(self, text: str, path: str):
        self.text, self.path = text, path
        self.newline = "\r\n" if "\r\n" in text else "\n"

    @functools.cached_property
    def document(self) -> Document:
        """Plain values and their lines, by the same reader that reads recipes."""
        document = read_text(self.text, lambda line: f"{self.path}:{line}", self.path)
        if document.errors:
            raise RecipeError(document.errors)
        if not isinstance(document.values, dict):
            raise RecipeError(
                Diagnostic(location=self.path, message="is not a mapping of sections", fix="begin with 'task:'")
            )
        return document

    @functools.cached_property
    def root(self) -> MappingNode:
        root = compose(self.text)
        assert isinstance(root, MappingNode)
        return root

    def with_edit(self, section: str, old: str, sets: Mapping[str, Any], renamed: bool) -> YamlText:
        """The text in which `old` has left `section` (unless `sets` has it) and each dotted key of `sets` stands.

        `renamed`: the one new key of the same section takes the old value, and with it its spelling.
        """
        leaves = f"{section}.{old}" if section else old
        gone = leaves not in sets
        source = self
        fresh: list[tuple[str, Any]] = []  # new keys of the same section: they take the old one's seat
        for dotted, value in sets.items():
            home, _, key = dotted.rpartition(".")
            nested = dotted.removeprefix(f"{section}.").partition(".")[0]
            if source._entry(dotted):
                source = source._set(dotted, value)
                renamed = False
            elif home == section:
                fresh.append((key, value))
            elif home and isinstance(source._node(home), MappingNode):
                source = source._insert(home, key, value)
            elif home.startswith(f"{section}.") and any(name == nested for name, _ in fresh):
                fresh = [(name, {**inner, key: value} if name == nested else inner) for name, inner in fresh]
            elif home.startswith(f"{section}.") and not source._entry(home):
                fresh.append((nested, {key: value}))
                renamed = False
            elif source._entry(home) if home else False:
                source = source._set(home, {key: value})  # it was null
            else:
                source = source._insert("", home or key, {key: value} if home else value)
        if gone:
            return source._replace(leaves, fresh, renamed)
        for key, value in fresh:
            source = source._insert(section, key, value)
        return source

    def with_values(self, sets: Mapping[str, Any]) -> YamlText:
        """The text in which each dotted key of `sets` stands with its value, where it stood or at its section's end."""
        source = self
        for dotted, value in sets.items():
            home, _, key = dotted.rpartition(".")
            if source._entry(dotted):
                source = source._set(dotted, value)
            elif isinstance(source._node(home), MappingNode):
                source = source._insert(home, key, value)
            elif source._entry(home):
                source = source._set(home, {key: value})  # it was null
            else:
                source = source._insert("", home, {key: value})
        return source

    # ---- finding ----

    def _entry(self, dotted: str) -> tuple[ScalarNode, Node] | None:
        node: Node = self.root
        found = None
        for name in dotted.split("."):
            entries = node.value if isinstance(node, MappingNode) else ()
            found = next(((key, value) for key, value in entries if key.value == name), None)
            if found is None:
                return None
            node = found[1]
        return found

    def _node(self, dotted: str) -> Node | None:
        entry = self._entry(dotted) if dotted else (None, self.root)
        return entry[1] if entry else None

    def _end(self, key: Node, value: Node) -> int:
        """Where the text of an entry ends: after the last character of its value, comments and blanks left out."""
        if isinstance(value, ScalarNode):
            if value.end_mark.index == value.start_mark.index:  # nothing stands after the colon
                return self.text.index(":", key.end_mark.index) + 1
            return value.start_mark.index + len(self.text[value.start_mark.index : value.end_mark.index].rstrip())
        if not isinstance(value, CollectionNode) or value.flow_style or not value.value:
            return value.end_mark.index
        last = value.value[-1]
        return self._end(*last) if isinstance(last, tuple) else self._end(last, last)

    def _spliced(self, start: int, end: int, new: str) -> YamlText:
        made = YamlText(self.text[:start] + new + self.text[end:], self.path)
        root = self._patched_root(start, end, made.text)
        if root is not None:
            made.__dict__["root"] = root
        return made

    def _patched_root(self, start: int, end: int, text: str) -> MappingNode | None:
        """The tree of the text after a splice: only the entries of the top that it touches are composed again. None
        where that would not be the tree of the whole text (a part may name an anchor of another)."""
        entries, grown = self.root.value, len(text) - len(self.text)
        starts = [key.start_mark.index for key, _ in entries]
        if self.root.flow_style or "&" in self.text:  # the node of an anchor stands in several places
            return None
        first = max(bisect_left(starts, start) - 1, 0)  # what begins an entry may be the end of the one before
        last = bisect_left(starts, end, lo=first + 1)
        whole = (
            start < starts[0] or self.root.flow_style or "&" in self.text
        )  # an anchor's node stands in several places
        if whole or any(index != self._line_start(index) for index in starts):
            return None
        stop = starts[last] + grown if last < len(entries) else len(text)
        try:
            part = compose(text[starts[first] : stop])
        except YAMLError:
            return None
        if not isinstance(part, MappingNode) or part.flow_style:
            return None
        found = copy.copy(self.root)
        found.end_mark = _mark(self.root.end_mark, grown)
        found.value = [
            *entries[:first],
            *((_moved(key, starts[first]), _moved(value, starts[first])) for key, value in part.value),
            *((_moved(key, grown), _moved(value, grown)) for key, value in entries[last:]),
        ]
        return found

    def _line_start(self, index: int) -> int:
        return self.text.rfind("\n", 0, index) + 1

    def _line_end(self, index: int) -> int:
        """After the line's newline (or the end of the text)."""
        found = self.text.find("\n", index)
        return len(self.text) if found < 0 else found + 1

    # ---- editing ----

    def _set(self, dotted: str, value: Any) -> YamlText:
        key, node = self._entry(dotted) or (None, None)
        assert key is not None and node is not None
        start = self.text.index(":", key.end_mark.index) + 1
        end = self._end(key, node)
        if end > start and node.start_mark.index >= start:
            return self._spliced(node.start_mark.index, end, as_yaml(value))
        return self._spliced(start, end, f" {as_yaml(value)}")

    def _insert(self, home: str, key: str, value: Any) -> YamlText:
        """A new entry at the end of a mapping; at the top, a key goes below `task` and a section below `model`."""
        mapping = self._node(home)
        assert isinstance(mapping, MappingNode)
        entry = f"{key}: {as_yaml(value)}"
        if mapping.flow_style:
            inside = mapping.end_mark.index - 1
            if not mapping.value:
                return self._spliced(inside, inside, entry)
            end = self._end(*mapping.value[-1])
            return self._spliced(end, end, f", {entry}")
        after = mapping.value[-1]
        if not home:
            names = ("model", "task") if isinstance(value, Mapping) else ("task",)
            seats = [found for name in names if (found := self._entry(name))]
            if not seats:  # before the first key, whose comments stay above
                start = mapping.value[0][0].start_mark.index
                return self._spliced(start, start, f"{entry}{self.newline}")
            after = seats[0]
        indent = " " * mapping.value[0][0].start_mark.column
        end = self._line_end(self._end(*after))
        lead = "" if end == 0 or self.text[end - 1] == "\n" else self.newline
        return self._spliced(end, end, f"{lead}{indent}{entry}{self.newline}")

    def _replace(self, dotted: str, fresh: list[tuple[str, Any]], renamed: bool) -> YamlText:
        """The entry gives its seat to `fresh` entries; its comment stays."""
        entry = self._entry(dotted)
        mapping = self._node(dotted.rpartition(".")[0])
        if entry is None or not isinstance(mapping, MappingNode):
            return self  # it came by a merge key: the caller finds out that it is still there
        key, node = entry
        start, end = key.start_mark.index, self._end(key, node)
        if renamed and len(fresh) == 1:
            return self._spliced(start, key.end_mark.index, fresh[0][0])
        separator = ", " if mapping.flow_style else f"{self.newline}{' ' * key.start_mark.column}"
        if fresh:
            return self._spliced(start, end, separator.join(f"{key}: {as_yaml(value)}" for key, value in fresh))
        if len(mapping.value) == 1:
            return self._spliced(start, end, "" if mapping.flow_style else "{}")
        if mapping.flow_style:
            return self._drop_from_flow(mapping, start, end)
        rest = self.text[end : self._line_end(end)]
        if rest.strip():  # a comment: it keeps its line
            return self._spliced(start, end + len(rest) - len(rest.lstrip()), "")
        return self._spliced(self._line_start(start), self._line_end(end), "")

    def _drop_from_flow(self, mapping: MappingNode, start: int, end: int) -> YamlText:
        position = [key.start_mark.index for key, _ in mapping.value].index(start)
        if position == len(mapping.value) - 1:
            before = self._end(*mapping.value[position - 1])
            comma = self.text.index(",", before)
            blank = self.text[comma + 1 : start].strip() == ""
            return self._spliced(comma, end, "") if blank else self._spliced(start, end, "")
        stop = self.text.index(",", end) + 1
        stop += len(self.text[stop:]) - len(self.text[stop:].lstrip(" "))
        line = self.text[self._line_start(start) : start] + self.text[stop : self._line_end(stop)]
        if not line.strip():
            return self._spliced(self._line_start(start), self._line_end(stop), "")
        return self._spliced(start, stop, "")


def _moved(node: Any, by: int) -> Any:
    """A copy of a node, `by` characters further on in the text. Its marks keep their column; lines are not used."""
    found = copy.copy(node)
    found.start_mark, found.end_mark = _mark(node.start_mark, by), _mark(node.end_mark, by)
    if isinstance(node, MappingNode):
        found.value = [(_moved(key, by), _moved(value, by)) for key, value in node.value]
    elif isinstance(node, CollectionNode):
        found.value = [_moved(item, by) for item in node.value]
    return found


def _mark(mark: Any, by: int) -> Any:
    found = copy.copy(mark)
    found.index += by
    return found
