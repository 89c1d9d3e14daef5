"""Trials without files: rows of random tokens whose lengths are spread as those of conversations, random weights."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

from hf_recipes.pipeline.tuning.trial import TrialRunner

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.pipeline.rows import RecipeRows
    from hf_recipes.recipe.recipe import Recipe

ROWS = 512
MEDIAN, SPREAD = 0.25, 0.8  # of the lengths: median as a share of max_length, and sigma of their logarithm


class GeneratedRunner(TrialRunner):
    """Of a recipe whose model has a preset or a config. Weights are of random values, quantised ones of zeros."""

    def rows_of(self, recipe: Recipe) -> RecipeRows:
        if "generated" not in self._rows:
            self._rows["generated"] = generate_rows(recipe)
        return self._rows["generated"]

    def build_model(self, recipe: Recipe, rows: RecipeRows, device: Device) -> Any:
        from hf_recipes.plan.trace.meta_model import meta_model

        return meta_model(recipe, rows.config, rows.tokenizer, {}, device.kind, lambda line: None)


def generate_rows(recipe: Recipe) -> RecipeRows:
    """The second half of each row is learned, as an answer is."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq

    from hf_recipes.data.prepared import Prepared, SplitStats
    from hf_recipes.pipeline.rows import RecipeRows
    from hf_recipes.plan.trace.meta_model import build_config, vocabulary_size
    from hf_recipes.plan.trace.stand_in_rows import stand_in_tokenizer

    config, longest, draw = build_config(recipe), int(recipe.get(recipe.max_length_key)), random.Random(0)
    size = vocabulary_size(recipe, config)
    tokenizer, ids = stand_in_tokenizer(size, longest), []
    for _ in range(ROWS):
        length = max(4, min(longest, round(draw.lognormvariate(math.log(MEDIAN * longest), SPREAD))))
        ids.append([draw.randrange(3, size) for _ in range(length)])
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    data = Dataset.from_dict({"input_ids": ids, "labels": labels})
    stats = SplitStats(rows=ROWS, tokens=sum(map(len, ids)), longest=max(map(len, ids)))
    prepared = Prepared(
        train=data, evals={"eval": data}, collator=DataCollatorForSeq2Seq(tokenizer), config={}, label_names=(),
        stats={"train": stats, "eval": stats}, ids={}, row_bytes={}, sources={}, notes=(),
    )  # fmt: skip
    return RecipeRows(recipe=recipe, config=config, tokenizer=tokenizer, length=longest, prepared=prepared)
