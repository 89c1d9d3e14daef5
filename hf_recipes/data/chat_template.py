"""Where the answers stand in a conversation that a chat template rendered.

A template with {% generation %} says it itself. For a template without it, marks are put into its loops over the
messages, after it is parsed: one rendering then shows which text came from which message, whatever that text is.
What the template writes before an answer (its generation prompt) is no part of it, and neither are the line breaks
after it. Where a message's text does not come from its own turn of the loop, the answers are found by rendering every
prefix of the conversation; a template that rewrites earlier turns is then refused, since no mask would be right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from hf_recipes.data.template_marks import MARK, parse_template, with_marks
from hf_recipes.data.template_shapes import MOST, Shape, Spans, has_shape, is_by_roles, probes, read_shape

Message = dict[str, Any]
PROBE = "\ue000"  # a character that no template and no header holds
REASONING = ("reasoning_content", "thinking", "reasoning")
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)  # not every one takes every row


class RewrittenTurnsError(ValueError):
    """The template writes earlier answers otherwise once more messages follow."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, and where the answers are in it."""

    text: str
    spans: Spans


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """A rendering with marks: each message's pieces of the text, in order of the messages."""

    text: str
    pieces: list[Spans]


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What stands before an answer: as the template ends a prompt for it, and as it begins the answer's turn."""

    prompt: str
    turn: str
    lead: str = ""  # before both, in the first turn


