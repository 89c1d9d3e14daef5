"""Rows and weights that would train without an error, and to no good: looked at once, before the first step. Light."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.data.row_ids import row_ids
from hf_recipes.errors import Diagnostic, RecipeError

if TYPE_CHECKING:
    from hf_recipes.data.prepared import Prepared
    from hf_recipes.recipe.recipe import Recipe

DISABLE = "disable_guards"
LOST = 0.2  # share of the label tokens that truncation may take
OVERLAP = 0.05  # share of the evaluation rows that may be training rows, too
LOOKED_AT = 2_000  # rows whose tokens are looked at
COMPARED = 200_000  # training rows that evaluation rows are looked up in


def disabled_guards(recipe: Recipe) -> tuple[str, ...]:
    """The guards that the recipe switches off."""
    return tuple(recipe.get(DISABLE) or ())


def insist(
    recipe: Recipe, word: str, where: str, what: str, fix: str, say: Callable[[str], None]
) -> Iterator[Diagnostic]:
    """The fault, or, where the recipe says that it is meant, the line."""
    if word in disabled_guards(recipe):
        say(f"{DISABLE} {word}: {what}")
    else:
        yield Diagnostic(location=where, message=what, fix=f"{fix}; if it is intended, write {DISABLE}: [{word}]")


def refuse_rows(recipe: Recipe, prepared: Prepared, tokenizer: Any, say: Callable[[str], None]) -> None:
    """Raises RecipeError with every fault of the prepared rows."""
    found = [
        *_truncated(recipe, prepared, say),
        *_never_ends(recipe, prepared, tokenizer, say),
        *_begins_twice(recipe, prepared, tokenizer, say),
        *_overlapping(recipe, prepared, say),
    ]
    if found:
        raise RecipeError(found)


def _truncated(recipe: Recipe, prepared: Prepared, say: Callable[[str], None]) -> Iterator[Diagnostic]:
    """Answers (chat) or words (token-classification) that stand beyond max_length."""
    counts = prepared.stats["train"]
    lost = counts.get("lost_label_tokens", counts.get("lost_words", 0))
    kept = counts.get("label_tokens", 0)
    if lost <= LOST * (lost + kept):
        return
    dotted = "SFTConfig.max_length" if recipe.trainer == "SFTConfig" else "dataset.max_length"
    what = f"{lost / (lost + kept):.0%} of the label tokens of the train split are cut off by max_length"
    yield from insist(recipe, "truncation", recipe.location(dotted), what, f"raise {dotted}", say)


def _never_ends(recipe: Recipe, prepared: Prepared, tokenizer: Any, say: Callable[[str], None]) -> Iterator[Diagnostic]:
    """No answer ends with a special token: the model learns never to stop."""
    if recipe.task != "chat":
        return
    ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    ends |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    rows = prepared.train.select(range(min(LOOKED_AT, prepared.train.num_rows)))
    if any(label in ends for labels in rows["labels"] for label in labels if label != -100):
        return
    where = recipe.location("SFTConfig.chat_template_path" if recipe.get("SFTConfig.chat_template_path") else "dataset")
    what = f"no answer in {rows.num_rows:,} rows has an end token among its labels: the model would never stop"
    fix = "the chat template must close an assistant's turn with a special token, such as eos_token"
    yield from insist(recipe, "end_token", where, what, fix, say)


def _begins_twice(
    recipe: Recipe, prepared: Prepared, tokenizer: Any, say: Callable[[str], None]
) -> Iterator[Diagnostic]:
    """Two begin tokens side by side: the text has one, and the tokenizer wrote another."""
    begin = tokenizer.bos_token_id
    if begin is None or begin == tokenizer.eos_token_id:  # one token for both: end and begin of two documents meet
        return
    rows = prepared.train.select(range(min(LOOKED_AT, prepared.train.num_rows)))
    twice = sum(any(a == b == begin for a, b in pairwise(ids)) for ids in rows["input_ids"])
    if not twice:
        return
    what = f"{twice:,} of {rows.num_rows:,} rows have two begin tokens ({tokenizer.bos_token!r}) side by side"
    fix = "take it out of the texts or of the template: the tokenizer writes one itself"
    yield from insist(recipe, "double_bos", recipe.location("dataset"), what, fix, say)


def _overlapping(recipe: Recipe, prepared: Prepared, say: Callable[[str], None]) -> Iterator[Diagnostic]:
    """Evaluation rows that are trained on: their score says nothing of new text."""
    if str(recipe.get("dataset.path", "")).startswith("hf_recipes.smoke:"):
        return
    rows, columns = prepared.sources["train"]
    if rows.num_rows > COMPARED:
        rows = rows.select(range(COMPARED))
    inputs = columns[:1] if not TASKS[recipe.task].generates else columns  # a label makes no other text
    trained = set(row_ids(rows, inputs))
    for split, (part, named) in prepared.sources.items():
        if split == "train":
            continue
        part = part.select(range(min(part.num_rows, COMPARED)))
        both = sum(one in trained for one in row_ids(part, named[: len(inputs)]))
        if not both:
            continue
        share = both / part.num_rows
        what = f"{both:,} of {part.num_rows:,} rows of the {split} split ({share:.0%}) are rows of the train split, too"
        ours = split == "eval" and not _has_validation(recipe)
        if share <= OVERLAP or ours:
            say(f"{what}: scores on them say nothing of new text")
            continue
        fix = "give it rows of its own, or leave validation out: a share is split off"
        yield from insist(recipe, "overlap", recipe.location("dataset.data_files"), what, fix, say)


def _has_validation(recipe: Recipe) -> bool:
    """Whether the recipe names evaluation rows; else a share was split off the train split."""
    files = recipe.get("dataset.data_files")
    return not isinstance(files, str | list | None) and any(role != "train" for role in files)
