"""chat: prompt/completion or messages, loss on the answers only.

Rows are rendered by the tokenizer's own chat template. The tokens of the answers are found by rendering every
prefix of the conversation that ends before and after an assistant message: what the template adds is the answer
(with its end-of-turn token, so that the model learns to stop). That needs no {% generation %} marks in the
template, which most lack; a template that rewrites earlier turns is detected and refused, since no mask is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes import __version__
from hf_recipes.common.text import first_line
from hf_recipes.data.prepared import Prepared, Source, SplitStats
from hf_recipes.data.row_ids import row_ids
from hf_recipes.data.splits import Splits, find_column
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
    """Rows (messages, or prompt and completion) to `input_ids` and `labels` (-100 except on answers), cut to
    `max_length` tokens.

    `assistant_only_loss: false` (messages) or `completion_only_loss: false` (prompt/completion) in SFTConfig puts the
    loss on every token. Rows whose answers are all cut off are left out and counted. Raises DataError if no row is
    left, for a row that is no conversation, and for a template whose answers cannot be located.
    """
    from transformers import DataCollatorForSeq2Seq

    parts = splits.by_name()
    if not tokenizer.is_fast:
        what = "chat needs a fast tokenizer (for the position of each token in the text)"
        raise DataError.at(recipe.location("tokenizer"), what, "use a model with a tokenizer.json")
    columns = _columns(splits.train, recipe)
    messages = len(columns) == 1
    only = recipe.training.get("assistant_only_loss" if messages else "completion_only_loss")
    encoded: dict[str, Dataset] = {}
    stats: dict[str, SplitStats] = {}
    notes = []
    for split, part in parts.items():
        for name, key in zip(columns, _column_keys(messages), strict=True):
            find_column(recipe, part, key, name)
        location = recipe.location(f"dataset.{_column_keys(messages)[0]}")

        # upstream's cache finds its rows by what this function closes over: not the recipe, but our version.
        def encode(
            row: dict[str, Any], index: int, split: str = split, location: str = location, version: str = __version__
        ) -> dict[str, Any]:
            name = f"row {index} of the {split} split"
            if messages:
                ids, labels = _conversation(row[columns[0]], 0, tokenizer, name, location)
            else:
                ids, labels = _completion(row, columns, tokenizer, name, location)
            if only is False:
                labels = list(ids)
            kept_labels = labels[:max_length]
            answers = [i for i in kept_labels[1:] if i != -100]
            text = tokenizer.decode(answers, skip_special_tokens=True)
            return {
                "input_ids": ids[:max_length],
                "labels": kept_labels,
                "bytes": len(text.encode()),
                "label_tokens": len(answers),
                "lost": sum(label != -100 for label in labels[max_length:]),
            }

        rows = part.map(encode, with_indices=True, remove_columns=part.column_names, desc=f"{split} rows")
        answered = [i for i, count in enumerate(rows["label_tokens"]) if count]
        if not answered and not sum(rows["lost"]):
            what = f"no row of the {split} split has an answer: no message has the role 'assistant', or all are empty"
            raise DataError.at(location, what, "check the roles, or name the columns")
        if not answered:
            what = (
                f"no row of the {split} split has an answer token within max_length {max_length}: all labels are masked"
            )
            raise DataError.at(
                recipe.location("SFTConfig.max_length"), what, "raise SFTConfig.max_length or check the columns"
            )
        if len(answered) < rows.num_rows:
            notes.append(
                f"{split}: {rows.num_rows - len(answered)} rows left out: no answer within {max_length} tokens"
            )
        kept_rows = rows.select(answered)
        counts = _counts(kept_rows)
        lost = counts.lost_label_tokens or 0
        if lost:
            share = lost / (lost + (counts.label_tokens or 0))
            notes.append(f"{split}: {share:.1%} of the answer tokens are beyond {max_length} tokens and are cut off")
        encoded[split], stats[split] = kept_rows, counts
    sources = {split: Source(rows=part, columns=tuple(columns)) for split, part in parts.items()}
    lean = {split: part.select_columns(["input_ids", "labels"]) for split, part in encoded.items()}
    evals = {split: part for split, part in lean.items() if split != "train"}
    return Prepared(
        train=lean["train"],
        evals=evals,
        collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        config={},
        label_names=(),
        stats=stats,
        ids={split: row_ids(part, ["input_ids", "labels"]) for split, part in evals.items()},
        row_bytes={split: list(encoded[split]["bytes"]) for split in evals},
        sources=sources,
        notes=(*notes, *_preview(lean["train"], tokenizer)),
    )


def _column_keys(messages: bool) -> list[str]:
    return ["messages_column"] if messages else ["prompt_column", "completion_column"]


def _columns(train: Dataset, recipe: Recipe) -> list[str]:
    named = recipe.section("dataset")
    if "messages_column" in named or ("prompt_column" not in named and "messages" in train.column_names):
        return [find_column(recipe, train, "messages_column", "messages")]
    if "prompt_column" not in named and "prompt" not in train.column_names:
        columns = ", ".join(train.column_names)
        what = f"the data has neither a messages column nor prompt and completion (it has {columns})"
        fix = "name them with dataset.messages_column, or dataset.prompt_column and dataset.completion_column"
        raise DataError.at(recipe.location("dataset"), what, fix)
    prompt = find_column(recipe, train, "prompt_column", "prompt")
    return [prompt, find_column(recipe, train, "completion_column", "completion")]


def _conversation(messages: Any, first: int, tokenizer: Any, row: str, location: str) -> tuple[list[int], list[int]]:
    """Token ids of the whole conversation, and the same with -100 outside the assistant's messages from `first` on."""
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        what = f"{row} is not a conversation: a list of {{role, content}} is needed"
        raise DataError.at(location, what, "name the column of the messages with dataset.messages_column")
    try:
        text = _render(messages, tokenizer)
        spans = [
            _answer(messages, i, text, tokenizer)
            for i, message in enumerate(messages)
            if i >= first and message["role"] == "assistant"
        ]
    except Exception as problem:  # templates are programs and may raise anything
        what = f"{row}: the chat template rejects it: {first_line(problem)}"
        fix = "fix the row, or give another template with SFTConfig.chat_template_path"
        raise DataError.at(location, what, fix) from problem
    if None in spans:
        what = f"{row}: the chat template rewrites earlier turns, so the answers cannot be located"
        raise DataError.at(
            location, what, "give single-turn rows, or another template with SFTConfig.chat_template_path"
        )
    return _masked(text, [span for span in spans if span], tokenizer)


