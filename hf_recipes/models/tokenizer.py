"""The tokenizer: loaded, or trained on the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.text import first_line
from hf_recipes.data.chat_rows import conversation_texts
from hf_recipes.data.splits import find_column
from hf_recipes.errors import ModelError
from hf_recipes.models.config import load_error
from hf_recipes.models.files import check_folder

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_recipes.recipe.recipe import Recipe


END_TOKEN = "<|endoftext|>"  # of tokenizers trained here; the same as GPT-2's
LABEL_KEYS = ("entities_column", "label_column", "tags_column")  # columns that no tokenizer is trained on


def build_tokenizer(recipe: Recipe, train: Dataset | None, say: Callable[[str], None]) -> Any:
    """The `tokenizer` section's, else one trained on the train split (BpeTrainer), else the model's own."""
    if "BpeTrainer" in recipe.sections:
        if train is None:
            raise ModelError.at(
                recipe.location("BpeTrainer"), "a tokenizer is trained on the train split, and there is none"
            )
        tokenizer = _train_tokenizer(recipe, train)
        say(f"tokenizer: byte-level BPE trained on the train split, {len(tokenizer)} tokens")
    else:
        tokenizer = _load_tokenizer(recipe)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError.at(
                recipe.location("tokenizer"), "the tokenizer has neither a pad nor an end token", "set pad_token"
            )
        tokenizer.pad_token = tokenizer.eos_token
        say(
            f"pad token: {tokenizer.eos_token!r}, the end token (the tokenizer has none; padding is masked by position)"
        )
    if recipe.task == "chat":
        _chat_template(recipe, tokenizer, say)
    return tokenizer


def _chat_template(recipe: Recipe, tokenizer: Any, say: Callable[[str], None]) -> None:
    from hf_recipes.data.chat import PLAIN_TEMPLATE

    path = recipe.training.get("chat_template_path")
    if path is not None:
        if not str(path).endswith((".jinja", ".j2")):
            fix = "give a .jinja file; a tokenizer folder goes into the tokenizer section"
            raise ModelError.at(
                recipe.location("SFTConfig.chat_template_path"), f"{path!r} is not a template file", fix
            )
        try:
            with open(path, encoding="utf-8") as text:
                tokenizer.chat_template = text.read()
        except OSError as problem:
            what = f"chat template {path!r} cannot be read ({problem.strerror})"
            raise ModelError.at(recipe.location("SFTConfig.chat_template_path"), what) from None
    eos = recipe.training.get("eos_token")
    if eos is not None:
        if eos not in tokenizer.get_vocab():
            raise ModelError.at(recipe.location("SFTConfig.eos_token"), f"{eos!r} is not in the tokenizer's vocabulary")
        tokenizer.eos_token = eos
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
        say("chat template: a plain built-in one ('user:\\n...'), since the tokenizer has none")


def _load_tokenizer(recipe: Recipe) -> Any:
    from transformers import AutoTokenizer

    arguments = dict(recipe.section("tokenizer"))
    model = recipe.section("model")
    name = arguments.pop("pretrained_model_name_or_path", model.get("pretrained_model_name_or_path"))
    location = recipe.location("tokenizer" if recipe.section("tokenizer") else "model.pretrained_model_name_or_path")
    if name is None:
        raise ModelError.at(
            recipe.location("model"), "a model from scratch needs a tokenizer", "add tokenizer or BpeTrainer"
        )
    if "gguf_file" in model and "gguf_file" not in arguments and not recipe.section("tokenizer"):
        arguments["gguf_file"] = model["gguf_file"]
    check_folder(location, "tokenizer", str(name))
    try:
        return AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **arguments})
    except Exception as problem:  # a stranger's file: upstream may raise anything
        raise load_error(location, "tokenizer", name, problem) from problem


def _train_tokenizer(recipe: Recipe, train: Dataset) -> Any:
    """Byte-level BPE as GPT-2's, trained on the task's text; deterministic for the same rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    arguments = dict(recipe.section("BpeTrainer"))
    special = list(dict.fromkeys([END_TOKEN, *arguments.pop("special_tokens", [])]))
    tokenizer = Tokenizer(models.BPE())
    # Of a list of words, each then has the tokens that it has in a text, behind a blank.
    of_words = recipe.task == "token-classification"
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=of_words)
    if of_words:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    arguments.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
    arguments.setdefault("show_progress", False)
    if next(_texts(recipe, train), None) is None:
        fix = "name the tokenizer that wrote them in the tokenizer section"
        raise ModelError.at(
            recipe.location("BpeTrainer"), "the rows hold token ids, not text to train a tokenizer on", fix
        )
    try:
        trainer = trainers.BpeTrainer(special_tokens=special, **arguments)
    except (TypeError, ValueError, OverflowError) as problem:
        raise ModelError.at(recipe.location("BpeTrainer"), f"tokenizers rejects it: {first_line(problem)}") from problem
    tokenizer.train_from_iterator(_texts(recipe, train), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_TOKEN,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        unk_token=END_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def _texts(recipe: Recipe, train: Dataset) -> Iterator[str]:
    """Every text in the train split, whatever its shape (a text, a list of words, a conversation)."""
    if recipe.task == "chat":
        yield from conversation_texts(recipe, train)
        return
    keys = {key: default for key, default in TASKS[recipe.task].columns.items() if key not in LABEL_KEYS}
    named = [recipe.get(f"dataset.{key}", default) for key, default in keys.items()]
    columns = [name for name in named if name in train.column_names]
    if not columns:
        key, default = next(iter(keys.items()))
        find_column(recipe, train, key, default)  # raises an error that lists the columns
    for batch in train.select_columns(columns).iter(1000):
        for values in batch.values():
            yield from _strings(values)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
