"""Rows without their answers: a chat model is asked as its training rows asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_recipes.data.chat_rows import choose_reader, read_question
from hf_recipes.inference.generate import prompt_ids
from hf_recipes.inference.trained import find_trained, load_trained
from hf_recipes.recipe.recipe import Recipe

Enter = Callable[..., Path]
ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"user_template": "How {{ q }}?", "assistant_template": "{{ a }}"}, {"q": "far", "a": "3 miles"}),
    (
        {"system_template": "{{ s }}", "user_template": "{{ q }} {{ more }}", "assistant_template": "{{ a }}"},
        {"s": "Be short.", "q": "how far", "more": None, "a": "3 miles"},
    ),
    ({}, {"instruction": "Add.", "input": "1 2", "output": "3"}),
    ({}, {"instruction": "Add.", "input": "", "output": "3"}),
    ({}, {"instruction": "And 4?", "history": [["Add 1 2", "3"]], "output": "7"}),
]


@pytest.mark.parametrize(("dataset", "row"), ASKED)
def test_a_row_without_its_answer_is_asked_as_training_asked_it(dataset: dict[str, Any], row: dict[str, Any]) -> None:
    recipe = Recipe(path="r", sections={"task": "chat", "dataset": dataset, "SFTConfig": {}}, locations={})
    rows = Dataset.from_list([row])
    trained = choose_reader(recipe, rows).read(rows[0])
    asked = {key: value for key, value in rows[0].items() if key not in ("output", "a")}
    assert read_question(recipe, asked) == trained.messages[:-1]  # type: ignore[union-attr]


def test_a_text_stands_for_the_only_column_of_the_runs_template(enter_run: Enter) -> None:
    enter_run("chat")
    found = find_trained("out")
    trained = load_trained(found, cpu=True)
    as_message = prompt_ids(trained, {"messages": [{"role": "user", "content": "How far is it?"}]})
    sections = dict(found.recipe.sections)
    sections["dataset"] = {**found.recipe.section("dataset"), "user_template": "How {{ q }} is it?"}
    record = replace(found.record, recipe=replace(found.record.recipe, sections=sections))  # type: ignore[type-var, union-attr]
    other = replace(trained, found=replace(found, record=record))
    assert prompt_ids(other, {"text": "far"}) == prompt_ids(other, {"q": "far"}) == as_message
