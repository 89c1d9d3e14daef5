"""chat: conversations, or prompt and completion, to tokens with the loss on the answers only.

data/chat_rows.py reads the rows, data/chat_template.py renders them and finds the answers; here they become token ids
and labels, a batch of rows at a time.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.common.text import first_line
from hf_recipes.data.chat_messages import RowError
from hf_recipes.data.chat_rows import Conversation, Pair, RowReader, choose_reader, refuse_row
from hf_recipes.data.chat_template import AnswerTemplate, RewrittenTurnsError, Spans, common_length, read_template
from hf_recipes.data.columns import values_of
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

# Used, with a message, when a tokenizer has no template: needs no special token except the end token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows (see data/chat_rows.py) to `input_ids` and `labels` (-100 except on answers), cut to `max_length` tokens.

    Of conversations the loss is on the assistant's messages (`assistant_only_loss: false`: on every token), of rows of
    prompt and completion on the completion (`completion_only_loss: false`: on every token; `assistant_only_loss: true`:
    on the assistant's messages in it). Rows whose answers are all cut off are left out and counted. Raises DataError if
    no row is left, for a row that is no conversation, and for a template whose answers cannot be located.
    """
    from transformers import DataCollatorForSeq2Seq

    parts = splits.by_name()
    if not tokenizer.is_fast:
        what = "chat needs a fast tokenizer (for the position of each token in the text)"
        raise DataError.at(recipe.location("tokenizer"), what, "use a model with a tokenizer.json")
    reader = choose_reader(recipe, splits.train)
    encode = _row_encoder(recipe, tokenizer, reader, max_length)
    encoded: dict[str, Dataset] = {}
    stats: dict[str, SplitStats] = {}
    row_bytes: dict[str, list[int]] = {}
    notes = [*([reader.note] if reader.note else []), *encode.notes]
    for split, part in parts.items():
        reader.check(recipe, part)
        rows = _encode_split(encode, part, split)
        answered = [i for i, count in enumerate(values_of(rows, "label_tokens")) if count]
        if not answered and not sum(values_of(rows, "lost")):
            what = f"no row of the {split} split has an answer: no message has the role 'assistant', or all are empty"
            raise DataError.at(encode.location, what, "check the roles, or name the columns")
        if not answered:
            what = (
                f"no row of the {split} split has an answer token within max_length {max_length}: all labels are masked"
            )
            raise DataError.at(
                recipe.location("SFTConfig.max_length"), what, "raise SFTConfig.max_length or check the columns"
            )
        if len(answered) < rows.num_rows:
            left_out = rows.num_rows - len(answered)
            notes.append(f"{split}: {left_out} rows left out: no answer within {max_length} tokens")
            rows = rows.select(answered)
        if split != "train":
            row_bytes[split] = _answer_bytes(rows, tokenizer)
        counts = _counts(rows, row_bytes.get(split))
        lost = counts.lost_label_tokens or 0
        if lost:
            share = lost / (lost + (counts.label_tokens or 0))
            notes.append(f"{split}: {share:.1%} of the answer tokens are beyond {max_length} tokens and are cut off")
        encoded[split], stats[split] = rows.select_columns(["input_ids", "labels"]), counts
    evals = {split: part for split, part in encoded.items() if split != "train"}
    return Prepared(
        train=encoded["train"],
        evals=evals,
        collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        config={},
        label_names=(),
        stats=stats,
        ids={split: row_ids(part, ["input_ids", "labels"]) for split, part in evals.items()},
        row_bytes=row_bytes,
        sources={split: Source(rows=part, columns=reader.columns) for split, part in parts.items()},
        notes=(*notes, *_preview(encoded["train"], tokenizer)),
    )


