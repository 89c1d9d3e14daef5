"""Rows of a chat data set to token ids, and which of them carry the loss.

What is here is sent to other processes (data/tokens/), which import neither torch nor datasets.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_recipes.common.text import first_line
from hf_recipes.data.chat_messages import RowError
from hf_recipes.data.chat_rows import Conversation, Pair, RowReader
from hf_recipes.data.chat_template import AnswerTemplate, RewrittenTurnsError, Spans, common_length
from hf_recipes.data.tokens.encode import TEXT_AT_ONCE, UnitError, join, read_backend


class BadRowError(UnitError):
    """A row, by its number in the split, that is no conversation or has no right mask."""

    def __init__(self, index: int, problem: RowError) -> None:
        super().__init__(index, problem)
        self.index, self.problem = index, problem


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A tokenizer by its tokenizer.json's text: it can be sent to another process."""

    text: str
    split_special_tokens: bool

    def __call__(self, texts: list[str], special: bool) -> Sequence[Any]:
        """Encodings of the tokenizers library. `special`: the tokenizer adds its begin token; a template writes its
        own."""
        backend = read_backend(self.text, self.split_special_tokens)
        found: Sequence[Any] = backend.encode_batch(texts, add_special_tokens=special)
        return found


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A tokenizer by its own call, whatever it does."""

    tokenizer: Any

    def __call__(self, texts: list[str], special: bool) -> Sequence[Any]:
        found: Sequence[Any] = self.tokenizer(texts, add_special_tokens=special, verbose=False).encodings
        return found


@dataclass(frozen=True, kw_only=True)
class RowEncoder:
    """Token ids of rows, and which carry the loss. `answers`: only what the assistant wrote; `completion`: only what
    follows the prompt; both: what the assistant wrote after the prompt."""

    tokenize: Backend | Caller
    reader: RowReader
    templates: Mapping[bool, AnswerTemplate]  # for rows with tools, and without
    answers: bool
    completion: bool
    max_length: int  # tokens of a row
    eos: int | None
    dtype: str  # of an id

    def __call__(self, values: tuple[int, Mapping[str, list[Any]]]) -> dict[str, np.ndarray]:
        """The number of the first row and the columns, to arrays of a part: the `ids` of all rows one after the other,
        whether each is `learned`, and of each row its `lengths`, the tokens that are learned (`answered`: but its
        first, which nothing predicts) and those beyond max_length (`lost`). Raises BadRowError."""
        begin, columns = values
        most = self.max_length
        ids, learned, lengths, answered, lost = [], [], [], [], []
        for rows in self._read(begin, columns):
            for row, marks in self._encode(rows):
                ids.append(row[:most])
                learned.append(marks[:most])
                lengths.append(len(ids[-1]))
                answered.append(np.count_nonzero(marks[1:most]))
                lost.append(np.count_nonzero(marks[most:]))
        counts = {"lengths": lengths, "answered": answered, "lost": lost}
        return {
            "ids": join(ids, self.dtype),
            "learned": join(learned, "bool"),
            **{name: np.array(count, np.int64) for name, count in counts.items()},
        }

    def _read(self, begin: int, columns: Mapping[str, list[Any]]) -> Iterator[list[_Text]]:
        """Rows as texts, `TEXT_AT_ONCE` characters at a time."""
        found: list[_Text] = []
        size = 0
        for i, values in enumerate(zip(*columns.values(), strict=True), begin):
            try:
                row = self.reader.read(dict(zip(columns, values, strict=True)))
            except RowError as problem:
                raise BadRowError(i, problem) from problem
            text = self._render(row, i)
            if found and size + len(text.text) > TEXT_AT_ONCE:
                yield found
                found, size = [], 0
            found.append(text)
            size += len(text.text)
        if found:
            yield found

    def _encode(self, rows: Sequence[_Text]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids of each row, and which of them carry the loss."""
        pairs = not self.reader.chat
        encodings = self.tokenize([row.text for row in rows], pairs)
        prompts = self.tokenize([row.prompt for row in rows], pairs) if self.completion else ()
        for i, (row, encoding) in enumerate(zip(rows, encodings, strict=True)):
            ids = encoding.ids
            marks = np.zeros(len(ids), bool) if self.answers else np.ones(len(ids), bool)
            if self.answers:
                for first, last in find_tokens(encoding, row.spans):
                    marks[first:last] = True
            if self.completion:  # it begins where its tokens and those of the prompt alone differ, as in TRL
                marks[: common_length(prompts[i].ids, ids)] = False
            if pairs and self.eos is not None:
                if ids[-1:] == [self.eos]:
                    marks[-1] = True
                else:
                    ids = [*ids, self.eos]
                    marks = np.append(marks, True)
            yield np.array(ids, self.dtype), marks

    def _render(self, row: Conversation | Pair, index: int) -> _Text:
        if isinstance(row, Pair):
            return _Text(prompt=row.prompt, text=row.prompt + row.completion)
        template = self.templates[bool(row.tools)]
        prompt = ""
        try:
            if self.completion:
                prompt = template.text(row.messages[: row.prompt], row.tools, row.arguments, prompt=True)
            if not self.answers:
                return _Text(prompt=prompt, text=template.text(row.messages, row.tools, row.arguments))
            rendered = template.render(row.messages, row.tools, row.arguments)
            return _Text(prompt=prompt, text=rendered.text, spans=rendered.spans)
        except RewrittenTurnsError as problem:
            what = "the chat template rewrites earlier turns, so the answers cannot be located"
            fix = "give single-turn rows, or another template with SFTConfig.chat_template_path"
            raise BadRowError(index, RowError("", what, fix)) from problem
        except Exception as problem:  # templates are programs and may raise anything
            what = f"the chat template rejects it: {first_line(problem)}"
            fix = "fix the row, or give another template with SFTConfig.chat_template_path"
            raise BadRowError(index, RowError("", what, fix)) from problem


@dataclass(frozen=True, kw_only=True)
class _Text:
    """A row as text: the prompt, the whole, and the answers in it."""

    text: str
    prompt: str = ""
    spans: Spans = field(default_factory=list)


def find_tokens(encoding: Any, spans: Spans) -> Iterator[tuple[int, int]]:
    """The first token and the one after the last of those that overlap each span of characters: as transformers does
    it for {% generation %} (a space before the answer's first word is part of that word's token).

    `encoding`: of the tokenizers library, which is asked for the tokens at a span's ends: a list of every token's
    place would cost as much as tokenizing.
    """
    for start, stop in spans:
        if start >= stop:
            continue
        first, last = encoding.char_to_token(start), encoding.char_to_token(stop - 1)
        if first is None or last is None:  # a character that is in no token, such as a blank that is dropped
            places = encoding.offsets
            first = bisect_right(places, start, key=lambda place: place[1])
            last = bisect_left(places, stop, key=lambda place: place[0])
        else:  # a character may be several tokens
            while last < len(encoding) and encoding.token_to_chars(last)[0] < stop:
                last += 1
        yield first, last