@dataclass(frozen=True, kw_only=True)
class AnswerTemplate:
    """A tokenizer's chat template; `render` finds the answers in what it writes.

    `source` is the template's text, `special` the tokenizer's special tokens by name, as templates read them, and
    `ends` the texts of all its special tokens.
    """

    source: str
    special: Mapping[str, Any]
    ends: tuple[str, ...]
    marked: bool  # the template has {% generation %}
    note: str = ""
    _traced: Any = None  # the compiled template with marks
    _headers: dict[str, _Header | None] = field(default_factory=dict)
    _by_roles: bool = False  # the text depends on the roles alone (template_shapes.py)
    _shapes: dict[tuple[str, ...], Shape | None] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """A compiled template is compiled again in another process."""
        names = ("special", "ends", "marked", "note", "_by_roles")
        kept = {name: getattr(self, name) for name in names}
        return _make_again, (self.source, self._traced is not None, kept)

    def render(self, messages: Sequence[Message], tools: Any, arguments: Mapping[str, Any]) -> Rendered:
        """The conversation, and the spans of its answers.

        `arguments` are variables of the template. Raises whatever the template raises (templates are programs), and
        RewrittenTurnsError where the answers cannot be located.
        """
        if self._by_roles and tools is None and has_shape(messages):
            shape = self._shape(messages, arguments)
            if shape is not None:
                text, spans = shape.fill(messages)
                return Rendered(text=text, spans=spans)
        return self._render_row(messages, tools, arguments)

    def _shape(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> Shape | None:
        """What conversations of these roles have in common; None where that is not known."""
        roles = [str(message["role"]) for message in messages]
        key = (*roles, json.dumps(arguments, sort_keys=True, default=str) if arguments else "")
        if key not in self._shapes and len(self._shapes) < MOST:
            self._shapes[key] = None
            rendered = self._render_row(messages, None, arguments)  # raises what is wrong with the row
            try:
                probe = self._render_row(probes(roles), None, arguments)
            except TEMPLATE_ERRORS:
                return None
            shape = read_shape(probe.text, probe.spans)
            if shape is not None and shape.fill(messages) == (rendered.text, rendered.spans):
                self._shapes[key] = shape
        return self._shapes.get(key)

    def _render_row(self, messages: Sequence[Message], tools: Any, arguments: Mapping[str, Any]) -> Rendered:
        messages = [clean_message(message) for message in messages]
        if self.marked:
            return self._render_marked(messages, tools, arguments)
        traced = self._trace(messages, tools, arguments)
        if not self._is_by_message(messages, traced):
            return self._render_prefixes(messages, tools, arguments)
        spans: Spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                header = self._header(messages, i, tools, arguments)
                if header is None:
                    return self._render_prefixes(messages, tools, arguments)
                spans += self._answer(traced, i, header)
        return Rendered(text=traced.text, spans=spans)

    def text(self, messages: Sequence[Message], tools: Any, arguments: Mapping[str, Any], prompt: bool = False) -> str:
        """The conversation as text; `prompt`: with what the template writes before the next answer."""
        from transformers.utils.chat_template_utils import render_jinja_template

        messages = [clean_message(message) for message in messages]
        rendered: Any = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=self.source,
            add_generation_prompt=prompt,
            **{**self.special, **arguments},
        )
        return str(rendered[0][0])

    @property
    def locates(self) -> bool:
        """Whether the answers are known: it was read to find them."""
        return self.marked or self._traced is not None

    @property
    def needs_parts(self) -> bool:
        """Whether it writes nothing of a content that is a text, but does of a list of parts (templates for images)."""

        def writes(content: Any) -> bool:
            try:
                return PROBE in self.text([{"role": "user", "content": content}], None, {})
            except TEMPLATE_ERRORS:
                return False

        return not writes(PROBE) and writes([{"type": "text", "text": PROBE}])

    def _render_marked(self, messages: list[Message], tools: Any, arguments: Mapping[str, Any]) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=self.source,
            return_assistant_tokens_mask=True,
            **{**self.special, **arguments},
        )
        return Rendered(text=str(rendered[0][0]), spans=[(start, stop) for start, stop in rendered[1][0]])

    def _trace(
        self, messages: list[Message], tools: Any, arguments: Mapping[str, Any], prompt: bool = False
    ) -> _Traced:
        number = {id(message): i for i, message in enumerate(messages)}
        blocks: list[str] = []
        written = 0
        begun, current = 0, -1
        pieces: list[Spans] = [[] for _ in messages]

        def mark(value: Any) -> str:
            nonlocal begun, current
            turn = -1 if value is None else number.get(id(value), current)
            if turn != current:
                if current >= 0 and written > begun:
                    pieces[current].append((begun, written))
                begun, current = written, turn
            return ""

        variables = {**self.special, **arguments, MARK: mark}
        stream = self._traced.generate(
            messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, **variables
        )
        for block in stream:
            blocks.append(block)
            written += len(block)
        mark(None)
        return _Traced(text="".join(blocks), pieces=[_joined(spans) for spans in pieces])

    def _is_by_message(self, messages: list[Message], traced: _Traced) -> bool:
        """Whether every message's own text is in its own turn of the loop."""
        for message, pieces in zip(messages, traced.pieces, strict=True):
            content = message.get("content")
            if not isinstance(content, str) or message["role"] not in ("assistant", "tool"):
                continue
            written = "".join(traced.text[start:stop] for start, stop in pieces)
            # Templates strip an answer, and may leave out the reasoning of earlier ones.
            if content.rpartition("</think>")[2].strip() not in written:
                return False
            if not written and content:
                return False
        return True

    def _answer(self, traced: _Traced, i: int, header: _Header) -> Spans:
        """The pieces of the i-th message without what the template writes before and after an answer."""
        pieces = list(traced.pieces[i])
        if not pieces:
            return []
        text = traced.text
        begin, stop = pieces[0]
        begin += common_length(header.lead, text[begin:stop])
        turn = text[begin:stop]
        known = len(header.prompt)
        if not turn.startswith(header.prompt):  # as one that ends with <think> before an answer that has none
            known = min(common_length(header.prompt, header.turn), common_length(header.turn, turn))
        pieces[0] = (begin + known, stop)
        begin, stop = pieces[-1]
        stop = max(begin, len(text[:stop].rstrip("\n")))
        if i == len(traced.pieces) - 1 and not text[:stop].endswith(self.ends):
            stop += _end_after(text[stop:], self.ends)  # written after the loop
        pieces[-1] = (begin, stop)
        return pieces

    def _header(self, messages: list[Message], i: int, tools: Any, arguments: Mapping[str, Any]) -> _Header | None:
        """What stands before the i-th message, an answer. It depends on the message before, not on its text."""
        before = messages[i - 1]["role"] if i else None
        key = json.dumps([before, bool(tools) if i else tools, arguments], sort_keys=True, default=str)
        if key not in self._headers:
            found = self._find_header(messages[:i], tools, arguments) if i else None
            opened = [{"role": "user", "content": PROBE}]
            found = found or self._find_header(opened, tools, arguments)
            self._headers[key] = found if i or not found else self._find_lead(found, tools, arguments)
        return self._headers[key]

    def _find_header(self, messages: list[Message], tools: Any, arguments: Mapping[str, Any]) -> _Header | None:
        """What stands before an answer to these messages; None where the template does not take them."""
        try:
            plain = self._trace(messages, tools, arguments)
            asked = self._trace(messages, tools, arguments, prompt=True)
        except TEMPLATE_ERRORS:
            return None
        turn = self._turn_until_answer(messages, tools, arguments)
        if turn is None or not plain.pieces[-1]:
            return None
        begun = plain.pieces[-1][-1][1]
        return _Header(prompt=asked.text[begun:], turn=turn) if asked.text[:begun] == plain.text[:begun] else None

    def _find_lead(self, header: _Header, tools: Any, arguments: Mapping[str, Any]) -> _Header | None:
        """With what the template writes in the first turn before it: its own system message."""
        turn = self._turn_until_answer([], tools, arguments)
        if turn is None or not turn.endswith(header.turn):
            return None
        return _Header(prompt=header.prompt, turn=header.turn, lead=turn.removesuffix(header.turn))

    def _turn_until_answer(self, messages: list[Message], tools: Any, arguments: Mapping[str, Any]) -> str | None:
        try:
            answered = self._trace([*messages, {"role": "assistant", "content": PROBE}], tools, arguments)
        except TEMPLATE_ERRORS:
            return None
        start, stop = answered.pieces[-1][0] if answered.pieces[-1] else (0, 0)
        turn, found, _ = answered.text[start:stop].partition(PROBE)
        return turn if found else None

    def _render_prefixes(self, messages: list[Message], tools: Any, arguments: Mapping[str, Any]) -> Rendered:
        """The answers of a template that has no loop over the messages: what each adds to the text before it."""
        text = self.text(messages, tools, arguments)
        spans: Spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            after = self.text(messages[: i + 1], tools, arguments)
            stop = len(after.rstrip("\n"))
            if i:
                before = self.text(messages[:i], tools, arguments, prompt=True)
                start = len(before) if after.startswith(before) else -1
            else:  # no prompt to render: what comes before (the template's own system message) is not the answer
                start = after.rfind(str(message.get("content", "")).strip())
            if start < 0 or not text.startswith(after[:stop]):
                raise RewrittenTurnsError
            spans.append((start, stop))
        return Rendered(text=text, spans=spans)


