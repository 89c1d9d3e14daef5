"""Rows that would train without an error but with a useless result are refused; a disabled guard only prints a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset

from hf_recipes.data import row_checks
from hf_recipes.data.row_checks import check_rows
from hf_recipes.errors import DataError
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import CHATML, bpe, prepare, wordpiece

Make = Callable[..., Recipe]
WORD_TAGS = {"tokens": ["a", "b", "c", "d"], "tags": ["O", "B-X", "O", "O"]}


def checked(recipe: Recipe, rows: Any, tokenizer: Any, length: int = 64, held_out: Any = None) -> tuple[str, list[str]]:
    """(the refusal, or "", and the lines printed). Other rows are held out, unless some are given."""
    other = [{name: _other(value) for name, value in row.items()} for row in rows] if held_out is None else held_out
    lines: list[str] = []
    try:
        check_rows(recipe, prepare(recipe, rows, tokenizer, length, other), tokenizer, lines.append)
    except DataError as problem:
        return str(problem), lines
    return "", lines


def _other(value: Any) -> Any:
    return f"not {value}" if isinstance(value, str) and value not in ("yes", "no") else value


def disabled(recipe: Recipe, guard: str) -> Recipe:
    return recipe.with_values({"disable_guards": [guard]}, "recipe.yaml:9")


# --- truncation ------------------------------------------------------------------------------------------------------


def pairs(words: int, rows: int = 4) -> list[dict]:
    return [{"prompt": f"row {i}", "completion": " sea" * words} for i in range(rows)]


def test_answers_of_which_more_than_a_fifth_is_cut_off_are_refused(make: Make) -> None:
    recipe, tokenizer = make("chat", section="SFTConfig"), bpe(chat=CHATML)
    prompt = len(tokenizer("row 1")["input_ids"])
    answer = len(tokenizer(" sea" * 19)["input_ids"]) + 1  # with its end token: 20 tokens
    assert answer == 20
    message, _ = checked(recipe, pairs(19), tokenizer, prompt + 15)
    assert message == (
        "recipe.yaml:4: 25% of the label tokens of the train split are cut off by max_length; raise "
        "SFTConfig.max_length; if it is intended, write disable_guards: [truncation]\n"
        "recipe.yaml:3: no answer in 4 rows has an end token among its labels: the model would not learn to stop; the "
        "chat template must end an assistant's turn with a special token, such as eos_token; if it is intended, write "
        "disable_guards: [end_token]"
    )
    message, _ = checked(recipe, pairs(19), tokenizer, prompt + 16)  # a fifth
    assert "cut off" not in message and "no answer in 4 rows" in message
    assert checked(recipe, pairs(19), tokenizer, prompt + 20) == ("", [])
    message, lines = checked(disabled(recipe, "truncation"), pairs(19), tokenizer, prompt + 15)
    assert "cut off" not in message and lines == [
        "disable_guards truncation: 25% of the label tokens of the train split are cut off by max_length"
    ]


def test_words_of_which_more_than_a_fifth_is_cut_off_are_refused(make: Make) -> None:
    recipe = make("token-classification")
    tokenizer = wordpiece(["a", "b", "c", "d"])
    message, _ = checked(recipe, [WORD_TAGS], tokenizer, 5, held_out=[{**WORD_TAGS, "tokens": ["d", "c", "b", "a"]}])
    assert message.startswith("recipe.yaml: 25% of the label tokens") or message.startswith("recipe.yaml:3: 25% of the")
    assert "raise dataset.max_length" in message


# --- end token and BOS -----------------------------------------------------------------------------------------------


def test_answers_without_an_end_token_are_refused_and_named_with_the_template(make: Make) -> None:
    template = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    rows = [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "you"}]} for i in (1, 2)
    ]
    other = [{"messages": [{"role": "user", "content": "bye"}, {"role": "assistant", "content": "you"}]}]
    recipe = make("chat", section="SFTConfig")
    message, _ = checked(recipe, rows, bpe(chat=template), held_out=other)
    assert message.startswith("recipe.yaml:3: no answer in 2 rows has an end token among its labels")
    own = recipe.with_values({"SFTConfig.chat_template_path": "mine.jinja"}, "recipe.yaml:7")
    assert checked(own, rows, bpe(chat=template), held_out=other)[0].startswith("recipe.yaml:7: no answer in 2 rows")
    assert checked(disabled(recipe, "end_token"), rows, bpe(chat=template), held_out=other)[0] == ""
    assert checked(recipe, rows, bpe(chat=CHATML), held_out=other) == ("", [])


def test_two_bos_tokens_side_by_side_are_refused_with_their_number(make: Make) -> None:
    recipe = make("causal-lm", section="SFTConfig")
    rows = [{"text": "<s>the sea"}, {"text": "the <s> house"}, {"text": "a long time"}]
    message, _ = checked(recipe, rows, bpe(bos=True))
    assert message == (
        "recipe.yaml:3: 1 of 3 rows have two BOS tokens ('<s>') side by side; remove it from the texts or the "
        "template: the tokenizer adds one itself; if it is intended, write disable_guards: [double_bos]"
    )
    assert checked(recipe, rows, bpe(bos=False)) == ("", [])
    assert checked(disabled(recipe, "double_bos"), rows, bpe(bos=True))[0] == ""


def test_a_token_that_both_begins_and_ends_a_text_may_meet_itself(make: Make) -> None:
    tokenizer = bpe(bos=True)
    tokenizer.eos_token = "<s>"
    assert checked(make("causal-lm", section="SFTConfig"), [{"text": "<s>the sea"}], tokenizer) == ("", [])
    tokenizer.bos_token = None
    assert checked(make("causal-lm", section="SFTConfig"), [{"text": "<s>the sea"}], tokenizer) == ("", [])


# --- overlap ---------------------------------------------------------------------------------------------------------


def classes(*texts: str) -> list[dict]:
    return [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts)]


NAMED = "data_files: {train: a.jsonl, validation: b.jsonl}"


@pytest.mark.parametrize(
    ("dataset", "refused"), [(NAMED, True), ("data_files: {train: a.jsonl}", False), ("data_files: a.jsonl", False)]
)
def test_evaluation_rows_of_the_train_split_are_refused_where_the_recipe_names_them(
    make: Make, dataset: str, refused: bool
) -> None:
    rows, other = classes("one", "two", "three"), classes("two", "five")  # "two" has another label there
    message, lines = checked(make("text-classification", dataset), rows, bpe(), held_out=other)
    what = "1 of 2 rows of the eval split (50%) are also in the train split"
    if refused:
        assert message == (
            f"recipe.yaml:3: {what}; use other rows, or leave validation out: then a share of the train split is used; "
            "if it is intended, write disable_guards: [overlap]"
        )
    else:
        assert (message, lines) == ("", [f"{what}: scores on them do not show how the model does on new text"])


def test_few_rows_in_both_splits_are_only_reported(make: Make) -> None:
    rows, other = classes("one", "two"), classes("one", *(f"other {i}" for i in range(19)))
    message, lines = checked(make("text-classification", NAMED), rows, bpe(), held_out=other)
    assert message == "" and lines[0].startswith("1 of 20 rows of the eval split (5%) are also in the train split")
    message, _ = checked(make("text-classification", NAMED), rows, bpe(), held_out=other[:-1])
    assert message.startswith("recipe.yaml:3: 1 of 19 rows of the eval split (5%)")


def test_a_language_models_row_is_in_both_splits_only_with_its_answer(make: Make) -> None:
    recipe = make("chat", "data_files: {train: a.jsonl, validation: b.jsonl}", section="SFTConfig")
    rows = [{"prompt": "hello", "completion": " you"}]
    for answer, refused in ((" you", True), (" all", False)):
        message, _ = checked(recipe, rows, bpe(chat=CHATML), held_out=[{"prompt": "hello", "completion": answer}])
        assert bool(message) == refused


def test_only_the_first_rows_of_large_splits_are_compared(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_checks, "COMPARED", 2)
    rows, other = classes("one", "two", "three"), classes("four", "five", "one", "three")
    assert checked(make("text-classification", NAMED), rows, bpe(), held_out=other) == ("", [])
    message, _ = checked(make("text-classification", NAMED), rows, bpe(), held_out=classes("two", "three", "x"))
    assert "1 of 2 rows of the eval split (50%)" in message


def test_rows_are_compared_in_the_test_split_too(make: Make) -> None:
    from hf_recipes.data.splits import Splits
    from hf_recipes.data.text_classification import prepare as prepare_rows

    recipe, tokenizer = make("text-classification", "data_files: {train: a.jsonl, test: b.jsonl}"), bpe()
    rows = [Dataset.from_list(classes(*texts)) for texts in (("one", "two"), ("three", "four"), ("one", "five"))]
    splits = Splits(train=rows[0], validation=rows[1], test=rows[2])
    with pytest.raises(DataError, match=r"1 of 2 rows of the test split \(50%\) are also in the train split"):
        check_rows(recipe, prepare_rows(splits, tokenizer, recipe, 64), tokenizer, print)
