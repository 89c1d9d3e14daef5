"""`dataset.probabilities`: rows drawn from several files in the shares that the recipe asks for."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.data.splits import load_splits
from hf_recipes.errors import DataError, RecipeError
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe

RECIPE = """
task: causal-lm
model: {config: {model_type: gpt2}}
tokenizer: {pretrained_model_name_or_path: tokenizer}
dataset:
  path: json
  data_files: {train: [a.jsonl, b.jsonl], validation: v.jsonl}
  probabilities: [0.8, 0.2]
TrainingArguments: {output_dir: out, max_steps: 9}
"""


@pytest.fixture
def mixed(write_recipe: Callable[..., str]) -> Callable[..., Recipe]:
    for name, count in (("a", 400), ("b", 60), ("v", 5)):
        rows = (json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(count))
        Path(f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")

    def make(text: str = "", new: str = "") -> Recipe:
        assert text in RECIPE
        return read_recipe(write_recipe(RECIPE.replace(text, new)))

    return make


def counts(texts: list[str]) -> Counter[str]:
    return Counter(text[0] for text in texts)


def test_rows_come_in_the_shares_that_are_asked_for_and_the_notes_report_them(mixed: Callable[..., Recipe]) -> None:
    found = load_splits(mixed())
    texts = found.train["text"]
    drawn = counts(texts)
    assert drawn["b"] == 60 and 0.7 < drawn["a"] / len(texts) < 0.9  # it ends with the shorter one
    assert len(set(texts)) == len(texts) and found.validation.num_rows == 5
    share = f"a.jsonl {drawn['a'] / len(texts):.1%} ({drawn['a']}), b.jsonl {drawn['b'] / len(texts):.1%} (60)"
    assert f"train: a mixture; of {len(texts)} rows: {share}" in found.notes
    assert load_splits(mixed()).train["text"] == texts
    other = mixed("  probabilities", "  seed: 1\n  probabilities")
    assert load_splits(other).train["text"] != texts and not other.warnings


def test_all_exhausted_reads_the_longer_one_to_its_end_and_the_shorter_one_again(mixed: Callable[..., Recipe]) -> None:
    found = load_splits(mixed("  probabilities", "  stopping_strategy: all_exhausted\n  probabilities"))
    drawn = counts(found.train["text"])
    assert len({text for text in found.train["text"] if text[0] == "a"}) == 400 and drawn["b"] > 60


def test_a_stream_is_a_mixture_too(mixed: Callable[..., Recipe]) -> None:
    found = load_splits(mixed("  probabilities", "  streaming: true\n  probabilities"))
    assert found.stream is not None
    texts = [row["text"] for row in found.stream.rows]
    assert texts == load_splits(mixed()).train["text"]
    assert any(line.startswith("train: a mixture; of its first") for line in found.notes)
    again = [row["text"] for row in itertools.islice(found.stream.rows.shuffle(seed=3, buffer_size=9), 100)]
    assert again == [row["text"] for row in itertools.islice(found.stream.rows.shuffle(seed=3, buffer_size=9), 100)]


@pytest.mark.parametrize(
    ("text", "new", "wanted"),
    [
        ("[0.8, 0.2]", "[0.8, 0.1, 0.1]", "has 3 numbers, and data_files.train has 2 files"),
        ("[0.8, 0.2]", "[0.8, 0.3]", "are above 0 and sum to 1; these sum to 1.1; divide each by their sum"),
        ("[0.8, 0.2]", "[1.0, 0.0]", "are above 0 and sum to 1; these sum to 1"),
        (", validation: v.jsonl", "", "no share of it is split off for validation"),
        ("  probabilities: [0.8, 0.2]", "  stopping_strategy: all_exhausted", "has no effect without probabilities"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_by_check(
    mixed: Callable[..., Recipe], text: str, new: str, wanted: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        mixed(text, new)
    assert wanted in str(raised.value)


def test_files_of_other_columns_are_named_and_an_empty_one_too(mixed: Callable[..., Recipe]) -> None:
    recipe = mixed()
    Path("b.jsonl").write_text('{"text": "b", "source": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="differ in their columns: source is not in all of them"):
        load_splits(recipe)
    Path("b.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.jsonl"):
        load_splits(recipe)
