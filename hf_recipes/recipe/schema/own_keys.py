"""The words of a recipe that are ours, in one place. Every other word, and its documentation, is upstream's.

`TOP` stands at the top of a recipe, `MODEL` and `DATASET` inside those sections beside the words of from_pretrained and
load_dataset. Each has its help here; the JSON Schema, the documentation and the messages read it.
"""

from __future__ import annotations

from hf_recipes.recipe.schema.fields import Field, Limits


def _word(name: str, kinds: str, help: str, **more: object) -> Field:
    return Field(name=name, kinds=tuple(kinds.split("|")), help=help, ours=True, optional=True, **more)  # type: ignore[arg-type]


def _table(*words: Field) -> dict[str, Field]:
    return {word.name: word for word in words}


TOP = _table(
    _word("task", "str", "What is trained: it decides the Auto class, the columns, the collator and the metrics."),
    _word(
        "extends",
        "str",
        "Another recipe, relative to this file. Both are merged deeply; this file wins; a list replaces.",
    ),
    _word("metrics", "list", "What the evaluation reports; the task's own metrics if absent.", items=("str",)),
    _word(
        "master_weights",
        "bool",
        "O2: 16-bit weights and gradients in the model, fp32 master weights in the optimizer. Needs fp16: true.",
    ),
    _word("sample_prompts", "list", "Texts that the model continues or answers at each evaluation.", items=("str",)),
    _word(
        "resume_allow",
        "list",
        "Differences from the checkpoint that a resumed run accepts: recipe, data, processes, state (it has none).",
        items=("str",),
        choices=("recipe", "data", "processes", "state"),
    ),
    _word(
        "on_nonfinite",
        "str",
        "A loss or gradient that is not finite: stop (default), skip the step, or rollback to the last checkpoint.",
        choices=("stop", "skip", "rollback"),
    ),
    _word(
        "disable_guards",
        "list",
        "Guards to switch off. The message of a guard gives its name.",
        items=("str",),
        choices=(
            "truncation",
            "end_token",
            "double_bos",
            "overlap",
            "untrained",
            "zero_loss",
            "no_gradient",
            "frozen",
        ),
    ),
)

MODEL = _table(
    _word("preset", "str", "Start from scratch with a shape of the table of presets, such as gpt-small."),
    _word(
        "config",
        "str|dict",
        "Start from scratch: a config.json, its folder, a Hub id, or the config's words inline with model_type.",
    ),
)

DATASET = _table(
    _word(
        "max_length",
        "int",
        "Tokens of a row: longer ones are cut, blocks of causal-lm have this length. SFTConfig has its own max_length.",
        limits=Limits(least=1),
    ),
    _word("text_column", "str", "Column of the text."),
    _word("label_column", "str", "Column of the class of a text."),
    _word("tokens_column", "str", "Column of the list of words of a row (token-classification)."),
    _word("tags_column", "str", "Column of the list of tags of a row, one a word (token-classification)."),
    _word("prompt_column", "str", "Column of the prompt (chat)."),
    _word("completion_column", "str", "Column of the answer to the prompt (chat)."),
    _word("messages_column", "str", "Column of the list of messages, each with role and content (chat)."),
    _word("input_ids_column", "str", "Column of token ids, for data that is tokenized already (causal-lm)."),
)

TRAINERS = ("TrainingArguments", "SFTConfig")  # a recipe has exactly one of them
SECTIONS = (
    "model",
    "tokenizer",
    "dataset",
    *TRAINERS,
    "LoraConfig",
    "BitsAndBytesConfig",
    "BpeTrainer",
    "EarlyStoppingCallback",
    "GenerationConfig",
)
OPEN_SECTIONS = (
    "model",
    "tokenizer",
    "dataset",
)  # their upstream functions take open keywords: a strange word is a doubt
SOURCES = ("pretrained_model_name_or_path", "preset", "config")  # `model` has exactly one of them
FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # of `datasets`: they read files, local or of a Hub id
SECRETS = (
    "token",
    "hub_token",
    "push_to_hub_token",
    "use_auth_token",
    "api_key",
    "password",
)  # refused wherever they stand

SECTION_HELP = {
    "model": "Words of AutoModelFor<task>.from_pretrained, or preset/config; the rest are fields of the config.",
    "tokenizer": "Words of AutoTokenizer.from_pretrained. Absent: the model's own.",
    "dataset": "Words of load_dataset, its builder and train_test_split, and ours that say what the columns mean.",
    "TrainingArguments": "transformers.TrainingArguments: the run is trained by Trainer.",
    "SFTConfig": "trl.SFTConfig: the run is trained by SFTTrainer.",
    "LoraConfig": "peft.LoraConfig: an adapter is trained instead of the model.",
    "BitsAndBytesConfig": "transformers.BitsAndBytesConfig: the frozen model is loaded in 8 or 4 bits.",
    "BpeTrainer": "tokenizers.trainers.BpeTrainer: a byte-level BPE tokenizer trained on the data, kept with the run.",
    "EarlyStoppingCallback": "transformers.EarlyStoppingCallback.",
    "GenerationConfig": "transformers.GenerationConfig, for sample_prompts.",
}
