"""Rows that would train without an error but with a useless result: checked once, before the first step.

Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS
from hf_recipes.data.row_ids import row_ids
from hf_recipes.errors import DataError, Diagnostic

if TYPE_CHECKING:
    from hf_recipes.data.prepared import Prepared
    from hf_recipes.recipe.recipe import Recipe

DISABLE = "disable_guards"
LOST = 0.2  # share of the label tokens that truncation may take
OVERLAP = 0.05  # share of the evaluation rows that may be training rows, too
CHECKED = 2_000  # rows whose tokens are checked
COMPARED = 200_000  # training rows in which evaluation rows are searched


def disabled_guards(recipe: Recipe) -> tuple[str, ...]:
    """The guards that the recipe switches off."""
    return tuple(recipe.get(DISABLE) or ())


def report_unless_disabled(
    recipe: Recipe, guard: str, location: str, message: str, fix: str, say: Callable[[str], None]
) -> Iterator[Diagnostic]:
    """The error of a guard; only a printed line if the recipe disables that guard."""
    if guard in disabled_guards(recipe):
        say(f"{DISABLE} {guard}: {message}")
    else:
        fix = f"{fix}; if it is intended, write {DISABLE}: [{guard}]"
        yield Diagnostic(location=location, message=message, fix=fix)


def check_rows(recipe: Recipe, prepared: Prepared, tokenizer: Any, say: Callable[[str], None]) -> None:
    """Raises DataError with every error of the prepared rows."""
    errors = [
        *_check_truncation(recipe, prepared, say),
        *_check_end_token(recipe, prepared, tokenizer, say),
        *_check_double_bos(recipe, prepared, tokenizer, say),
        *_check_overlap(recipe, prepared, say),
    ]
    if errors:
        raise DataError(errors)


def _check_truncation(recipe: Recipe, prepared: Prepared, say: Callable[[str], None]) -> Iterator[Diagnostic]:
    """Answers (chat) or words (token-classification) beyond max_length."""
    counts = prepared.stats["train"]
    lost = counts.lost_label_tokens or counts.lost_words or 0
    used = counts.label_tokens or 0
    if lost <= LOST * (lost + used):
        return
    dotted = recipe.max_length_key
    what = f"{lost / (lost + used):.0%} of the label tokens of the train split are cut off by max_length"
    yield from report_unless_disabled(recipe, "truncation", recipe.location(dotted), what, f"raise {dotted}", say)


def _check_end_token(
    recipe: Recipe, prepared: Prepared, tokenizer: Any, say: Callable[[str], None]
) -> Iterator[Diagnostic]:
    """No answer ends with a special token: the model does not learn to stop."""
    if recipe.task != "chat":
        return
    ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    ends |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    from hf_recipes.data.streamed_rows import first_rows

    rows = first_rows(prepared.train, CHECKED)
    if any(label in ends for labels in rows["labels"] for label in labels if label != -100):
        return
    location = recipe.location(
        "SFTConfig.chat_template_path" if recipe.get("SFTConfig.chat_template_path") else "dataset"
    )
    what = f"no answer in {rows.num_rows:,} rows has an end token among its labels: the model would not learn to stop"
    fix = "the chat template must end an assistant's turn with a special token, such as eos_token"
    yield from report_unless_disabled(recipe, "end_token", location, what, fix, say)


def _check_double_bos(
    recipe: Recipe, prepared: Prepared, tokenizer: Any, say: Callable[[str], None]
) -> Iterator[Diagnostic]:
    """Two BOS tokens side by side: the text has one, and the tokenizer added another."""
    begin = tokenizer.bos_token_id
    if (
        begin is None or begin == tokenizer.eos_token_id
    ):  # one token for both: the end of a document meets the start of the next
        return
    from hf_recipes.data.streamed_rows import first_rows

    rows = first_rows(prepared.train, CHECKED)
    twice = sum(any(a == b == begin for a, b in pairwise(ids)) for ids in rows["input_ids"])
    if not twice:
        return
    what = f"{twice:,} of {rows.num_rows:,} rows have two BOS tokens ({tokenizer.bos_token!r}) side by side"
    fix = "remove it from the texts or the template: the tokenizer adds one itself"
    yield from report_unless_disabled(recipe, "double_bos", recipe.location("dataset"), what, fix, say)


def _check_overlap(recipe: Recipe, prepared: Prepared, say: Callable[[str], None]) -> Iterator[Diagnostic]:
    """Evaluation rows that are also training rows: their score does not show how the model does on new text."""
    if recipe.is_generated:
        return
    source = prepared.sources["train"]
    rows, columns = source.rows, list(source.columns)
    if rows.num_rows > COMPARED:
        rows = rows.select(range(COMPARED))
    inputs = columns[:-1] if not TASKS[recipe.task].generates else columns  # another label does not make another text
    trained = set(row_ids(rows, inputs))
    for split, other in prepared.sources.items():
        if split == "train":
            continue
        part = other.rows.select(range(min(other.rows.num_rows, COMPARED)))
        both = sum(one in trained for one in row_ids(part, other.columns[: len(inputs)]))
        if not both:
            continue
        share = both / part.num_rows
        what = f"{both:,} of {part.num_rows:,} rows of the {split} split ({share:.0%}) are also in the train split"
        ours = split == "eval" and not _has_validation(recipe)
        if share <= OVERLAP or ours:
            say(f"{what}: scores on them do not show how the model does on new text")
            continue
        fix = "use other rows, or leave validation out: then a share of the train split is used"
        yield from report_unless_disabled(recipe, "overlap", recipe.location("dataset.data_files"), what, fix, say)


def _has_validation(recipe: Recipe) -> bool:
    """Whether the recipe names evaluation rows; if not, a share of the train split is used."""
    files = recipe.get("dataset.data_files")
    return not isinstance(files, str | list | None) and any(role != "train" for role in files)
