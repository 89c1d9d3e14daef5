"""ruamel.yaml with bounds: a text of 1 MB is composed, or refused with its line, in about a second.

ruamel.yaml is pure Python: it composes 20,000 values in two seconds and scans a megabyte of short words in three. So
values are counted while they are composed, and steps of the scanner (a word, a line, an escape) while it moves.

Four things that YAML 1.2 allows end in a KeyError or ValueError in ruamel.yaml 0.19.1, and one takes quadratic time:
a directive of another version (`%YAML 1.3` is read as 1.2, as the specification asks), its numbers of thousands of
digits, an escape beyond Unicode, and long tags.
"""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import Node
from ruamel.yaml.reader import Reader
from ruamel.yaml.scanner import Scanner, ScannerError

MOST_DEPTH = 50
MOST_VALUES = 5_000  # written out, and after aliases are followed: nine lines of aliases can stand for a billion
MOST_STEPS = 400_000  # of the scanner; a recipe takes some thousand
LONGEST_TAG = 200  # characters; no tag but those of plain values is read


class LimitError(MarkedYAMLError):  # type: ignore[misc]
    """A text that is YAML and too large for a recipe; `problem` says what is."""


def compose(text: str) -> Node | None:
    """The root node of a YAML 1.2 text; None if it is empty. Raises LimitError, and ruamel.yaml's errors."""
    yaml = YAML(typ="safe", pure=True, plug_ins=[])
    yaml.Reader, yaml.Scanner, yaml.Composer = _Reader, _Scanner, _Composer
    yaml.max_depth = MOST_DEPTH
    return yaml.compose(text)


class _Reader(Reader):  # type: ignore[misc]
    """Moves over a run of characters at once, and counts the moves."""

    steps = 0

    def forward(self, length: int = 1) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise LimitError(problem="has too many words and lines", problem_mark=self.get_mark())
        buffer, start = self.buffer, self.pointer
        self.pointer = end = start + length
        self.index += length
        if end >= len(buffer):
            raise IndexError("the end of the text")
        if length == 1:
            passed = buffer[start]
            if passed == "\n" or (passed == "\r" and buffer[end] != "\n"):
                self.line += 1
                self.column = 0
            elif passed != "\ufeff":
                self.column += 1
            return
        passed = buffer[start:end]
        if "\r" not in passed:
            head, newline, tail = passed.rpartition("\n")
            self.line += head.count("\n") + len(newline)
            self.column = (0 if newline else self.column) + len(tail) - tail.count("\ufeff")
            return
        for after, character in enumerate(passed, start + 1):
            if character == "\n" or (character == "\r" and buffer[after] != "\n"):
                self.line += 1
                self.column = 0
            elif character != "\ufeff":
                self.column += 1


# Blank lines and comments, line after line, then blanks and perhaps a comment; inside brackets a tab is blank, too.
_BETWEEN = re.compile(r"(?:[ ]*(?:#[^\0\r\n\x85\u2028\u2029]*)?\n)*[ ]*(?:#[^\0\r\n\x85\u2028\u2029]*)?")
_BETWEEN_IN_FLOW = re.compile(_BETWEEN.pattern.replace("[ ]", "[ \t]"))


class _Scanner(Scanner):  # type: ignore[misc]
    def scan_to_next_token(self) -> None:
        """As upstream's, many lines at once."""
        reader = self.reader
        if reader.index == 0 and reader.peek() == "\ufeff":
            reader.forward()
        pattern = _BETWEEN_IN_FLOW if self.flow_level else _BETWEEN
        while True:
            line = reader.line
            match = pattern.match(reader.buffer, reader.pointer)
            if match and match.end() > reader.pointer:
                reader.forward(match.end() - reader.pointer)
            broken = self.scan_line_break()
            if (broken or reader.line > line) and not self.flow_level:
                self.allow_simple_key = True
            if not broken:
                return

    def scan_yaml_directive_value(self, start_mark: Any) -> Any:
        try:
            major, _ = super().scan_yaml_directive_value(start_mark)
        except ValueError:  # a number of thousands of digits
            major = 0
        if major != 1:
            what = "this %YAML directive is of another YAML: recipes are YAML 1.2"
            raise ScannerError(None, None, what, start_mark)
        self.yaml_version = (1, 2)
        return self.yaml_version

    def scan_tag(self) -> Any:
        token = super().scan_tag()
        if len(token.value[1] or "") > LONGEST_TAG:
            raise LimitError(problem="has a tag that is too long", problem_mark=token.start_mark)
        return token

    def scan_flow_scalar_non_spaces(self, double: Any, start_mark: Any) -> Any:
        try:
            return super().scan_flow_scalar_non_spaces(double, start_mark)
        except (ValueError, OverflowError):  # \UFFFFFFFF
            mark = self.reader.get_mark()
            raise ScannerError(None, None, "an escape stands for no character of Unicode", mark) from None


class _Composer(Composer):  # type: ignore[misc]
    """Counts the values, and says nothing of an anchor that is used twice: YAML 1.2 lets the later one win."""

    values = 0

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self.warn_double_anchors = False

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            mark = self.parser.peek_event().start_mark
            raise LimitError(problem=f"stands for more than {MOST_VALUES} values", problem_mark=mark)
        return super().compose_node(parent, index)
