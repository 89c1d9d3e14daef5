"""Rows: the `dataset` section, data loaders, packing, what SFTConfig has about rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.chat_roles import ROLES, as_mapping, usual_role
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.model_facts import model_facts
from hf_recipes.recipe.rules.rule import (
    Rule,
    argument,
    has_section,
    is_given,
    is_true,
    number_of,
    report_argument,
    report_key,
    text_of,
)

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

# Keys of SFTConfig about rows that come to SFTTrainer tokenized and labelled, as ours do.
WITHOUT_EFFECT = {
    "dataset_text_field": "write dataset.text_column",
    "dataset_kwargs": "rows are prepared before SFTTrainer gets them",
    "eval_packing": "evaluation rows are never packed",
    "model_init_kwargs": "write its keys into the model section",
}
CHAT_KEYS = (
    *("system_template", "user_template", "assistant_template"),
    *("system_column", "tools_column", "role_names", "chat_template_kwargs"),
)
TWO_KINDS = (  # the second is not read
    ("messages_column", "prompt_column"),
    ("user_template", "messages_column"),
    ("user_template", "prompt_column"),
    ("system_template", "system_column"),
    ("input_ids_column", "text_column"),
)
# Model types whose tokens see the documents before theirs in a packed row, whatever the positions say: their attention
# has a mask of its own, or a state that continues. Held by tests/training/test_packed_logits.py.
JOIN_DOCUMENTS = {
    *("biogpt", "bloom", "mpt", "openai-gpt", "opt", "xglm"),
    *("bamba", "falcon_h1", "falcon_mamba", "jamba", "mamba", "mamba2", "recurrent_gemma", "rwkv"),
}
# Keys of the `dataset` section that IterableDataset refuses, or does not read.
NOT_STREAMED = {
    "num_proc": "leave it out: rows are read while the run trains",
    "keep_in_memory": "leave it out: nothing of a stream is kept",
    "format": "leave it out: streams are read by load_dataset alone",
}
OF_CHAT = ("chat_template_path", "completion_only_loss", "eos_token")


def names_of_roles(recipe: Recipe) -> Iterator[Diagnostic]:
    """role_names is {name in the data: role}; the other way round, the data's own roles would be lost."""
    given = recipe.section("dataset").get("role_names")
    if not isinstance(given, Mapping):
        return
    wrong = {str(name): role for name, role in given.items() if role not in ROLES}
    if not wrong:
        return
    name, role = next(iter(wrong.items()))
    what = f"role_names makes {name!r} of the data {role!r}, which is none of {', '.join(ROLES)}"
    if all(name in ROLES and isinstance(role, str) for name, role in wrong.items()):
        right = as_mapping({role: name for name, role in wrong.items()})
        fix = f"it is reversed: write the name in the data first, role_names: {right}"
    else:
        right = as_mapping({name: usual_role(str(role)) or usual_role(name) or "user" for name, role in wrong.items()})
        fix = f"write role_names: {right}"
    yield report_key(recipe, "dataset.role_names", what, fix)


