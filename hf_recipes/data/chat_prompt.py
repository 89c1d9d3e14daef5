"""What stands before an answer: the same token ids in rows of training, in samples while it runs, and in inference."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.data.chat_messages import Message
from hf_recipes.data.chat_template import (
    PROBE,
    TEMPLATE_ERRORS,
    AnswerTemplate,
    RewrittenTurnsError,
    common_length,
)

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

TEMPLATE_KEYS = {"system_template", "user_template", "assistant_template"}


def is_plain_prompt(recipe: Recipe, columns: Mapping[str, str]) -> bool:
    """Whether training joins a prompt's text and its completion without the chat template. `columns`: those that
    training reads, each with the kind of its values; empty where they are not known."""
    named = recipe.section("dataset")
    if columns:  # other shapes (Alpaca's, templates of the recipe) have columns of texts, too
        pair = {named.get("prompt_column", "prompt"), named.get("completion_column", "completion")}
        texts = set(columns.values()) <= {"string", "large_string"}
        return set(columns) == pair and not TEMPLATE_KEYS & set(named) and texts
    return "prompt_column" in named and "messages_column" not in named


def marks_answers(recipe: Recipe, columns: Mapping[str, str]) -> bool:
    """Whether training looks for the answers in its rows (read_template's `mark`): where they carry the loss."""
    named, only = recipe.section("dataset"), recipe.training.get("assistant_only_loss")
    pairs = {"prompt_column", "completion_column"} & set(named) or {"prompt", "completion"} <= set(columns)
    if pairs and not (TEMPLATE_KEYS | {"messages_column"}) & set(named):
        return bool(only)
    return only is not False


def prompt_ids(
    template: AnswerTemplate, tokenizer: Any, messages: Sequence[Message], tools: Any, arguments: Mapping[str, Any]
) -> list[int]:
    """The token ids with which a row of training begins that has these messages and then an answer, up to the answer.

    Raises whatever the template raises.
    """
    text, stop = _find_prompt(template, messages, tools, arguments)
    if not tokenizer.is_fast:
        return list(tokenizer(text[:stop], add_special_tokens=False, verbose=False)["input_ids"])
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    inside = bisect_right(tokens["offset_mapping"], stop, key=lambda token: token[1])
    return list(tokens["input_ids"][:inside])


def _find_prompt(
    template: AnswerTemplate, messages: Sequence[Message], tools: Any, arguments: Mapping[str, Any]
) -> tuple[str, int]:
    """The conversation with a one-letter answer, and the characters of it that are the prompt for an answer.

    That is the generation prompt as far as a row of training agrees with it, and at least all that carried no
    loss. A <think> that it leaves open is no part of it: whether an answer reasons, the model says. Raises whatever
    the template raises.
    """
    asked = template.text(messages, tools, arguments, prompt=True)
    answered = [*messages, {"role": "assistant", "content": PROBE}]
    try:
        text = template.text(answered, tools, arguments)
    except TEMPLATE_ERRORS:  # as one for answers of several parts
        return asked, len(asked)
    answer = text.rfind(PROBE)
    if answer < 0:
        return asked, len(asked)
    masked = _masked(template, answered, answer, tools, arguments)
    stop = max(masked, common_length(asked, text))
    opened = text.rfind("<think>", masked, stop)
    if opened >= 0 and "</think>" not in text[opened:stop]:
        stop = opened
    return text.replace(PROBE, "A"), stop


def _masked(
    template: AnswerTemplate, messages: list[Message], answer: int, tools: Any, arguments: Mapping[str, Any]
) -> int:
    """Where the loss begins of the answer whose text begins at `answer`; 0 where that is not known."""
    if not template.locates:
        return 0
    try:
        spans = template.render(messages, tools, arguments).spans
    except RewrittenTurnsError:  # training had single turns only
        return 0
    return next((start for start, stop in spans if start <= answer < stop), 0)
