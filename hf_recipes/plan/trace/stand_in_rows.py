"""What stands in for a recipe's tokenizer and data: rows of one length, the longest; no text and no file is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import PROBLEM_TYPES, TASKS, task_of
from hf_recipes.data.prepared import Prepared, SplitStats

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe

TOKEN, PAD, END = 3, 0, 1
LABELS = 2  # of a classifier whose number of labels is in its data: a head of a few more is some KiB


def stand_in_tokenizer(vocabulary: int, length: int) -> Any:
    """A tokenizer of three tokens that says it has `vocabulary` of them: trainers ask for pad, end and length only."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class StandIn(PreTrainedTokenizerFast):
        def __len__(self) -> int:
            return vocabulary

    vocabulary_ids = {"<pad>": PAD, "<end>": END, "<unknown>": 2, "word": TOKEN}
    tokenizer = StandIn(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary_ids, unk_token="<unknown>")),
        pad_token="<pad>",
        eos_token="<end>",
        bos_token="<end>",
        unk_token="<unknown>",
    )
    tokenizer.model_max_length = length
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def prepared_rows(
    recipe: Recipe, tokenizer: Any, length: int, rows: int, labels: int, token_types: bool, padded: bool
) -> Prepared:
    """What the task's prepare() would give of `rows` rows that all have `length` tokens, each of them labelled.
    `token_types`: a classifier's tokenizer gives token_type_ids; `padded`: every second row is a token shorter."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorForTokenClassification, DataCollatorWithPadding

    task, kind = recipe.task, task_of(recipe).scored_as
    labels = 1 if kind == "text-regression" else labels
    if TASKS[task].generates:
        collator: Any = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    elif task == "token-classification":
        collator = DataCollatorForTokenClassification(tokenizer)
    else:
        collator = DataCollatorWithPadding(tokenizer)
    tags = task == "token-classification"  # whose metric reads their prefixes
    named = {i: ("O" if i == 0 else f"B-{i}") if tags else f"LABEL_{i}" for i in range(labels)}
    config: dict[str, Any] = {}
    if not TASKS[task].generates:
        config = {"num_labels": labels, "id2label": named, "label2id": {name: i for i, name in named.items()}}
    if task == "text-classification":
        config["problem_type"] = next(name for name, row in PROBLEM_TYPES.items() if row.scored_as == kind)
    data = _rows(task, length, rows, token_types, padded, LABEL[kind](labels) if kind in LABEL else None)
    return Prepared(
        train=data,
        evals={"eval": data},
        collator=collator,
        config=config,
        label_names=tuple(named.values()),
        stats=dict.fromkeys(
            ("train", "eval"), SplitStats(rows=rows, tokens=rows * length, longest=length, bytes=rows * length)
        ),
        ids={},
        row_bytes={},
        sources={},
        notes=(),
    )


# What a row of text classification learns, of so many labels.
LABEL: dict[str, Any] = {
    "text-classification": lambda labels: 0,
    "multi-label-classification": lambda labels: [1.0] * labels,
    "text-regression": lambda labels: 0.5,
}


def _rows(task: str, length: int, rows: int, token_types: bool, padded: bool, label: Any) -> Dataset:
    from datasets import Dataset

    lengths = [length - (i % 2 if padded and length > 1 else 0) for i in range(rows)]
    columns: dict[str, list[Any]] = {"input_ids": [[TOKEN] * n for n in lengths]}
    if task == "text-classification":
        columns["labels"] = [label] * rows
    else:
        columns["labels"] = [[0 if task == "token-classification" else TOKEN] * n for n in lengths]
    if not TASKS[task].generates:
        columns["attention_mask"] = [[1] * n for n in lengths]
        if token_types:
            columns["token_type_ids"] = [[0] * n for n in lengths]
    return Dataset.from_dict(columns)
