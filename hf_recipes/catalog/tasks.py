"""The four tasks as plain facts. Imports neither torch nor transformers.

Adding a task is one entry in `TASKS` and one file in `data/` with
`prepare(splits, tokenizer, recipe, max_length, config) -> Prepared`. How its examples are scored is `scored_as`, a key
of the tables in evaluation/scoring.py, evaluation/scores.py and compare/measures.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the reader, the checks and the builders need to know of a task before anything heavy is imported."""

    name: str
    title: str  # for a reader: "A model for chat"
    auto_class: str  # transformers' class whose from_pretrained builds the model
    peft_task_type: str  # LoraConfig's task_type: decides which head is trained beside the adapter
    trainers: tuple[str, ...]  # sections that a recipe of this task may have
    columns: Mapping[str, str]  # key of the `dataset` section -> the column's default name
    metrics: tuple[str, ...]  # names in hf_recipes.evaluation.metrics.METRICS that fit this task
    default_metrics: tuple[str, ...]
    generates: bool  # whether sample_prompts apply
    module: str  # where prepare() lives
    scored_as: str  # what is predicted of an example: key of the tables of metrics, scores and measures
    pipeline_tag: str  # of the Hub, for the model card


def _task(*, columns: Mapping[str, str], **facts: Any) -> Task:
    return Task(columns=MappingProxyType(dict(columns)), **facts)


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            _task(
                name="causal-lm",
                title="language modelling",
                auto_class="AutoModelForCausalLM",
                peft_task_type="CAUSAL_LM",
                trainers=("TrainingArguments", "SFTConfig"),
                columns={"text_column": "text", "input_ids_column": "input_ids"},
                metrics=("perplexity", "bits_per_byte"),
                default_metrics=("perplexity", "bits_per_byte"),
                generates=True,
                module="hf_recipes.data.causal_lm",
                scored_as="causal-lm",
                pipeline_tag="text-generation",
            ),
            _task(
                name="chat",
                title="chat",
                auto_class="AutoModelForCausalLM",
                peft_task_type="CAUSAL_LM",
                trainers=("SFTConfig",),
                columns={
                    "messages_column": "messages",
                    "prompt_column": "prompt",
                    "completion_column": "completion",
                },
                metrics=("perplexity", "bits_per_byte"),
                default_metrics=("perplexity", "bits_per_byte"),
                generates=True,
                module="hf_recipes.data.chat",
                scored_as="chat",
                pipeline_tag="text-generation",
            ),
            _task(
                name="text-classification",
                title="text classification",
                auto_class="AutoModelForSequenceClassification",
                peft_task_type="SEQ_CLS",
                trainers=("TrainingArguments",),
                columns={"text_column": "text", "text_pair_column": "text_pair", "label_column": "label"},
                metrics=("f1", "accuracy"),
                default_metrics=("f1", "accuracy"),
                generates=False,
                module="hf_recipes.data.text_classification",
                scored_as="text-classification",
                pipeline_tag="text-classification",
            ),
            _task(
                name="token-classification",
                title="token classification",
                auto_class="AutoModelForTokenClassification",
                peft_task_type="TOKEN_CLS",
                trainers=("TrainingArguments",),
                columns={
                    "tokens_column": "tokens",
                    "tags_column": "tags",
                    "text_column": "text",
                    "entities_column": "entities",
                },
                metrics=("span_f1", "accuracy"),
                default_metrics=("span_f1", "accuracy"),
                generates=False,
                module="hf_recipes.data.token_classification",
                scored_as="token-classification",
                pipeline_tag="token-classification",
            ),
        )
    }
)

# What `model.problem_type` makes of text classification, by transformers' names.
PROBLEM_TYPES: Mapping[str, Task] = MappingProxyType(
    {
        "single_label_classification": TASKS["text-classification"],
        "multi_label_classification": replace(
            TASKS["text-classification"],
            title="multi-label text classification",
            scored_as="multi-label-classification",
        ),
        "regression": replace(
            TASKS["text-classification"],
            title="text regression",
            scored_as="text-regression",
            metrics=("mse", "pearsonr", "spearmanr"),
            default_metrics=("mse", "pearsonr", "spearmanr"),
        ),
    }
)


def find_task(name: str, model: Any) -> Task | None:
    """The row of a task as the `model` section of its recipe makes it; None for an unknown name."""
    stated = model.get("problem_type") if isinstance(model, Mapping) else None
    variant = PROBLEM_TYPES.get(stated) if isinstance(stated, str) else None
    return variant if variant is not None and variant.name == name else TASKS.get(name)


def split_metrics(recipe: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(metrics of each evaluation, those that are computed once at the end: of generated answers, and modules of the
    `evaluate` package) that a recipe names."""
    names, own = tuple(recipe.get("metrics") or ()), task_of(recipe).metrics
    return tuple(name for name in names if name in own), tuple(name for name in names if name not in own)


def task_of(recipe: Any) -> Task:
    """The row of a recipe's task, as its `model` section makes it. Raises KeyError for an unknown one."""
    return find_task(recipe.task, recipe.section("model")) or TASKS[recipe.task]