@dataclass(frozen=True, kw_only=True)
class _RowEncoder:
    """Token ids and labels of rows. `answers`: only what the assistant wrote carries the loss; `completion`: only what
    follows the prompt; both: what the assistant wrote after the prompt."""

    tokenizer: Any
    reader: RowReader
    templates: Mapping[bool, AnswerTemplate]  # for rows with tools, and without
    answers: bool
    completion: bool
    max_length: int  # tokens of a row
    location: str  # where problems of rows are reported
    identity: str  # equal for encoders that make the same of every row
    notes: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """`datasets` finds rows that it has cached by the pickle of their function."""
        return str, (self.identity,)

    def __call__(self, batch: Mapping[str, list], indices: Sequence[int]) -> Any:
        """Columns of a batch to those of the encoded rows, as an Arrow table: of lists `datasets` would look at each
        value for its type. Raises _BadRowError with the row's index."""
        import pyarrow as pa

        rows = []
        for i, values in zip(indices, zip(*batch.values(), strict=True), strict=True):
            try:
                rows.append(self.reader.read(dict(zip(batch, values, strict=True))))
            except RowError as problem:
                raise _BadRowError(i, problem) from problem
        encoded = self._encode(rows, indices)
        most = self.max_length
        ids = [ids[:most] for ids, _ in encoded]
        counted = {
            "label_tokens": [_count_labels(labels[1:most]) for _, labels in encoded],  # a row's first is not predicted
            "lost": [_count_labels(labels[most:]) for _, labels in encoded],
            "tokens": [len(row) for row in ids],
        }
        listed = {"input_ids": ids, "labels": [labels[:most] for _, labels in encoded]}
        arrays = {name: pa.array(rows, pa.list_(pa.int64())) for name, rows in listed.items()}
        return pa.table({**arrays, **{name: pa.array(values, pa.int64()) for name, values in counted.items()}})

    def _encode(self, rows: Sequence[Conversation | Pair], indices: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """(input_ids, labels) of each row; -100 where a token carries no loss."""
        if rows and isinstance(rows[0], Pair):
            return self._encode_pairs([row for row in rows if isinstance(row, Pair)])
        prompts, texts, spans = [], [], []
        for i, row in zip(indices, rows, strict=True):
            prompt, text, found = self._render(row, i)
            prompts.append(prompt)
            texts.append(text)
            spans.append(found)
        encoded = self._tokenize(texts)
        ids = encoded["input_ids"]
        if self.answers:
            labels = [label_spans(*row) for row in zip(ids, encoded.encodings, spans, strict=True)]
        else:
            labels = [list(row) for row in ids]
        if self.completion:
            _mask_prompts(self._tokenize(prompts)["input_ids"], ids, labels)
        return list(zip(ids, labels, strict=True))

    def _encode_pairs(self, rows: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
        ids = self._tokenize([row.prompt + row.completion for row in rows], special=True)["input_ids"]
        labels = [list(row) for row in ids]
        if self.completion:
            _mask_prompts(self._tokenize([row.prompt for row in rows], special=True)["input_ids"], ids, labels)
        end = self.tokenizer.eos_token_id
        for row, marked in zip(ids, labels, strict=True):
            if end is not None and row[-1:] == [end]:
                marked[-1] = end
            elif end is not None:
                row.append(end)
                marked.append(end)
        return list(zip(ids, labels, strict=True))

    def _tokenize(self, texts: list[str], special: bool = False) -> Any:
        """`special`: the tokenizer adds its begin token; a template writes its own."""
        return self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )

    def _render(self, row: Any, index: int) -> tuple[str, str, Spans]:
        """The prompt's text, the whole text, and the answers in it."""
        template = self.templates[bool(row.tools)]
        prompt = ""
        try:
            if self.completion:
                prompt = template.text(row.messages[: row.prompt], row.tools, row.arguments, prompt=True)
            if not self.answers:
                return prompt, template.text(row.messages, row.tools, row.arguments), []
            rendered = template.render(row.messages, row.tools, row.arguments)
        except RewrittenTurnsError as problem:
            what = "the chat template rewrites earlier turns, so the answers cannot be located"
            fix = "give single-turn rows, or another template with SFTConfig.chat_template_path"
            raise _BadRowError(index, RowError("", what, fix)) from problem
        except Exception as problem:  # templates are programs and may raise anything
            what = f"the chat template rejects it: {first_line(problem)}"
            fix = "fix the row, or give another template with SFTConfig.chat_template_path"
            raise _BadRowError(index, RowError("", what, fix)) from problem
        return prompt, rendered.text, rendered.spans


class _BadRowError(Exception):
    def __init__(self, index: int, problem: RowError) -> None:
        super().__init__(index, problem)
        self.index, self.problem = index, problem


def _row_encoder(recipe: Recipe, tokenizer: Any, reader: RowReader, max_length: int) -> _RowEncoder:
    location = recipe.location(f"dataset.{reader.keys[0]}")
    answers, completion = _losses(recipe, reader)
    templates = {}
    if reader.chat:
        templates = {tools: read_template(tokenizer, mark=answers, tools=tools) for tools in (False, True)}
        if templates[False].needs_parts:
            what = "the chat template writes contents that are lists of parts, as of images, and nothing of a text"
            fix = "give a template for texts with SFTConfig.chat_template_path"
            raise DataError.at(recipe.location("model"), what, fix)
    identity = [__version__, reader.columns, reader.optional, answers, completion, max_length]
    identity += [recipe.section("dataset"), tokenizer.special_tokens_map, *(one.source for one in templates.values())]
    digest = hashlib.blake2b(json.dumps(identity, sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return _RowEncoder(
        tokenizer=tokenizer,
        reader=reader,
        templates=templates,
        answers=answers,
        completion=completion,
        max_length=max_length,
        location=location,
        identity=digest.hexdigest(),
        notes=tuple(dict.fromkeys(one.note for one in templates.values() if one.note)),
    )


def _losses(recipe: Recipe, reader: RowReader) -> tuple[bool, bool]:
    """(only the assistant's messages, only the completion) carry the loss. Raises DataError for a key that these rows
    cannot follow."""
    answers, completion = (recipe.training.get(key) for key in ("assistant_only_loss", "completion_only_loss"))
    if not reader.completion:
        if completion is not None:
            what = "completion_only_loss is for rows of prompt and completion, and these are conversations"
            fix = "leave it out: the loss is on the answers" if completion else "write assistant_only_loss: false"
            raise DataError.at(recipe.location("SFTConfig.completion_only_loss"), what, fix)
        return answers is not False, False
    if answers and not reader.chat:
        what = "assistant_only_loss: true is for conversations, and these rows are plain texts"
        fix = "leave it out: the loss is on the completion"
        raise DataError.at(recipe.location("SFTConfig.assistant_only_loss"), what, fix)
    return bool(answers), completion is not False


def _encode_split(encode: _RowEncoder, part: Dataset, split: str) -> Dataset:
    rows = encode.reader.select(part)
    try:
        return rows.map(encode, batched=True, with_indices=True, remove_columns=rows.column_names, desc=f"{split} rows")
    except _BadRowError as bad:
        raise refuse_row(encode.reader, part, split, bad.index, bad.problem, encode.location) from bad.__cause__


def label_spans(ids: Sequence[int], encoding: Any, spans: Spans) -> list[int]:
    """The ids of the tokens that overlap a span of characters, -100 for the others: as transformers does it for
    {% generation %} (a space before the answer's first word is part of that word's token).

    `encoding`: of the tokenizers library, which is asked for the tokens at a span's ends: a list of every token's
    place would cost as much as tokenizing.
    """
    labels = [-100] * len(ids)
    for start, stop in spans:
        if start >= stop:
            continue
        first, last = encoding.char_to_token(start), encoding.char_to_token(stop - 1)
        if first is None or last is None:  # a character that is in no token, such as a blank that is dropped
            places = encoding.offsets
            first = bisect_right(places, start, key=lambda place: place[1])
            last = bisect_left(places, stop, key=lambda place: place[0])
        else:  # a character may be several tokens
            while last < len(ids) and encoding.token_to_chars(last)[0] < stop:
                last += 1
        labels[first:last] = ids[first:last]
    return labels


def _count_labels(labels: list[int]) -> int:
    return len(labels) - labels.count(-100)


def _mask_prompts(prompts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]], labels: Sequence[list[int]]) -> None:
    """The completion begins where its tokens and those of the prompt alone differ, as in TRL."""
    for prompt, row, marked in zip(prompts, ids, labels, strict=True):
        length = common_length(prompt, row)
        marked[:length] = [-100] * length


def _answer_bytes(rows: Dataset, tokenizer: Any) -> list[int]:
    """UTF-8 bytes of text that each row predicts."""
    found = []
    for batch in rows.select_columns(["labels"]).iter(1000):
        answers = [[i for i in labels[1:] if i != -100] for labels in batch["labels"]]
        found += [len(text.encode()) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    return found


def _counts(rows: Dataset, sizes: Sequence[int] | None) -> SplitStats:
    lengths = values_of(rows, "tokens")
    return SplitStats(
        rows=rows.num_rows,
        tokens=sum(lengths),
        longest=max(lengths),
        label_tokens=sum(values_of(rows, "label_tokens")),
        lost_label_tokens=sum(values_of(rows, "lost")),
        bytes=None if sizes is None else sum(sizes),
    )


def _preview(rows: Dataset, tokenizer: Any, limit: int = 12) -> list[str]:
    """The first row as runs of tokens; those that carry the loss are marked."""
    row = rows[0]
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if not runs or runs[-1][0] != (label != -100):
            runs.append((label != -100, []))
        runs[-1][1].append(token)
    lines = ["the first row; the loss is on the parts marked >>"]
    for answered, ids in runs[:limit]:
        text = tokenizer.decode(ids).replace("\n", "\\n")
        lines.append(f"  {'>>' if answered else '  '} {text if len(text) <= 100 else text[:60] + ' ... ' + text[-35:]}")
    return lines
