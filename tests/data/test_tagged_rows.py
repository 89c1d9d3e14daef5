"""Tagged words from lists that are text, from texts with entities, and from CoNLL files."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.data.splits import load_splits
from hf_recipes.data.tagged_rows import read_list, tag_words
from hf_recipes.errors import RecipeError
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import prepare, refusal, wordpiece

Make = Callable[..., Recipe]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["EU", "it\'s"]', ["EU", "it's"]),
        ("['EU', \"it's\"]", ["EU", "it's"]),
        ("['EU' 'rejects'\n 'a, b']", ["EU", "rejects", "a, b"]),  # pandas writes a NumPy array so
        ("[0 3 12]", [0, 3, 12]),
        ("[0, 3]", [0, 3]),
        ("[]", []),
        ("EU rejects", None),
        ("[EU, rejects", None),
    ],
)
def test_a_list_is_read_as_json_python_and_numpy_write_it(text: str, expected: list | None) -> None:
    assert read_list(text) == expected


def test_lists_of_a_csv_file_are_read_as_lists(make: Make) -> None:
    rows = [{"tokens": "['anna' 'to']", "tags": "['B-PER' 'O']"}, {"tokens": '["to"]', "tags": '["O"]'}]
    found = prepare(make("token-classification"), rows, wordpiece(["anna", "to"]))
    assert found.train["labels"] == [[-100, 1, 0, -100], [-100, 0, -100]]
    bad = [*rows, {"tokens": "[anna, to", "tags": "['O']"}]
    assert refusal(make("token-classification"), bad, wordpiece(["anna"])) == (
        "recipe.yaml:3: row 2 of the train split has a text that is no list in the column 'tokens': '[anna, to'; "
        'write lists as JSON: ["EU", "rejects"]'
    )


def test_a_text_with_entities_becomes_words_with_tags() -> None:
    text = "Anna-Lena went to New York (USA)."
    words, tags = tag_words(text, iter([(18, 26, "LOC"), (0, 9, "PER"), (28, 31, "LOC")]))
    assert words == ["Anna", "-", "Lena", "went", "to", "New", "York", "(", "USA", ")", "."]
    assert tags == ["B-PER", "I-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O", "B-LOC", "O", "O"]
    assert tag_words("Berliner", iter([(0, 6, "LOC")])) == (["Berlin", "er"], ["B-LOC", "O"])
    assert tag_words("ab", iter([(0, 1, "X"), (1, 2, "X")])) == (["a", "b"], ["B-X", "B-X"])
    assert tag_words("東京に", iter([(0, 2, "LOC")])) == (["東", "京", "に"], ["B-LOC", "I-LOC", "O"])


@pytest.mark.parametrize(
    "entities",
    [
        [{"start": 0, "end": 4, "label": "PER"}],
        [{"start_offset": 0, "end_offset": 4, "type": "PER"}],
        '[[0, 4, "PER"]]',
    ],
)
def test_entities_of_several_tools_are_understood(make: Make, entities: Any) -> None:
    rows = [{"text": "anna to", "entities": entities}]
    found = prepare(make("token-classification"), rows, wordpiece(["anna", "to"]))
    assert found.label_names == ("O", "B-PER")
    assert found.train["labels"] == [[-100, 1, 0, -100]]
    assert found.notes[0] == (
        "text, entities: read as words with IOB2 tags; an entity ends a word where it begins or ends inside one"
    )


@pytest.mark.parametrize(
    ("entities", "expected"),
    [
        (
            [{"start": 0, "end": 9, "label": "X"}],
            "row 0 of the train split has an entity X from 0 to 9, and its text 7 characters; count characters from 0; "
            "the end is not included",
        ),
        (
            [{"start": 0, "end": 4, "label": "X"}, {"start": 2, "end": 7, "label": "Y"}],
            "row 0 of the train split has entities that overlap: X 'anna' (0 to 4) and Y 'na to' (2 to 7); keep one of "
            "them: a word has one tag",
        ),
        (
            [{"start": 4, "end": 5, "label": "X"}],
            "row 0 of the train split has an entity X ' ' (4 to 5) that holds no word; remove it",
        ),
        (
            [{"start": 0, "end": 4}],
            "row 0 of the train split has the entity {'start': 0, 'end': 4}; each needs start, end (after its last "
            "character) and label",
        ),
    ],
)
def test_entities_that_cannot_be_tags_are_refused_with_their_row(make: Make, entities: list, expected: str) -> None:
    rows = [{"text": "anna to", "entities": entities}]
    assert refusal(make("token-classification"), rows, wordpiece(["anna"])) == f"recipe.yaml:3: {expected}"


# words that the tokenizer drops ---------------------------------------------------------------------------------------


def test_words_of_which_the_tokenizer_makes_nothing_are_not_called_cut_off(make: Make) -> None:
    rows = [{"tokens": [" ", "anna", "\n", "to", "  "], "tags": ["O", "B-X", "O", "O", "O"]}]
    found = prepare(make("token-classification"), rows, wordpiece(["anna", "to"]))
    assert (found.stats["train"].blank_words, found.stats["train"].lost_words) == (3, 0)
    assert found.train["labels"][0] == [-100, 1, 0, -100]
    assert "train: 3 words have no sub-token, such as blanks, and are not scored" in found.notes
    blank = [{"tokens": [" "], "tags": ["O"]}, {"tokens": [" "], "tags": ["B-X"]}]
    assert refusal(make("token-classification"), blank, wordpiece(["anna"])) == (
        "recipe.yaml:3: no word in the train split has a sub-token: the tokenizer drops them all, as it drops "
        "blanks; is it the tokenizer of this language?"
    )


# CoNLL files ----------------------------------------------------------------------------------------------------------

CONLL = (
    "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n# # O O\nrejects VBZ B-VP O\n\n\n# a comment\nPeter NNP B-NP B-PER\n"
)


def conll(text: bytes | str, folder: Path, more: str = "", name: str = "a.conll") -> Recipe:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    given = {"path": "text", "format": "conll", "data_files": name, "split": {"train": "train", "validation": "train"}}
    sections = {"task": "token-classification", "dataset": {**given, **eval(f"dict({more})")}}
    return Recipe(path="recipe.yaml", sections=sections, locations={})


def test_a_conll_file_is_read_as_sentences_of_words_and_tags(folder: Path) -> None:
    rows = load_splits(conll(CONLL, folder)).train
    assert rows["tokens"] == [["EU", "#", "rejects"], ["Peter"]]
    assert rows["tags"] == [["B-ORG", "O", "O"], ["B-PER"]]
    chunks = load_splits(conll(CONLL, folder, "column_names=['tokens', 'pos', 'tags', 'ner']")).train
    assert chunks["tags"] == [["B-NP", "O", "B-VP"], ["B-NP"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# O\nbob B-PER\n\n# O\n", [["#", "bob"], ["#"]]),
        ("#tag SYM\nbob NN\n: SYM\n", [["#tag", "bob", ":"]]),
        ("# about Bob\nbob B-PER\n", [["bob"]]),
        ("# Bob\nbob B-PER\n", [["bob"]]),
        ("-DOCSTART- O\n\n# O\nbob B-PER\n", [["#", "bob"]]),
    ],
)
def test_a_number_sign_with_a_tag_is_a_word_on_the_first_line_too(folder: Path, text: str, words: list) -> None:
    assert list(load_splits(conll(text, folder)).train["tokens"]) == words


def test_the_encoding_of_a_conll_file_is_guessed_as_of_other_files(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"name its encoding, e\.g\. encoding: utf-16$"):
        load_splits(conll("bob B-PER\n".encode("utf-16"), folder))


@pytest.mark.parametrize(
    "text",
    [
        "New York\tB-LOC\r\nis\tO\r\n\r\nhere\tO",
        "\ufeffNew York\tB-LOC\nis\tO\n \nhere\tO\n\n\n",
    ],
)
def test_tabs_windows_lines_a_bom_and_a_missing_last_blank_line_are_read(folder: Path, text: str) -> None:
    rows = load_splits(conll(text, folder)).train
    assert (rows["tokens"], rows["tags"]) == ([["New York", "is"], ["here"]], [["B-LOC", "O"], ["O"]])
    zipped = load_splits(conll(gzip.compress(text.encode()), folder, name="a.conll.gz")).train
    assert zipped["tokens"] == rows["tokens"]


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        ("EU O\nrejects\n", "", "a.conll:2 has one column only ('rejects'): a word needs its tag; fix that line, or "
         "name the delimiter"),
        ("EU O\na b O\n", "", "a.conll:2 has 3 columns, and the lines before it 2; fix that line, or name the "
         "delimiter"),
        ("\n\n", "", "there are no sentences in a.conll; add some rows"),
        ("EU O\n", "column_names=['a']", "dataset.column_names has 1 names, and a.conll 2 columns; name every column, "
         "in their order"),
        ("caf\xe9 O\n".encode("latin-1"), "", "a.conll is not utf-8 text; convert it, or name its encoding, e.g. "
         "encoding: latin-1"),
    ],
)  # fmt: skip
def test_a_conll_file_that_cannot_be_read_is_named_with_its_line(
    folder: Path, text: Any, more: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        load_splits(conll(text, folder, more))
    assert str(raised.value) == f"recipe.yaml: {expected}"


def test_lines_of_text_without_a_format_are_refused_by_naming_it(make: Make) -> None:
    recipe = make("token-classification").with_values({"dataset.path": "text"}, "recipe.yaml:3")
    assert refusal(recipe, [{"text": "EU B-ORG"}], wordpiece(["a"])) == (
        "recipe.yaml:3: each row is one line of text, and token-classification needs words with tags; for CoNLL files "
        "write format: conll"
    )
