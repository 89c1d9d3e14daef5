"""text-classification and token-classification: labels become numbers, tags stand on first sub-tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, List

from hf_recipes.data.labels import label_id
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import bpe, prepare, refusal, wordpiece

Make = Callable[..., Recipe]


def labelled(*labels: Any) -> list[dict]:
    return [{"text": "the sea", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 2, 10], ("2", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
    ],
)
def test_labels_of_every_kind_get_numbers_in_order(make: Make, labels: list, names: tuple, ids: list) -> None:
    found = prepare(make("text-classification"), labelled(*labels), bpe())
    assert (found.label_names, list(found.train["labels"])) == (names, ids)
    assert found.config == {
        "num_labels": 2,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


SEVERAL = {"problem_type": "multi_label_classification"}
SWAPPED = labelled([0, 1], [1, 0], [0, 1])


@pytest.mark.parametrize(
    ("rows", "model", "targets"),
    [
        (SWAPPED, SEVERAL, [[0, 1], [1, 0], [0, 1]]),
        (SWAPPED, {**SEVERAL, "id2label": {0: "spam", 1: "ham"}}, [[0, 1], [1, 0], [0, 1]]),
        (SWAPPED, {**SEVERAL, "id2label": {0: "a", 1: "b", 2: "c"}}, [[1, 1, 0]] * 3),
        (labelled([0, 0, 1], [1, 1, 0]), SEVERAL, [[0, 0, 1], [1, 1, 0]]),
        (labelled([0], [1], [0]), SEVERAL, [[1, 0], [0, 1], [1, 0]]),
        (labelled([0], [1], [0, 1]), SEVERAL, [[1, 0], [0, 1], [1, 1]]),
    ],
)
def test_one_number_for_each_label_is_told_from_a_list_of_labels(
    make: Make, rows: list, model: dict, targets: list
) -> None:
    recipe = make("text-classification")
    recipe = replace(recipe, sections={**recipe.sections, "model": model})
    found = prepare(recipe, rows, wordpiece(["text"]))
    assert [list(map(int, one)) for one in found.train["labels"]] == targets
    told = any("is read as" in note for note in found.notes)
    assert told == (targets == [one["label"] for one in rows])


def test_a_class_label_keeps_its_names_and_numbers_also_beside_plain_ones(make: Make) -> None:
    train = Dataset.from_list(labelled(0, 1, 1)).cast_column("label", ClassLabel(names=["no", "yes"]))
    turned = Dataset.from_list(labelled(0, 1)).cast_column("label", ClassLabel(names=["yes", "no"]))
    for other, expected in ((turned, [1, 0]), (Dataset.from_list(labelled("no", "yes")), [0, 1])):
        found = prepare(make("text-classification"), train, bpe(), held_out=other)
        assert (found.label_names, list(found.evals["eval"]["labels"])) == (("no", "yes"), expected)


def test_texts_longer_than_max_length_are_counted(make: Make) -> None:
    rows = [{"text": "the sea " * 30, "label": 0}, {"text": "the sea", "label": 1}]
    found = prepare(make("text-classification"), rows, bpe(), length=8)
    assert found.notes == (
        "train: 1 of 2 texts are cut at 8 tokens",
        "eval: 1 of 2 texts are cut at 8 tokens",
    )
    assert found.stats["train"].longest == 8


@pytest.mark.parametrize(
    ("rows", "held_out", "expected"),
    [
        (
            labelled("a", "b"),
            labelled("a", "c"),
            "row 1 of the eval split has the label 'c', which is none of the model's; the labels are a, b",
        ),
        (
            labelled("a", "b", None),
            None,
            "row 2 of the train split has no label (None); remove such rows, or leave the split out with "
            "split: {train: ..., validation: ...}",
        ),
        (
            labelled(0, 1),
            labelled(-1, -1),
            "row 0 of the eval split has no label (-1); remove such rows, or leave the split out with "
            "split: {train: ..., validation: ...}",
        ),
        (labelled("a", "a"), None, "the train split has one label only ('a'); a classifier needs at least two"),
        (labelled(None, None), None, "the train split has no label at all; a classifier needs at least two"),
        (
            labelled(["a"], ["b"]),
            None,
            "the column 'label' holds lists: several labels a row; write model.problem_type: "
            "multi_label_classification",
        ),
        (
            labelled(0.5, 1.0),
            None,
            "the column 'label' holds floats, such as 0.5: scores, not classes; write model.problem_type: regression",
        ),
        (
            labelled(0.0, 1.0),
            None,
            "the column 'label' holds floats, such as 0.0: scores, not classes; write model.problem_type: "
            "regression, or give the classes as whole numbers or text",
        ),
        (
            labelled(0.0, 1.0, None),
            None,
            "row 2 of the train split has no label (None); remove such rows, or leave the split out with "
            "split: {train: ..., validation: ...}",
        ),
        (
            [*labelled("a", "b"), {"text": " ", "label": "a"}],
            None,
            "row 2 of the train split has no text (' '); remove such rows",
        ),
        (
            [*labelled("a", "b"), {"text": None, "label": "a"}],
            None,
            "row 2 of the train split has no text (None); remove such rows",
        ),
    ],
)
def test_text_classification_refuses_rows_without_text_or_label(
    make: Make, rows: list, held_out: Any, expected: str
) -> None:
    assert refusal(make("text-classification"), rows, bpe(), held_out=held_out) == f"recipe.yaml:3: {expected}"


def test_a_text_of_no_tokens_is_refused(make: Make) -> None:
    from tokenizers import normalizers

    tokenizer = bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    rows = [*labelled("a", "b"), {"text": "\u200b", "label": "a"}]
    assert refusal(make("text-classification"), rows, tokenizer) == (
        "recipe.yaml:3: row 2 of the train split gives no tokens ('\\u200b'); remove it"
    )


def test_a_text_of_exactly_max_length_tokens_is_not_cut(make: Make) -> None:
    tokenizer = bpe()
    length = len(tokenizer("the sea")["input_ids"])
    found = prepare(make("text-classification"), labelled("a", "b"), tokenizer, length=length)
    assert found.stats["train"].cut_rows == 0
    assert not any("cut" in note for note in found.notes)


def test_a_column_of_too_many_values_is_refused_as_labels(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_recipes.data.labels.MOST_LABELS", 3)
    assert prepare(make("text-classification"), labelled("a", "b", "c"), bpe()).label_names == ("a", "b", "c")
    assert refusal(make("text-classification"), labelled("a", "b", "c", "d"), bpe()) == (
        "recipe.yaml:3: the column 'label' has 4 distinct values: these are not labels; "
        "name another with dataset.label_column"
    )


@pytest.mark.parametrize(
    ("count", "shown"), [(12, "a, b, c, d, e, f, g, h, i, j, k, l"), (13, "a, b, c, d, e, f, g, h, i, j, k, l, ...")]
)
def test_at_most_twelve_labels_are_listed(make: Make, count: int, shown: str) -> None:
    train, other = labelled(*"abcdefghijklmnop"[:count]), labelled("z")
    assert refusal(make("text-classification"), train, bpe(), held_out=other).endswith(f"; the labels are {shown}")


def test_a_number_outside_a_class_labels_names_is_no_label() -> None:
    names = ["no", "yes"]
    index = {name: i for i, name in enumerate(names)}
    assert [label_id(value, index, names) for value in (-1, 0, 1, 2)] == [None, 0, 1, None]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"text": "the sea", "lable": "a"},
            "the data has no column 'label' (it has text, lable); did you mean 'lable'?",
        ),
        ({"txt": "the sea", "label": "a"}, "the data has no column 'text' (it has txt, label); did you mean 'txt'?"),
        ({"text": 1, "label": "a"}, "the column 'text' holds int64, not text; name another with dataset.text_column"),
    ],
)
def test_an_evaluation_split_with_other_columns_is_refused(make: Make, row: dict, expected: str) -> None:
    message = refusal(make("text-classification"), labelled("a", "b"), bpe(), held_out=[row])
    assert message == f"recipe.yaml:3: {expected}"


def test_another_learning_rate_does_not_tokenize_the_rows_again(make: Make, folder: Path) -> None:
    Dataset.from_list(labelled("a", "b")).save_to_disk(str(folder / "rows"))
    fingerprints = set()
    for rate in (1e-3, 1e-4):
        recipe = make("text-classification", arguments=f"learning_rate: {rate}")
        found = prepare(recipe, Dataset.load_from_disk(str(folder / "rows")), bpe())
        fingerprints.add(found.train._fingerprint)
    assert len(fingerprints) == 1


WORDS = ["anna", "went", "to", "bath", "xyz", "."]
TAGS = ["B-PER", "O", "O", "B-LOC", "O", "O"]


def test_a_words_tag_stands_on_its_first_sub_token_only(make: Make) -> None:
    tokenizer = wordpiece(["anna", "went", "to", "."])
    found = prepare(make("token-classification"), [{"tokens": WORDS, "tags": TAGS}], tokenizer)
    names = found.label_names
    assert names == ("O", "B-LOC", "B-PER")
    tokens = tokenizer.convert_ids_to_tokens(found.train["input_ids"][0])
    assert tokens == [
        *("[CLS]", "anna", "went", "to", "b", "##a", "##t", "##h", "x", "##y", "##z"),
        *("[UNK]" if t == "?" else t for t in (".", "[SEP]")),
    ]
    shown = [names[i] if i != -100 else "-" for i in found.train["labels"][0]]
    assert shown == ["-", "B-PER", "O", "O", "B-LOC", "-", "-", "-", "O", "-", "-", "O", "-"]


def test_words_beyond_max_length_are_counted_and_not_scored(make: Make) -> None:
    tokenizer = wordpiece(["anna", "went", "to", "."])
    found = prepare(make("token-classification"), [{"tokens": WORDS, "tags": TAGS}], tokenizer, length=6)
    assert "train: 2 words are beyond 6 sub-tokens, and are not scored" in found.notes
    assert found.stats["train"].label_tokens == 4


def test_tags_may_be_numbers_of_a_class_label(make: Make) -> None:
    rows = Dataset.from_list([{"tokens": ["anna", "to"], "tags": [1, 0]}])
    rows = rows.cast_column("tags", List(ClassLabel(names=["O", "B-PER"])))
    found = prepare(make("token-classification"), rows, wordpiece(["anna", "to"]))
    assert (found.label_names, found.train["labels"][0]) == (("O", "B-PER"), [-100, 1, 0, -100])


def test_plain_numbers_as_tags_are_sorted_by_size(make: Make) -> None:
    found = prepare(
        make("token-classification"), [{"tokens": ["a", "b", "c"], "tags": [10, 2, 10]}], wordpiece(["a", "b", "c"])
    )
    assert (found.label_names, found.train["labels"][0]) == (("2", "10"), [-100, 1, 0, 1, -100])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "row 1 of the train split has 2 tokens but 1 tags; give every token one tag",
        ),
        ({"tokens": [], "tags": []}, "row 1 of the train split has no tokens; remove such rows"),
        ({"tokens": ["a"], "tags": None}, "row 1 of the train split has 1 tokens but 0 tags; give every token one tag"),
        (
            {"tokens": ["a", None], "tags": ["O", "O"]},
            "row 1 of the train split has a token that is not text; write every token as text",
        ),
        (
            {"tokens": ["a"], "tags": [None]},
            "row 1 of the train split has the tag None, which is none of the model's; the tags are O, B-X",
        ),
    ],
)
def test_token_classification_refuses_rows_that_do_not_fit(make: Make, row: dict, expected: str) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, row]
    assert refusal(make("token-classification"), rows, wordpiece(["a", "b"])) == f"recipe.yaml:3: {expected}"


def test_token_classification_refuses_tags_outside_the_set_and_text_that_is_not_split(make: Make) -> None:
    recipe, tokenizer = make("token-classification"), wordpiece(["a", "b"])
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    assert refusal(recipe, rows, tokenizer, held_out=[{"tokens": ["a"], "tags": ["B-Y"]}]) == (
        "recipe.yaml:3: row 0 of the eval split has the tag 'B-Y', which is none of the model's; the tags are O, B-X"
    )
    assert refusal(recipe, [{"tokens": "a b", "tags": "O B-X"}], tokenizer) == (
        "recipe.yaml:3: the column 'tokens' holds string, not lists: each row needs a list of words and a list of "
        "tags; split the text into words first"
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"tokens": ["a"], "tag": ["O"]}, "the data has no column 'tags' (it has tokens, tag); did you mean 'tag'?"),
        (
            {"token": ["a"], "tags": ["O"]},
            "the data has no column 'tokens' (it has token, tags); did you mean 'token'?",
        ),
        (
            {"tokens": ["a"], "tags": "O"},
            "the column 'tags' holds string, not lists: each row needs a list of words and a list of tags; "
            "split the text into words first",
        ),
    ],
)
def test_an_evaluation_split_without_words_and_tags_is_refused(make: Make, row: dict, expected: str) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    message = refusal(make("token-classification"), rows, wordpiece(["a", "b"]), held_out=[row])
    assert message == f"recipe.yaml:3: {expected}"


def test_one_tag_for_all_words_of_a_row_is_refused(make: Make) -> None:
    assert refusal(make("token-classification"), [{"tokens": ["a"], "tags": 3}], wordpiece(["a"])) == (
        "recipe.yaml:3: the column 'tags' holds int64, not lists: each row needs a list of words and a list of tags; "
        "split the text into words first"
    )


@pytest.mark.parametrize(
    ("task", "what"),
    [
        ("token-classification", "token-classification needs a fast tokenizer (word_ids)"),
        ("chat", "chat needs a fast tokenizer (for the position of each token in the text)"),
        ("causal-lm", "causal-lm needs a fast tokenizer (for the position of each token in the text)"),
    ],
)
def test_a_slow_tokenizer_is_refused(make: Make, task: str, what: str) -> None:
    slow = SimpleNamespace(is_fast=False)
    recipe = make(task, section="SFTConfig" if task == "chat" else "TrainingArguments")
    rows = [{"tokens": ["a"], "tags": ["O"], "text": "a", "prompt": "a", "completion": "b"}]
    message = refusal(recipe, rows, slow)
    assert message.partition(": ")[2] == f"{what}; use a model with a tokenizer.json"


def test_rows_of_which_no_word_is_left_are_refused(make: Make) -> None:
    recipe = make("token-classification", "max_length: 2")
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    assert refusal(recipe, rows, wordpiece(["a", "b"]), length=2) == (
        "recipe.yaml:3: the train split has no word with a sub-token within 2 tokens: all labels are masked; "
        "raise dataset.max_length"
    )


@pytest.mark.assets
def test_minilms_tokenizer_aligns_every_word(make: Make, root: Path) -> None:
    from transformers import AutoTokenizer

    model = root / "runs/assets/minilm"
    if not model.is_dir():
        pytest.skip("python recipes/data/prepare.py minilm unpacks it")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Dataset.from_json(str(root / "recipes/data/names/validation.jsonl")).select(range(200))
    found = prepare(make("token-classification"), rows, tokenizer, length=512)
    for row, ids, labels in zip(rows, found.train["input_ids"], found.train["labels"], strict=True):
        tags = [found.label_names[i] for i in labels if i != -100]
        assert tags == row["tags"]
        first = [i for i, label in zip(ids, labels, strict=True) if label != -100]
        starts = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in row["tokens"]]
        assert first == starts