def workers_that_are_not_there(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:1805 refuses prefetch_factor; torch refuses persistent_workers, at train() only."""
    if number_of(recipe, "dataloader_num_workers") != 0:
        return
    if is_given(recipe, "dataloader_prefetch_factor"):
        what = "dataloader_prefetch_factor needs workers, and dataloader_num_workers is 0"
        yield report_argument(
            recipe, "dataloader_prefetch_factor", what, "write dataloader_num_workers: 2, or leave it out"
        )
    if is_true(recipe, "dataloader_persistent_workers"):
        what = "dataloader_persistent_workers needs workers, and dataloader_num_workers is 0"
        yield report_argument(
            recipe, "dataloader_persistent_workers", what, "write dataloader_num_workers: 2, or leave it out"
        )


def columns_of_the_task(recipe: Recipe) -> Iterator[Diagnostic]:
    """Column keys are per task; two kinds of rows at once leave one unread."""
    from hf_recipes.catalog.tasks import TASKS

    task, given = TASKS[recipe.task], recipe.section("dataset")
    others = {name for other in TASKS.values() for name in other.columns} - set(task.columns)
    for name in given:
        if name in others:
            what = f"dataset.{name} is not for task {task.name}"
            yield report_key(recipe, f"dataset.{name}", what, f"its columns are {', '.join(task.columns)}")
    if task.name != "chat":
        for name in CHAT_KEYS:
            if name in given:
                yield report_key(recipe, f"dataset.{name}", f"dataset.{name} is for task chat", "leave it out")
    for first, second in TWO_KINDS:
        both = given.get(first) is not None and given.get(second) is not None
        if both and {first, second} <= {*task.columns, *CHAT_KEYS}:
            what = f"dataset.{second} has no effect beside dataset.{first}"
            yield report_key(recipe, f"dataset.{second}", what, "keep one of them")


def two_lengths(recipe: Recipe) -> Iterator[Diagnostic]:
    """SFTConfig has its own max_length; two of them could differ."""
    if recipe.trainer == "SFTConfig" and recipe.get("dataset.max_length") is not None:
        what = "dataset.max_length has no effect beside SFTConfig, which has its own max_length"
        yield report_key(recipe, "dataset.max_length", what, "write SFTConfig.max_length instead")


def files_that_are_no_names(recipe: Recipe) -> Iterator[Diagnostic]:
    """load_dataset: "'int' object has no attribute 'decode'"."""
    for dotted, given in _ends(recipe.get("dataset.data_files"), "dataset.data_files"):
        if not isinstance(given, str):
            shown = "null" if given is None else repr(given)
            yield report_key(
                recipe, dotted, f"{dotted} is {shown}, not the name of a file", "write a path or a pattern"
            )


def _ends(given: Any, dotted: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in data_files that is no list and no mapping."""
    if isinstance(given, Mapping):
        for split, part in given.items():
            yield from _ends(part, f"{dotted}.{split}")
    elif isinstance(given, list):
        for part in given:
            yield from _ends(part, dotted)
    elif given is not None or "." in dotted.removeprefix("dataset."):
        yield dotted, given


def length_that_predicts_nothing(recipe: Recipe) -> Iterator[Diagnostic]:
    """The first token of a row is predicted by nothing: rows of one token have no loss at all."""
    from hf_recipes.catalog.tasks import TASKS

    dotted = recipe.max_length_key
    if TASKS[recipe.task].generates and recipe.get(dotted) == 1:
        yield report_key(recipe, dotted, f"{dotted}: 1 leaves no token to predict", "write a few hundred")


def rows_that_stream(recipe: Recipe) -> Iterator[Diagnostic]:
    """data/streamed_rows.py makes blocks and conversations; what needs all rows at once cannot be made of a stream."""
    dotted = "dataset.streaming"
    if recipe.get(dotted) is not True:
        if recipe.get("dataset.buffer_size") is not None:
            what = "dataset.buffer_size has no effect without streaming: true"
            yield report_key(recipe, "dataset.buffer_size", what, "leave it out")
        return
    if recipe.task != "chat" and (recipe.task != "causal-lm" or recipe.trainer != "TrainingArguments"):
        what = f"{dotted}: true trains causal-lm with TrainingArguments, and chat"
        fix = "leave it out: rows are stored once as tables on disk, which need not fit in memory"
        yield report_key(recipe, dotted, what, fix)
        return
    if recipe.get("dataset.input_ids_column") is not None:
        what = f"{dotted}: true reads texts, and dataset.input_ids_column has token ids"
        yield report_key(recipe, "dataset.input_ids_column", what, f"leave {dotted} out: ids are read where they lie")
    if has_section(recipe, "BpeTrainer"):
        what = f"{dotted}: true: a tokenizer is trained on rows that can be read twice"
        yield report_key(recipe, "BpeTrainer", what, "train it in a run without streaming, and name it in tokenizer")
    if (number_of(recipe, "max_steps") or -1) <= 0:
        yield report_key(recipe, dotted, f"{dotted}: true: a stream has no length", "write max_steps")
    if (number_of(recipe, "dataloader_num_workers") or 0) > 1:
        what = f"{dotted}: true: each worker of the loader would read all rows"
        yield report_argument(recipe, "dataloader_num_workers", what, "write 1: one worker reads ahead")
    for name in ("packing", "padding_free", "shuffle_dataset"):
        if is_true(recipe, name):
            what = f"{dotted}: true: {name} needs all rows at once"
            yield report_argument(recipe, name, what, f"leave it out, or {dotted}")
    for key, fix in NOT_STREAMED.items():
        if recipe.get(f"dataset.{key}") is not None:
            yield report_key(recipe, f"dataset.{key}", f"dataset.{key} has no effect on a stream", fix)
    for name in ("save_strategy", "eval_strategy", "logging_strategy"):
        if text_of(recipe, name) == "epoch":
            what = f"{dotted}: true: a stream has no epochs, so {name}: epoch does nothing before the last step"
            yield report_argument(recipe, name, what, f"write {name}: steps")
    if text_of(recipe, "train_sampling_strategy") not in ("", "random"):
        what = f"train_sampling_strategy has no effect with {dotted}: true, whose order is that of its buffer"
        yield report_argument(recipe, "train_sampling_strategy", what, "leave it out")
    files, split = recipe.get("dataset.data_files"), recipe.get("dataset.split")
    if files is not None and not any(isinstance(one, Mapping) and "validation" in one for one in (files, split)):
        fix = "name a validation file: data_files: {train: ..., validation: ...}"
        yield report_key(recipe, dotted, f"{dotted}: true: a stream has no share to split off for validation", fix)
    train = split.get("train") if isinstance(split, Mapping) else split
    if isinstance(train, str) and "[" in train:
        what = f"{dotted}: true: a stream has no slices such as {train!r}"
        yield report_key(recipe, "dataset.split", what, "name the whole split")


def mixture_of_files(recipe: Recipe) -> Iterator[Diagnostic]:
    """datasets.interleave_datasets would refuse it when all is loaded; or a share split off would have its own rows."""
    dotted, shares = "dataset.probabilities", recipe.get("dataset.probabilities")
    if not isinstance(shares, list):
        if recipe.get("dataset.stopping_strategy") is not None:
            what = "dataset.stopping_strategy has no effect without probabilities"
            yield report_key(recipe, "dataset.stopping_strategy", what, "add probabilities: one for each train file")
        return
    files = recipe.get("dataset.data_files")
    train = files.get("train") if isinstance(files, Mapping) else None
    count = len(train) if isinstance(train, list) else 0
    if count != len(shares):
        what = f"{dotted} has {len(shares)} numbers, and data_files.train has {count or 'no list of'} files"
        yield report_key(recipe, dotted, what, "data_files: {train: [one.jsonl, other.jsonl], validation: ...}")
    numbers = [one for one in shares if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) == len(shares) and (min(numbers, default=0) <= 0 or abs(sum(numbers) - 1) > 1e-6):
        what = f"{dotted} are above 0 and sum to 1; these sum to {sum(numbers):g}"
        yield report_key(recipe, dotted, what, "divide each by their sum")
    if not isinstance(files, Mapping) or "validation" not in files:
        what = f"{dotted}: rows of a mixture may come twice, so no share of it is split off for validation"
        yield report_key(recipe, dotted, what, "name a validation file: data_files: {train: [...], validation: ...}")
    if recipe.get("dataset.split") is not None:
        what = f"{dotted} draws from all rows of its files, and dataset.split names parts of them"
        yield report_key(recipe, "dataset.split", what, "leave it out")


def share_beside_a_validation_file(recipe: Recipe) -> Iterator[Diagnostic]:
    """A validation share is split off only where there is no validation split."""
    given = recipe.section("dataset")
    splits = [part for part in (given.get("data_files"), given.get("split")) if isinstance(part, Mapping)]
    if not any("validation" in part for part in splits):
        return
    for name in ("test_size", "stratify_by_column", "seed"):
        if name in given and not (name == "seed" and "probabilities" in given):  # a mixture draws by it
            what = f"dataset.{name} has no effect: a validation split is given"
            yield report_key(recipe, f"dataset.{name}", what, "leave it out")


def packing_that_fails(recipe: Recipe) -> Iterator[Diagnostic]:
    """trl sft_trainer.py:1001 and :1468, once the data is tokenized and the model loaded."""
    if recipe.trainer != "SFTConfig":
        return
    unlimited = "max_length" in recipe.training and recipe.training["max_length"] is None
    if is_true(recipe, "packing") and unlimited:
        yield report_argument(
            recipe, "max_length", "packing: true needs max_length, and it is null", "write max_length: 1024"
        )
    if is_true(recipe, "padding_free") and not is_true(recipe, "packing") and not unlimited:
        what = "padding_free: true without packing: true ignores max_length"
        yield report_argument(recipe, "padding_free", what, "write packing: true, or max_length: null")


def documents_that_see_each_other(recipe: Recipe) -> Iterator[Diagnostic]:
    """masking_utils.py:876: with a cache no mask keeps packed documents apart (measured: logits move by 0.46)."""
    if (
        recipe.trainer == "SFTConfig"
        and is_true(recipe, "use_cache")
        and (is_true(recipe, "packing") or is_true(recipe, "padding_free"))
    ):
        what = "use_cache: true with packing or padding_free: packed documents would see each other"
        yield report_argument(recipe, "use_cache", what, "leave use_cache out")


def models_that_join_documents(recipe: Recipe) -> Iterator[Diagnostic]:
    kind = model_facts(recipe.section("model")).model_type
    if recipe.trainer != "SFTConfig" or kind not in JOIN_DOCUMENTS:
        return
    for name in ("packing", "padding_free"):
        if is_true(recipe, name):
            what = f"{name}: true: {kind} models see the documents before theirs in the same row"
            fix = "leave it out, or take a model that keeps them apart (docs/data.md)"
            yield report_argument(recipe, name, what, fix)


def documents_that_are_cut(recipe: Recipe) -> Iterator[Diagnostic]:
    """Measured: `wrapped` joins documents into one sequence: the second one's logits move by 0.46."""
    if recipe.task != "chat" or text_of(recipe, "packing_strategy") != "wrapped":  # causal-lm means to join documents
        return
    if is_true(recipe, "packing"):
        what = "packing_strategy: wrapped lets a conversation see the one before it in its block"
        yield report_argument(recipe, "packing_strategy", what, "bfd and bfd_split keep them apart")


def packing_that_is_off(recipe: Recipe) -> Iterator[Diagnostic]:
    if recipe.trainer == "SFTConfig" and is_given(recipe, "packing_strategy") and not is_true(recipe, "packing"):
        what = "packing_strategy has no effect: packing is not true"
        yield report_argument(recipe, "packing_strategy", what, "write packing: true, or leave it out")


def arguments_about_rows(recipe: Recipe) -> Iterator[Diagnostic]:
    """SFTTrainer gets rows tokenized and labelled by this package, so these keys of SFTConfig have no effect."""
    if recipe.trainer != "SFTConfig":
        return
    for name, fix in WITHOUT_EFFECT.items():
        if is_given(recipe, name):
            yield report_argument(recipe, name, f"SFTConfig.{name} has no effect here", fix)
    if recipe.task != "chat":
        for name in OF_CHAT:
            if is_given(recipe, name):
                yield report_argument(
                    recipe, name, f"SFTConfig.{name} has no effect: task {recipe.task} has no chat", "leave it out"
                )
    if text_of(recipe, "truncation_mode") == "keep_end":
        what = "SFTConfig.truncation_mode: keep_end has no effect here: long rows lose their end"
        yield report_argument(recipe, "truncation_mode", what, "leave it out; trl 2.0 drops it")


def columns_that_are_not_there(recipe: Recipe) -> Iterator[Diagnostic]:
    """Every task hands over the columns that its model takes, so there is none to remove."""
    if argument(recipe, "remove_unused_columns") is False:
        what = "remove_unused_columns: false has no effect: rows hold only what the model takes"
        yield report_argument(recipe, "remove_unused_columns", what, "leave it out")


def assistant_loss_without_chat(recipe: Recipe) -> Iterator[Diagnostic]:
    """trl sft_trainer.py:935: "You set `assistant_only_loss=True`, but the dataset is not conversational"."""
    if recipe.trainer == "SFTConfig" and recipe.task != "chat" and is_true(recipe, "assistant_only_loss"):
        what = f"assistant_only_loss: true: task {recipe.task} has no assistant"
        yield report_argument(recipe, "assistant_only_loss", what, "leave it out, or write task: chat")


def fused_twice(recipe: Recipe) -> Iterator[Diagnostic]:
    """trl sft_trainer.py:1137: Liger's fused loss would replace the forward that SFTTrainer fuses itself."""
    fused = recipe.get(f"{recipe.trainer}.liger_kernel_config.fused_linear_cross_entropy") is True
    if recipe.trainer == "SFTConfig" and is_true(recipe, "use_liger_kernel") and fused:
        what = "liger_kernel_config.fused_linear_cross_entropy: true: SFTTrainer has a fused head of its own"
        yield report_argument(recipe, "liger_kernel_config", what, "leave it out")


def smoothing_that_costs_a_pass(recipe: Recipe) -> Iterator[Diagnostic]:
    """trl sft_trainer.py:1060: deprecated, goes in trl 2.0."""
    if recipe.trainer == "SFTConfig" and (number_of(recipe, "label_smoothing_factor") or 0) > 0:
        what = "label_smoothing_factor makes SFTTrainer run each forward twice; trl 2.0 drops it"
        yield report_argument(recipe, "label_smoothing_factor", what, "leave it out")


ERRORS: tuple[Rule, ...] = (
    workers_that_are_not_there,
    columns_of_the_task,
    names_of_roles,
    two_lengths,
    files_that_are_no_names,
    length_that_predicts_nothing,
    rows_that_stream,
    mixture_of_files,
    packing_that_fails,
    documents_that_see_each_other,
    assistant_loss_without_chat,
    fused_twice,
)
WARNINGS: tuple[Rule, ...] = (
    share_beside_a_validation_file,
    models_that_join_documents,
    documents_that_are_cut,
    packing_that_is_off,
    arguments_about_rows,
    columns_that_are_not_there,
    smoothing_that_costs_a_pass,
)
