"""The reader at its edges: keys that are numbers, values that are left out, limits, and what nests."""

from __future__ import annotations

import dataclasses

import pytest

from hf_recipes.recipe import yaml_reader
from hf_recipes.recipe.document import Document
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.schema import installed
from hf_recipes.recipe.validate import Validator
from tests.support.recipe_files import errors_of

HEAD = (
    "task: causal-lm\nmodel: {preset: gpt-tiny}\nBpeTrainer: {vocab_size: 300}\n"
    "dataset: {path: text, data_files: none.txt}\n"
)


def _read(text: str) -> Document:
    return yaml_reader.read_text(text, lambda line: f"a.yaml:{line}", "a.yaml")


def _errors(text: str) -> list[str]:
    return [f"{error.location}: {error.message}" for error in _read(text).errors]


def test_a_key_that_is_a_number_stays_one_and_an_infinite_one_is_text() -> None:
    assert _read("a: {1.5: x, .inf: y, -.inf: z, .nan: w, 2: v}").values == {
        "a": {1.5: "x", ".inf": "y", "-.inf": "z", ".nan": "w", 2: "v"}
    }
    assert _errors("a:\n  .inf: 1\n  .inf: 2\n") == ["a.yaml:3: duplicate key '.inf'"]


def test_a_value_that_is_refused_is_left_out_and_its_key_is_known_to_be_broken() -> None:
    found = _read("a: !own 1\nb: [1, !own 2, 3]\nc: {d: !own 4, e: 5}\n")
    assert found.values == {"b": [1, 3], "c": {"e": 5}}
    assert found.broken >= {"a", "b.1", "c.d"}
    assert _read("!own {a: 1}").values is None


def test_what_is_merged_must_be_a_mapping() -> None:
    assert _read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n").values["b"] == {"x": 1, "y": 3}
    for wrong in ("[[1]]", "[1]", "1"):
        [error] = _errors(f"a:\n  <<: {wrong}\n")
        assert error == "a.yaml:2: '<<' merges a mapping, and this is none"


def test_half_of_a_surrogate_pair_is_refused() -> None:
    assert _errors('a: "\\ud800"') == ["a.yaml:1: a string holds half of a surrogate pair"]


def test_a_text_with_too_many_values_is_refused_where_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_reader, "_too_many", lambda node: "has too many values")
    assert _errors("\n\na: 1\n") == ["a.yaml:3: has too many values"]


def test_a_file_of_exactly_the_largest_size_is_read(here) -> None:
    assert errors_of(here(b"#" * (yaml_reader.MOST_BYTES - 1) + b"\n")) == [
        "a.yaml: is empty; a recipe begins with 'task:'"
    ]
    [error] = errors_of(here(b"#" * yaml_reader.MOST_BYTES + b"\n"))
    assert error.startswith("a.yaml: has 1.0 MB")


def test_a_nested_number_that_is_not_finite_is_refused(here) -> None:
    kwargs = "lr_scheduler_kwargs: {a: 1.0, b: {c: .inf}}"
    errors = errors_of(here(f"{HEAD}TrainingArguments: {{output_dir: out, {kwargs}}}\n"))
    assert "a.yaml:5: TrainingArguments.lr_scheduler_kwargs.b.c is inf; it must be a finite number" in errors


def test_a_deprecated_key_is_a_warning_unless_it_is_null() -> None:
    field = dataclasses.replace(installed.fields("TrainingArguments")["learning_rate"], deprecated=True)
    for value, warnings in ((None, 0), (1e-4, 1)):
        validator = Validator(_read(f"{HEAD}TrainingArguments: {{learning_rate: 1}}\n"))
        validator.check_value("TrainingArguments.learning_rate", field, value)
        assert len(validator.warnings) == warnings


@pytest.mark.parametrize(
    ("dataset", "warned"),
    [
        ("{path: jsonn, data_files: rows.jsonl}", True),
        ("{path: json, data_files: rows.jsonl}", False),
        ("{path: someone/jsonn, data_files: rows.jsonl}", False),
        ("{path: jsonn}", False),
        ("{path: folder, data_files: rows.jsonl}", False),
    ],
)
def test_a_misspelled_format_is_a_warning_where_it_can_only_be_a_format(here, dataset: str, warned: bool) -> None:
    here("{}", "rows.jsonl")
    here("", "folder/x")
    recipe = read_recipe(
        here(HEAD.replace("{path: text, data_files: none.txt}", dataset) + "TrainingArguments: {output_dir: out}\n")
    )
    assert any("which is no file format" in str(warning) for warning in recipe.warnings) is warned


@pytest.mark.parametrize(
    ("key", "warned"), [("delimiter: ';'", False), ("field: rows", False), ("my_delimiting: ';'", True)]
)
def test_a_hub_id_takes_the_keys_of_every_file_format_and_warns_of_others(here, key: str, warned: bool) -> None:
    dataset = f"{{path: someone/rows, {key}}}"
    recipe = read_recipe(
        here(HEAD.replace("{path: text, data_files: none.txt}", dataset) + "TrainingArguments: {output_dir: out}\n")
    )
    assert any(key.partition(":")[0] in str(warning) for warning in recipe.warnings) is warned