def _answer(messages: list[dict], i: int, text: str, tokenizer: Any) -> tuple[int, int] | None:
    """Where the template puts the i-th message into the text: after the prompt for it, and up to its end token (the
    line break after it is not part of the answer). None if the text does not begin as it did at that point."""
    after = _render(messages[: i + 1], tokenizer)
    stop = len(after.rstrip("\n"))
    if not text.startswith(after[:stop]):
        return None
    if i == 0:  # no prompt to render: what comes before (the template's own system message) is not the answer
        start = after.find(messages[0]["content"].strip())
        return None if start < 0 else (start, stop)
    before = _render(messages[:i], tokenizer, add_generation_prompt=True)
    return (len(before), stop) if after.startswith(before) else None


def _completion(row: dict, columns: list[str], tokenizer: Any, name: str, location: str) -> tuple[list[int], list[int]]:
    prompt, completion = row[columns[0]], row[columns[1]]
    if isinstance(prompt, list) and isinstance(completion, list):  # TRL's conversational prompt/completion
        return _conversation([*prompt, *completion], len(prompt), tokenizer, name, location)
    if not isinstance(prompt, str) or not isinstance(completion, str):
        raise DataError.at(location, f"{name}: prompt and completion must be texts or lists of messages")
    return _masked(
        prompt + completion, [(len(prompt), len(prompt) + len(completion))], tokenizer, special=True, end=True
    )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
    )


def _render(messages: list[dict], tokenizer: Any, add_generation_prompt: bool = False) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return str(text)


def _masked(
    text: str, spans: list[tuple[int, int]], tokenizer: Any, special: bool = False, end: bool = False
) -> tuple[list[int], list[int]]:
    """Tokenizes once and keeps as labels the tokens that overlap a span of characters (as {% generation %} does it
    upstream: a space before the answer's first word is part of that word's token). `special`: let the tokenizer add
    its begin token (a template writes its own); `end`: the end token closes the row."""
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    labels = [
        i if b > a and any(a < stop and b > start for start, stop in spans) else -100
        for i, (a, b) in zip(ids, offsets, strict=True)
    ]
    eos = tokenizer.eos_token_id
    if end and eos is not None:
        if ids and ids[-1] == eos:
            labels[-1] = eos
        else:
            ids.append(eos)
            labels.append(eos)
    return ids, labels


def _counts(rows: Dataset) -> SplitStats:
    lengths = [len(ids) for ids in rows["input_ids"]]
    return SplitStats(
        rows=rows.num_rows,
        tokens=sum(lengths),
        longest=max(lengths),
        label_tokens=sum(rows["label_tokens"]),
        lost_label_tokens=sum(rows["lost"]),
        bytes=sum(rows["bytes"]),
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
