"""The answers that a model generates for the rows of an evaluation, scored against those of the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import DataError
from hf_recipes.evaluation.metrics.generated import score_texts
from hf_recipes.inference.generate import continue_ids
from hf_recipes.inference.trained import Trained

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "answers.jsonl"  # beside the scores: id, prompt, reference, answer
MASKED = -100


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A row's last answer and what stood before it, as training saw both."""

    prompt: list[int]
    reference: list[int]


def split_row(ids: Sequence[int], labels: Sequence[int]) -> Asked | None:
    """None for a row whose loss is on its first token: what is the prompt is then not known."""
    scored = [i for i, label in enumerate(labels) if label != MASKED]
    if not scored:
        return None
    begin = scored[-1]
    while begin > 0 and labels[begin - 1] != MASKED:
        begin -= 1
    return Asked(prompt=list(ids[:begin]), reference=list(ids[begin : scored[-1] + 1])) if begin else None


def answer_rows(
    trained: Trained, rows: Dataset, names: Sequence[str], batch_size: int, given: Mapping[str, Any] | None = None
) -> tuple[dict[str, list[Any]], list[dict[str, str]]]:
    """(columns of evaluation/metrics/generated.py, what was asked and answered) of prepared rows, in their order. Every
    row's last answer is generated greedily, from what stood before it in the row.

    Raises DataError where the loss is on whole rows, so that no answer can be separated from its prompt.
    """
    asked = [split_row(row["input_ids"], row["labels"]) for row in rows.select_columns(["input_ids", "labels"])]
    missing = next((i for i, one in enumerate(asked) if one is None), None)
    if missing is not None:
        what = f"row {missing} has no prompt: the loss is on every token, so no answer can be separated from it"
        raise DataError.at("argument '--metric'", what, "leave assistant_only_loss and completion_only_loss out")
    found = [one for one in asked if one is not None]
    answers = list(continue_ids(trained, (one.prompt for one in found), batch_size, given))
    decode = trained.tokenizer.batch_decode
    references = decode([one.reference for one in found], skip_special_tokens=True)
    prompts = decode([one.prompt for one in found], skip_special_tokens=True)
    pairs = zip(prompts, references, answers, strict=True)
    texts = [{"prompt": one, "reference": two, "answer": three} for one, two, three in pairs]
    return score_texts(names, answers, references), texts


def write_answers(folder: Path, ids: Sequence[str], texts: Sequence[Mapping[str, str]]) -> None:
    """One JSON line a row. The folder is a draft that becomes complete or nothing."""
    import json

    def lines() -> Iterator[str]:
        for name, one in zip(ids, texts, strict=True):
            yield json.dumps({"id": name, **one}, ensure_ascii=False) + "\n"

    (folder / FILE).write_text("".join(lines()), encoding="utf-8")


def add_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Adds columns to a file of scores; it stays what `read_scores` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    for name, values in columns.items():
        table = table.append_column(name, pa.array(list(values)))
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
