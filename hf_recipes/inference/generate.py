"""Continuations and answers: prompts as training rendered them, in batches padded on the left."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from itertools import tee
from typing import Any

from hf_recipes.common.text import first_line
from hf_recipes.data import chat_prompt
from hf_recipes.data.chat_messages import RowError, read_messages
from hf_recipes.data.chat_rows import TEMPLATE_COLUMN, join_arguments, read_question, read_tools
from hf_recipes.data.chat_template import AnswerTemplate, read_template
from hf_recipes.errors import DataError, RecipeError
from hf_recipes.inference.classify import in_order, text_of
from hf_recipes.inference.inputs import Row
from hf_recipes.inference.trained import Trained
from hf_recipes.record import DataFacts

NEW_TOKENS = 128  # of an answer, where GenerationConfig names no length


def generation_arguments(recipe: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's GenerationConfig with what the user gave; without either the likeliest continuation."""
    arguments = {"do_sample": False, **recipe.section("GenerationConfig"), **given}
    if "max_length" not in arguments:
        arguments.setdefault("max_new_tokens", NEW_TOKENS)
    return arguments


def template_arguments(recipe: Any) -> dict[str, Any]:
    """What the recipe gives the chat template beside the messages."""
    return dict(recipe.training.get("chat_template_kwargs") or recipe.get("dataset.chat_template_kwargs") or {})


def _columns(trained: Trained) -> Mapping[str, str]:
    """Those that training read, each with the kind of its values; {} where that is not known."""
    record = trained.found.record
    return record.data.get("train", DataFacts()).columns if record else {}


def is_plain_prompt(trained: Trained) -> bool:
    """Whether training joined a prompt's text and its completion without the chat template."""
    if trained.task != "chat" or trained.found.record is None:
        return trained.task == "causal-lm"
    return chat_prompt.is_plain_prompt(trained.recipe, _columns(trained))


@functools.lru_cache(maxsize=8)
def _read_template(tokenizer: Any, mark: bool, tools: bool, source: str) -> AnswerTemplate:
    """`source`: the tokenizer's template, which may be replaced between two calls."""
    return read_template(tokenizer, mark=mark, tools=tools)


def chat_ids(trained: Trained, messages: list[dict[str, Any]], row: Row | None = None) -> list[int]:
    """The token ids with which a row of training begins that has these messages and then an answer, up to the answer.
    The row may have tools and arguments of the template, as rows of training may.

    Raises whatever the template raises, and RowError for tools that are none.
    """
    tokenizer, recipe, row = trained.tokenizer, trained.recipe, row or {}
    padded = recipe.get("dataset.path") != "json"
    column = str(recipe.get("dataset.tools_column") or "tools")
    tools = read_tools(row.get(column), column, padded)
    arguments = join_arguments(template_arguments(recipe), row.get(TEMPLATE_COLUMN))
    mark = chat_prompt.marks_answers(recipe, _columns(trained))
    template = _read_template(tokenizer, mark, bool(tools), str(tokenizer.chat_template))
    return chat_prompt.prompt_ids(template, tokenizer, messages, tools, arguments)


def _messages(trained: Trained, row: Row, number: int, *, asked: bool) -> list[dict[str, Any]] | None:
    """The row's messages with role and content, whatever they are called in it; None for a row without any.
    `asked`: they may be made of the row's other columns, as training makes them."""
    recipe = trained.recipe
    names = (recipe.get("dataset.messages_column"), "messages", "conversations")
    key = next((str(name) for name in names if name is not None and row.get(str(name)) is not None), None)
    if key is None and not asked:
        return None
    try:
        if key is None:
            found = read_question(recipe, row)
        else:
            found = read_messages(row[key], recipe.get("dataset.role_names") or {}, False, "messages_column")
    except RowError as problem:
        raise DataError.at(f"row {number}", problem.what, problem.fix) from None
    if found is None:
        return None
    system = row.get(str(recipe.get("dataset.system_column", "system")))
    if isinstance(system, str) and system.strip() and found[0]["role"] != "system":
        found = [{"role": "system", "content": system}, *found]
    return found


