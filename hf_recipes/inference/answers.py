"""The answers that a model generates for the rows of an evaluation, scored against those of the rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.common.files import put
from hf_recipes.errors import DataError
from hf_recipes.inference.generate import NEW_TOKENS, continue_ids
from hf_recipes.inference.trained import Trained
from hf_recipes.recipe.recipe import Recipe

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "answers.jsonl"  # beside the scores: id, prompt, reference, answer; never pushed
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
               "num_beams", "num_return_sequences", "early_stopping", "length_penalty")  # fmt: skip
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


def split_rows(rows: Dataset, where: str) -> list[Asked]:
    """Prepared rows, each cut before its last answer. Raises DataError where the loss is on whole rows, so that no
    answer can be separated from its prompt."""
    asked = [split_row(row["input_ids"], row["labels"]) for row in rows.select_columns(["input_ids", "labels"])]
    missing = next((i for i, one in enumerate(asked) if one is None), None)
    if missing is not None:
        what = f"row {missing} has no prompt: the loss is on every token, so no answer can be separated from it"
        raise DataError.at(where, what, "leave assistant_only_loss and completion_only_loss out")
    return [one for one in asked if one is not None]


def greedy_arguments(recipe: Recipe, longest: int) -> dict[str, Any]:
    """GenerationConfig's, for the likeliest answer, whatever the recipe's samples are drawn by. No answer that can be
    right is cut off: `longest` is the number of tokens of the longest reference."""
    stated = recipe.section("GenerationConfig")
    given = {key: None for key in stated if key in OF_SAMPLING} | {"do_sample": False, "num_beams": 1}
    if "max_new_tokens" not in stated and "max_length" not in stated:
        given["max_new_tokens"] = max(NEW_TOKENS, longest)
    return given


def answer_rows(
    trained: Trained,
    rows: Dataset,
    batch_size: int,
    where: str,
    *,
    gather: Callable[[list[str]], list[str]] | None = None,
    part: tuple[int, int] = (0, 1),
) -> list[dict[str, str]]:
    """What was asked and answered, of prepared rows in their order. Every row's last answer is generated greedily, from
    what stood before it in the row. Several processes generate a `part` (number, count) each, which `gather` joins.

    Raises DataError where the loss is on whole rows.
    """
    number, count = part
    asked = split_rows(rows, where)
    given = greedy_arguments(trained.recipe, max(len(one.reference) for one in asked))
    answers = list(continue_ids(trained, (one.prompt for one in asked[number::count]), batch_size, given))
    if gather is not None:
        joined, begin = gather(answers), 0
        answers = [""] * len(asked)
        for i in range(count):
            size = len(asked[i::count])
            answers[i::count] = joined[begin : begin + size]
            begin += size
    decode = trained.tokenizer.batch_decode
    references = decode([one.reference for one in asked], skip_special_tokens=True)
    prompts = decode([one.prompt for one in asked], skip_special_tokens=True)
    pairs = zip(prompts, references, answers, strict=True)
    return [{"prompt": one, "reference": two, "answer": three} for one, two, three in pairs]


def write_answers(path: Path, ids: Sequence[str], texts: Sequence[Mapping[str, str]]) -> None:
    """One JSON line a row: complete or absent."""
    import json

    def lines() -> Iterator[str]:
        for name, one in zip(ids, texts, strict=True):
            yield json.dumps({"id": name, **one}, ensure_ascii=False) + "\n"

    put(path, "".join(lines()))


def add_columns(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Adds columns to a file of scores; it stays what `read_scores` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read()
    for name, values in columns.items():
        table = table.append_column(name, pa.array(list(values)))
    draft = path.with_name(f"{path.name}.part")
    try:
        pq.write_table(table, draft, compression="zstd", use_dictionary=False)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
