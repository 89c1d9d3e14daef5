"""chat: conversations, or prompt and completion, to tokens with the loss on the answers only.

data/chat_rows.py reads the rows, data/chat_template.py renders them and finds the answers, data/chat_tokens.py makes
token ids and marks of them; here they become stored rows, as in causal-lm (data/tokens/).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_recipes.data.chat_rows import RowReader, choose_reader, refuse_row
from hf_recipes.data.chat_template import AnswerTemplate, read_template
from hf_recipes.data.chat_tokens import Backend, BadRowError, Caller, RowEncoder
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.splits import Splits
from hf_recipes.data.template_shapes import CLOCK
from hf_recipes.data.tokens.encode import backend_text, dtype_of
from hf_recipes.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.data.streamed_rows import TokenStream
    from hf_recipes.data.tokens.rows import Batch, StoredRows
    from hf_recipes.data.tokens.store import ReadParts
    from hf_recipes.recipe.recipe import Recipe

# Used, with a message, when a tokenizer has no template: needs no special token except the end token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


CHECKED = 8  # rows that are tokenized in both ways before the backend is used on its own
READ_KEYS = ("_column", "_template", "role_names", "chat_template_kwargs")  # of the dataset section


def prepare(splits: Splits, tokenizer: Any, recipe: Recipe, max_length: int, config: Any = None) -> Prepared:
    """Rows (see data/chat_rows.py) to `input_ids` and `labels` (-100 except on answers), cut to `max_length` tokens.

    Of conversations the loss is on the assistant's messages (`assistant_only_loss: false`: on every token), of rows of
    prompt and completion on the completion (`completion_only_loss: false`: on every token; `assistant_only_loss: true`:
    on the assistant's messages in it). Rows whose answers are all cut off are left out and counted. Raises DataError if
    no row is left, for a row that is no conversation, and for a template whose answers cannot be located.
    """
    from transformers import DataCollatorForSeq2Seq

    from hf_recipes.data.streamed_rows import first_rows

    parts = splits.by_name()
    if not tokenizer.is_fast:
        what = "chat needs a fast tokenizer (for the position of each token in the text)"
        raise DataError.at(recipe.location("tokenizer"), what, "use a model with a tokenizer.json")
    reader = choose_reader(recipe, splits.train)
    encoder, notes = _row_encoder(recipe, tokenizer, reader, parts["train"], max_length)
    notes = [*([reader.note] if reader.note else []), *notes]
    found: dict[str, StoredRows] = {}
    stats: dict[str, SplitStats] = {}
    for split, part in parts.items():
        reader.check(recipe, part)
        if split == "train" and splits.stream is not None:
            continue
        rows = found[split] = _store_split(encoder, part, split, recipe, tokenizer)
        counts = AnswerCounts(**rows.counts)
        stats[split] = SplitStats(
            rows=rows.data.num_rows,
            tokens=rows.tokens,
            longest=counts.longest,
            label_tokens=counts.label_tokens,
            lost_label_tokens=counts.lost,
            bytes=None if split == "train" else sum(rows.row_bytes),
        )
        if rows.data.num_rows < counts.read:
            left_out = counts.read - rows.data.num_rows
            notes.append(f"{split}: {left_out} rows left out: no answer within {max_length} tokens")
        notes += _describe_lost(counts, split, max_length)
    train = found["train"].data if splits.stream is None else None
    if train is None:
        train, stats["train"], lines = _stream(splits, encoder, recipe)
        notes += lines
    evals = {split: rows for split, rows in found.items() if split != "train"}
    return Prepared(
        train=train,
        evals={split: rows.data for split, rows in evals.items()},
        collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        config={},
        label_names=(),
        stats=stats,
        ids={split: rows.ids for split, rows in evals.items()},
        row_bytes={split: rows.row_bytes for split, rows in evals.items()},
        sources={split: Source(rows=part, columns=reader.columns) for split, part in parts.items()},
        notes=(*notes, *_preview(first_rows(train, 1), tokenizer)),
    )


def _describe_lost(counts: AnswerCounts, split: str, max_length: int) -> list[str]:
    if not counts.lost:
        return []
    share = counts.lost / (counts.lost + counts.label_tokens)
    return [f"{split}: {share:.1%} of the answer tokens are beyond {max_length} tokens and are cut off"]


def _stream(splits: Splits, encoder: RowEncoder, recipe: Recipe) -> tuple[TokenStream, SplitStats, list[str]]:
    """The train split as a stream; what is counted, and refused ahead, is that of its first rows."""
    from hf_recipes.data.streamed_rows import make_chat_stream

    reader, head = encoder.reader, splits.train
    location = recipe.location(f"dataset.{reader.keys[0]}")
    columns = reader.select(head)
    try:
        found = encoder((0, columns[:]))
    except BadRowError as bad:
        raise refuse_row(reader, head, "train", bad.index, bad.problem, location) from bad.__cause__
    counts = _count([found])
    no_answer = _no_answer("train", recipe, location, encoder.max_length if found["lost"].any() else None)
    if not counts.label_tokens:
        raise no_answer
    assert splits.stream is not None
    tokens_of_row = float(found["lengths"][found["answered"] > 0].mean())
    stream = make_chat_stream(recipe, splits.stream, encoder, columns.column_names, tokens_of_row, no_answer)
    stats = SplitStats(
        rows=0, tokens=0, longest=counts.longest, label_tokens=counts.label_tokens, lost_label_tokens=counts.lost
    )
    return stream, stats, _describe_lost(counts, f"train (its first {head.num_rows:,} rows)", encoder.max_length)


@dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """Of a split: rows `read`, with those without an answer; of the rows that are left: tokens of the longest, tokens
    that carry the loss, and those beyond max_length."""

    read: int
    longest: int
    label_tokens: int
    lost: int


def _store_split(encoder: RowEncoder, part: Dataset, split: str, recipe: Recipe, tokenizer: Any) -> StoredRows:
    from hf_recipes.data.tokens.parts import Work
    from hf_recipes.data.tokens.rows import write_rows
    from hf_recipes.data.tokens.source import Columns
    from hf_recipes.data.tokens.store import count_processes, find_or_make, find_store

    reader = encoder.reader
    location = recipe.location(f"dataset.{reader.keys[0]}")
    columns = Columns(rows=part, names=tuple(reader.select(part).column_names))

    def write(parts: ReadParts, folder: Path) -> None:
        found = list(parts("lengths", "answered", "lost"))
        counts = _count(found)
        if not counts.label_tokens:
            beyond = any(one["lost"].any() for one in found)
            raise _no_answer(split, recipe, location, encoder.max_length if beyond else None)
        dtypes = {"input_ids": encoder.dtype, "labels": "int32"}

        def more(rows: Dataset | None) -> dict[str, np.ndarray]:
            return _evaluated(rows, tokenizer) if split != "train" and rows else {}

        write_rows(folder, _answered_rows(parts()), dtypes, asdict(counts), more)

    work = Work(
        split=split,
        noun="rows",
        rows=part.num_rows,
        rows_of_unit=columns.rows_of_unit,
        units=columns.units,
        read=columns.values,
        encode=encoder,
        processes=count_processes(recipe) if isinstance(encoder.tokenize, Backend) else 1,
    )
    facts = {**_facts(encoder, recipe, tokenizer), "sized": split != "train"}
    try:
        return find_or_make(find_store(recipe), columns, facts, work, write)
    except BadRowError as bad:
        raise refuse_row(reader, part, split, bad.index, bad.problem, location) from bad.__cause__


def _facts(encoder: RowEncoder, recipe: Recipe, tokenizer: Any) -> dict[str, Any]:
    """All but the rows themselves that changes what is made of them."""
    from datasets.fingerprint import Hasher

    from hf_recipes.data.tokens.store import code_facts

    reader, named = encoder.reader, recipe.section("dataset")
    templates = [one.source for one in encoder.templates.values()]
    return {
        **code_facts("datasets", "jinja2", "tokenizers", "transformers", "trl"),
        "tokenizer": asdict(encoder.tokenize) if isinstance(encoder.tokenize, Backend) else Hasher.hash(tokenizer),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "templates": templates,
        "day": str(date.today()) if any(CLOCK in one for one in templates) else "",
        "columns": [reader.columns, reader.keys, reader.optional, reader.chat],
        "read": {key: value for key, value in named.items() if key.endswith(READ_KEYS)},
        "padded": named.get("path") != "json",
        "losses": [encoder.answers, encoder.completion],
        "max_length": encoder.max_length,
        "eos": encoder.eos,
        "dtype": encoder.dtype,
    }


def _count(parts: Sequence[Mapping[str, np.ndarray]]) -> AnswerCounts:
    """Rows without an answer are left out, but what they lost to max_length is counted."""
    lengths, answered, lost = (
        np.concatenate([one[name] for one in parts]) if parts else np.empty(0, np.int64)
        for name in ("lengths", "answered", "lost")
    )
    used = answered > 0
    return AnswerCounts(
        read=len(lengths),
        longest=int(lengths[used].max(initial=0)),
        label_tokens=int(answered.sum()),
        lost=int(lost[used].sum()),
    )


def _no_answer(split: str, recipe: Recipe, location: str, max_length: int | None) -> DataError:
    """`max_length`: beyond which all answers are."""
    if max_length is None:
        what = f"no row of the {split} split has an answer: no message has the role 'assistant', or all are empty"
        return DataError.at(location, what, "check the roles, or name the columns")
    what = f"no row of the {split} split has an answer token within max_length {max_length}: all labels are masked"
    fix = "raise SFTConfig.max_length or check the columns"
    return DataError.at(recipe.location("SFTConfig.max_length"), what, fix)


def _answered_rows(parts: Iterator[Mapping[str, np.ndarray]]) -> Iterator[Batch]:
    """The rows that have an answer, with -100 as the label of what carries no loss."""
    from hf_recipes.data.tokens.rows import Batch

    for part in parts:
        used = part["answered"] > 0
        kept = np.repeat(used, part["lengths"])
        ids = part["ids"][kept]
        labels = np.where(part["learned"][kept], ids.astype(np.int32), np.int32(-100))
        yield Batch(lengths=part["lengths"][used], columns={"input_ids": ids, "labels": labels})


def _evaluated(rows: Dataset, tokenizer: Any) -> dict[str, np.ndarray]:
    """The bytes of text that each row predicts, and the rows' ids."""
    from hf_recipes.data.row_ids import row_ids
    from hf_recipes.data.tokens.rows import BYTES, IDS

    names = row_ids(rows, ["input_ids", "labels"])
    return {BYTES: np.array(_answer_bytes(rows, tokenizer), np.int64), IDS: np.array(names, dtype="S32")}


def _row_encoder(
    recipe: Recipe, tokenizer: Any, reader: RowReader, train: Dataset, max_length: int
) -> tuple[RowEncoder, list[str]]:
    """With notes on the templates."""
    answers, completion = _losses(recipe, reader)
    templates: dict[bool, AnswerTemplate] = {}
    if reader.chat:
        templates = {tools: read_template(tokenizer, mark=answers, tools=tools) for tools in (False, True)}
        if templates[False].needs_parts:
            what = "the chat template writes contents that are lists of parts, as of images, and nothing of a text"
            fix = "give a template for texts with SFTConfig.chat_template_path"
            raise DataError.at(recipe.location("model"), what, fix)
    encoder = RowEncoder(
        tokenize=Caller(tokenizer=tokenizer),
        reader=reader,
        templates=templates,
        answers=answers,
        completion=completion,
        max_length=max_length,
        eos=tokenizer.eos_token_id,
        dtype=dtype_of(tokenizer),
    )
    notes = list(dict.fromkeys(one.note for one in templates.values() if one.note))
    return _with_backend(encoder, tokenizer, train), notes


def _with_backend(encoder: RowEncoder, tokenizer: Any, train: Dataset) -> RowEncoder:
    """The encoder with the tokenizer's backend alone, where both make the same of the first rows."""
    text = backend_text(tokenizer)
    if text is None:
        return encoder
    backend = Backend(text=text, split_special_tokens=tokenizer.split_special_tokens)
    other = replace(encoder, tokenize=backend)
    values = 0, encoder.reader.select(train)[:CHECKED]
    try:
        known = encoder(values)
    except BadRowError:  # refused with its number when it is prepared
        return other
    alone = other(values)
    return other if all(np.array_equal(known[name], alone[name]) for name in known) else encoder


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


def _answer_bytes(rows: Dataset, tokenizer: Any) -> list[int]:
    """UTF-8 bytes of text that each row predicts."""
    found = []
    for batch in rows.select_columns(["labels"]).iter(1000):
        answers = [[i for i in labels[1:] if i != -100] for labels in batch["labels"]]
        found += [len(text.encode()) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
    return found


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
