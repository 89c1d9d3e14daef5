"""The keys of a recipe that are ours, in one place. Every other key, and its documentation, is upstream's.

`TOP` is at the top of a recipe, `MODEL` and `DATASET` inside those sections beside the arguments of from_pretrained
and load_dataset. Each has its help here; the JSON Schema, the documentation and the messages read it.
"""

from __future__ import annotations

from hf_recipes.recipe.schema.fields import Field, Limits


def _key(name: str, kinds: str, help: str, **more: object) -> Field:
    return Field(name=name, kinds=tuple(kinds.split("|")), help=help, ours=True, optional=True, **more)  # type: ignore[arg-type]


def _table(*keys: Field) -> dict[str, Field]:
    return {key.name: key for key in keys}


TOP = _table(
    _key("task", "str", "What is trained. It decides the Auto class, the columns, the collator and the metrics."),
    _key(
        "extends",
        "str",
        "Another recipe, relative to this file. Both are merged key by key; this file wins; lists are replaced.",
    ),
    _key(
        "metrics",
        "list",
        "What the evaluation reports: names, and modules of `evaluate`. Without it: the task's own metrics.",
        items=("str",),
    ),
    _key(
        "threshold",
        "float",
        "Probability from which on a label counts as predicted (multi_label_classification). Without it: 0.5.",
        limits=Limits(above=0, below=1),
    ),
    _key(
        "class_weights",
        "str|list",
        "Weights of the labels in the training loss: balanced (as scikit-learn's), or one number a label, in order.",
        items=("float",),
        choices=("balanced",),
    ),
    _key(
        "master_weights",
        "bool",
        "O2: 16-bit weights and gradients in the model, fp32 master weights in the optimizer. Needs fp16: true.",
    ),
    _key(
        "global_batch_size",
        "int",
        "Sequences of an optimizer step of all processes. gradient_accumulation_steps follows from it at each launch.",
        limits=Limits(least=1),
    ),
    _key("sample_prompts", "list", "Prompts that the model continues or answers at each evaluation.", items=("str",)),
    _key(
        "resume_allow",
        "list",
        "Differences from the checkpoint that a resumed run accepts: recipe (its settings), optimizer or scheduler "
        "(another kind: a new one is started), data, processes, state (it has none).",
        items=("str",),
        choices=("recipe", "optimizer", "scheduler", "data", "processes", "state"),
    ),
    _key(
        "on_nonfinite",
        "str",
        "If a loss or gradient is not finite: stop (default), skip the step, or rollback to the last checkpoint.",
        choices=("stop", "skip", "rollback"),
    ),
    _key(
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
    _key("preset", "str", "Start from scratch with a shape of the table of presets, such as gpt-small."),
    _key(
        "config",
        "str|dict",
        "Start from scratch: a config.json, its folder, a Hub id, or the config's arguments inline with model_type. "
        "Beside pretrained_model_name_or_path: a config.json that gives plan the model's shape without the Hub.",
    ),
)

DATASET = _table(
    _key(
        "max_length",
        "int",
        "Tokens of a row. Longer rows are cut; blocks of causal-lm have this length. SFTConfig has its own max_length.",
        limits=Limits(least=1),
    ),
    _key("text_column", "str|list", "Column of the text.", items=("str",)),
    _key("text_pair_column", "str", "Column of the second text of a pair (text-classification)."),
    _key("label_column", "str", "Column of the class of a text."),
    _key(
        "format",
        "str",
        "conll, with path: text: a word a line, its tag in the last column, a blank line between sentences.",
        choices=("conll",),
    ),
    _key(
        "entities_column",
        "str",
        "Column of a text's entities: a list of {start, end, label} in characters (token-classification).",
    ),
    _key("tokens_column", "str", "Column of the list of words in a row (token-classification)."),
    _key("tags_column", "str", "Column of the list of tags in a row, one for each word (token-classification)."),
    _key("prompt_column", "str", "Column of the prompt (chat)."),
    _key("completion_column", "str", "Column of the answer to the prompt (chat)."),
    _key(
        "messages_column",
        "str",
        "Column of the list of messages, each with role and content, or from and value as ShareGPT's (chat). Without "
        "it: messages, or conversations.",
    ),
    # Upstream has functions for this (TRL's formatting_func); a recipe is a file.
    _key("system_template", "str", "Jinja template over the row's columns: the system message (chat)."),
    _key("user_template", "str", "Jinja template over the row's columns: the user's message (chat)."),
    _key("assistant_template", "str", "Jinja template over the row's columns: the answer (chat)."),
    _key("system_column", "str", "Column of the system message, where it is not one of the messages (chat)."),
    _key("tools_column", "str", "Column of the tools of a conversation, JSON schemas. Without it: tools (chat)."),
    _key("role_names", "dict", "Other names of the roles: {bot: assistant} (chat)."),
    # TRL's SFTConfig reads them from a column of this name only, which is read here too.
    _key("chat_template_kwargs", "dict", "Variables of the chat template, such as {enable_thinking: false} (chat)."),
    _key(
        "buffer_size",
        "int",
        "With streaming: true, the rows that are kept to draw from, as in IterableDataset.shuffle. Without it: 1000.",
        limits=Limits(least=1),
    ),
    # arguments of datasets.interleave_datasets
    _key(
        "probabilities",
        "list",
        "Each entry of data_files.train is a data set, and each row comes from the n-th with the n-th probability.",
        items=("float",),
    ),
    _key(
        "stopping_strategy",
        "str",
        "Of a mixture: it ends with the first data set that has no row left (default), or when all have been read.",
        choices=("first_exhausted", "all_exhausted", "all_exhausted_without_replacement"),
    ),
    _key("input_ids_column", "str", "Column of token ids, for data that is tokenized already (causal-lm)."),
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
OPEN_SECTIONS = ("model", "tokenizer", "dataset")  # their upstream functions take **kwargs: an unknown key is a warning
SOURCES = ("pretrained_model_name_or_path", "preset", "config")  # `model` has exactly one of them
SPLIT_KEYS = ("test_size", "seed", "stratify_by_column")  # arguments of Dataset.train_test_split that are used
FILE_BUILDERS = ("json", "csv", "parquet", "text", "arrow")  # values of dataset.path that read data_files
SECTION_HELP = {
    "model": "Arguments of AutoModelFor<task>.from_pretrained, or preset/config; other keys are fields of the config.",
    "tokenizer": "Arguments of AutoTokenizer.from_pretrained. Without this section: the model's own tokenizer.",
    "dataset": "Arguments of load_dataset and its builder, some of train_test_split, and our keys for the columns.",
    "TrainingArguments": "transformers.TrainingArguments: the run is trained by Trainer.",
    "SFTConfig": "trl.SFTConfig: the run is trained by SFTTrainer.",
    "LoraConfig": "peft.LoraConfig: an adapter is trained instead of the model.",
    "BitsAndBytesConfig": "transformers.BitsAndBytesConfig: the frozen model is loaded in 8 or 4 bits.",
    "BpeTrainer": "tokenizers.trainers.BpeTrainer: a byte-level BPE tokenizer, trained on the data.",
    "EarlyStoppingCallback": "transformers.EarlyStoppingCallback.",
    "GenerationConfig": "transformers.GenerationConfig, for sample_prompts; metrics of answers leave its sampling out.",
}