def prompt_ids(trained: Trained, row: Row, number: int = 0) -> list[int]:
    """Token ids that training had before the answer. The row has messages, a prompt (text or messages), or a text.

    Raises DataError for a row without one, and for what the chat template rejects.
    """
    recipe, tokenizer = trained.recipe, trained.tokenizer
    prompt = row.get(str(recipe.get("dataset.prompt_column", "prompt")))
    messages = _messages(trained, row, number, asked=trained.task == "chat" and prompt is None)
    chat = messages or (prompt if isinstance(prompt, list) else None)
    if chat is None:
        text = prompt if isinstance(prompt, str) and prompt else None
        if text is None:
            text = text_of(row, str(recipe.get("dataset.text_column", "text")), number)
        if is_plain_prompt(trained):
            ids = tokenizer(text, verbose=False)["input_ids"]
            end = tokenizer.sep_token_id or tokenizer.eos_token_id
            return list(
                ids[:-1] if len(ids) > 1 and ids[-1] == end and not text.endswith(str(tokenizer.eos_token)) else ids
            )
        chat = [{"role": "user", "content": text}]
    if chat and chat[-1].get("role") == "assistant":
        chat = chat[:-1]  # the answer of a row that was made for training
    try:
        return chat_ids(trained, chat, row)
    except Exception as problem:  # templates are programs and may raise anything
        what = f"the chat template rejects it: {first_line(problem)}"
        raise DataError.at(f"row {number}", what, "give a list of {role, content}") from problem


def generate(
    trained: Trained, rows: Iterable[Row], batch_size: int, given: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The row with "generated_text": what the model writes after it. `given`: arguments of GenerationConfig.

    Raises RecipeError for what GenerationConfig refuses, DataError for a prompt longer than the model reads.
    """
    asked, prompts = tee((row, prompt_ids(trained, row, number)) for number, row in enumerate(rows))
    texts = continue_ids(trained, (ids for _, ids in prompts), batch_size, given)
    for text, (row, _) in zip(texts, asked, strict=False):  # the texts first: they read ahead of the rows
        yield {**row, "generated_text": text}


def continue_ids(
    trained: Trained, prompts: Iterable[list[int]], batch_size: int, given: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """What the model writes after each prompt, in their order. Raises as `generate`."""
    import torch

    tokenizer, model = trained.tokenizer, trained.model
    config = generation_config(trained, generation_arguments(trained.recipe, given or {}))

    def checked() -> Iterator[dict[str, Any]]:
        for number, ids in enumerate(prompts):
            if not ids:
                raise DataError.at(f"row {number}", "gives no token to continue", "write some text")
            if trained.positions is not None and len(ids) >= trained.positions:
                what = f"has {len(ids)} tokens; the model reads {trained.positions} with its answer"
                raise DataError.at(f"row {number}", what, "shorten it")
            yield {"ids": ids}

    def predict(batch: list[Row]) -> list[str]:
        width = max(len(one["ids"]) for one in batch)
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(one["ids"])) + one["ids"] for one in batch])
        mask = torch.tensor([[0] * (width - len(one["ids"])) + [1] * len(one["ids"]) for one in batch])
        with torch.inference_mode():
            tokens = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=limited(config, trained.positions, width),
            )
        return list(tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True))

    for _, text in in_order(checked(), batch_size, lambda one: len(one["ids"]), predict):
        yield text


def generation_config(trained: Trained, arguments: Mapping[str, Any]) -> Any:
    """transformers' GenerationConfig. The model's own gives what is not stated: its end tokens, not its sampling.
    Raises RecipeError for what it refuses."""
    from transformers import GenerationConfig

    own = getattr(trained.model, "generation_config", None)
    ends = {trained.tokenizer.eos_token_id}
    stated = getattr(own, "eos_token_id", None)
    ends |= set(stated if isinstance(stated, list) else [stated])
    named = {"eos_token_id": sorted(ends - {None}) or None, "pad_token_id": trained.tokenizer.pad_token_id}
    try:
        config = GenerationConfig(**{"use_cache": True, **named, **arguments})
        config.validate(strict=False)
    except (ValueError, TypeError) as problem:
        raise RecipeError.at("GenerationConfig", f"GenerationConfig refuses: {first_line(problem)}") from problem
    return config


def limited(config: Any, positions: int | None, read: int) -> Any:
    """`config` with no more new tokens than the model has positions for after `read` tokens."""
    import copy

    if positions is None:
        return config
    config = copy.deepcopy(config)
    if isinstance(config.max_new_tokens, int):
        config.max_new_tokens = max(1, min(config.max_new_tokens, positions - read))
    return config
