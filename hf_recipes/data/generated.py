"""Generated rows for `run --smoke`: no file and no network."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS, task_of

if TYPE_CHECKING:
    from hf_recipes.data.splits import Splits
    from hf_recipes.recipe.recipe import Recipe


FIRST = ("the", "a", "of", "and", "to")  # the vocabulary of generated rows; those of SECOND have a tag
SECOND = ("in", "time", "man", "day")
THIRD = ("sea", "house", "light", "water", "long", "good", "new", "little", "great", "old", "small")
WORDS = (*FIRST, *SECOND, *THIRD)


LABELS: dict[str, Any] = {  # of text classification, by what is predicted
    "text-classification": lambda count: [("no", "yes")[i % 2] for i in range(count)],
    "multi-label-classification": lambda count: [(["no"], ["yes"], ["no", "yes"])[i % 3] for i in range(count)],
    "text-regression": lambda count: [i % 7 / 2 for i in range(count)],
}


def generate_splits(recipe: Recipe) -> Splits:
    """Rows of the recipe's columns, the same at every call: enough for every rank's steps."""
    from datasets import Dataset

    from hf_recipes.data.chat_rows import template_columns
    from hf_recipes.data.splits import Splits

    draw = random.Random(0)

    def sentence() -> list[str]:
        return draw.choices(WORDS, k=draw.randint(4, 24))

    def rows(count: int) -> Any:
        columns: dict[str, list] = {}
        names = {key: recipe.get(f"dataset.{key}", name) for key, name in TASKS[recipe.task].columns.items()}
        texts = [sentence() for _ in range(count)]
        if recipe.task == "causal-lm":
            columns[names["text_column"]] = [" ".join(text) for text in texts]
            if recipe.get("dataset.input_ids_column"):  # ids that every tokenizer of this vocabulary has
                columns[names["input_ids_column"]] = [draw.choices(range(1, 257), k=len(text)) for text in texts]
        elif recipe.task == "text-classification":
            columns[names["text_column"]] = [" ".join(text) for text in texts]
            if recipe.get("dataset.text_pair_column"):
                columns[names["text_pair_column"]] = [" ".join(sentence()) for _ in range(count)]
            columns[names["label_column"]] = LABELS[task_of(recipe).scored_as](count)
        elif recipe.task == "token-classification":
            if recipe.get("dataset.entities_column"):
                columns[names["text_column"]] = [" ".join(text) for text in texts]
                columns[names["entities_column"]] = [
                    [{"start": 0, "end": len(text[0]), "label": "X"}] for text in texts
                ]
            else:
                columns[names["tokens_column"]] = texts
                columns[names["tags_column"]] = [["B-X" if word in SECOND else "O" for word in text] for text in texts]
        elif used := template_columns(recipe):
            columns |= {name: [" ".join(text) for text in texts] for name in used}
        elif recipe.get("dataset.prompt_column"):
            columns[names["prompt_column"]] = [" ".join(text[:3]) for text in texts]
            columns[names["completion_column"]] = [" " + text[-1] for text in texts]
        else:
            columns[names["messages_column"]] = [
                [{"role": "user", "content": " ".join(text[:3])}, {"role": "assistant", "content": text[-1]}]
                for text in texts
            ]
        if recipe.get("dataset.system_column"):
            columns[recipe.get("dataset.system_column")] = [" ".join(text) for text in texts]
        if recipe.get("dataset.tools_column"):
            columns[recipe.get("dataset.tools_column")] = [""] * count
        return Dataset.from_dict(columns)

    return Splits(train=rows(256), validation=rows(9), test=rows(5))