def read_template(tokenizer: Any, mark: bool = True, tools: bool = False) -> AnswerTemplate:
    """The tokenizer's template for conversations, or for those with `tools` where it has one for them.

    `mark`: the answers will be asked for; a template without {% generation %} that TRL knows is replaced by TRL's
    version of it.
    """
    source = tokenizer.get_chat_template(tools=[{}] if tools else None)
    note = ""
    if mark and not is_marked(source):
        known = _trl_version(tokenizer, source)
        note = "chat template: TRL's version of it for training, which marks the answers" if known else ""
        source = known or source
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    marked = mark and is_marked(source)
    return AnswerTemplate(
        source=source,
        special=dict(tokenizer.special_tokens_map),
        ends=tuple({*added, *tokenizer.all_special_tokens}),
        marked=marked,
        note=note,
        _traced=with_marks(source) if mark and not marked else None,
        _by_roles=marked and is_by_roles(parse_template(source)),
    )


def _make_again(source: str, traced: bool, kept: Mapping[str, Any]) -> AnswerTemplate:
    return AnswerTemplate(source=source, _traced=with_marks(source) if traced else None, **kept)


def is_marked(source: str) -> bool:
    """Whether a template has {% generation %}."""
    from trl.chat_template_utils import has_generation_markers

    return bool(has_generation_markers(source))


def _trl_version(tokenizer: Any, source: str) -> str | None:
    """TRL's own version of a template that it knows: the same text, with the answers marked and no answer rewritten."""
    from trl.chat_template_utils import get_training_chat_template

    if tokenizer.chat_template != source:  # one of several
        return None
    try:
        return get_training_chat_template(tokenizer)
    except TEMPLATE_ERRORS:  # unknown, or its probes do not fit this template
        return None


def clean_message(message: Message) -> Message:
    """The message as transformers hands it to a template: without keys of no value, reasoning under each of its
    names."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[key] for key in REASONING if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of what two sequences begin with."""
    if one[: len(other)] == other[: len(one)]:
        return min(len(one), len(other))
    return next(i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])


def _joined(spans: Spans) -> Spans:
    """Spans with those that touch made one."""
    found: Spans = []
    for start, stop in spans:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def _end_after(text: str, ends: tuple[str, ...]) -> int:
    """Characters up to the end of a special token that begins the text, after line breaks; 0 if there is none."""
    begun = len(text) - len(text.lstrip("\n"))
    return max((begun + len(end) for end in ends if end and text.startswith(end, begun)), default=0)
