"""YAML that is long, deep or odd: read as YAML 1.2 says, or refused with its line before it costs seconds."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hf_recipes.recipe import bounded_yaml
from hf_recipes.recipe.yaml_reader import read_text

MEGABYTE = 1_000_000
LIMIT = "a recipe is a page of settings: write the values out, or put the data into a data file"


def read(text: str):
    return read_text(text, lambda line: f"a.yaml:{line}", "a.yaml")


def errors(text: str) -> list[str]:
    return [str(error) for error in read(text).errors]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [" + "1," * (MEGABYTE // 2) + "]", "a.yaml:1: stands for more than 5000 values"),
        ("".join(f"key{n}: 1\n" for n in range(80_000)), "a.yaml:2500: stands for more than 5000 values"),
        ("? a\n" * (MEGABYTE // 4), "a.yaml:2501: stands for more than 5000 values"),
        ("".join(f"k{n}: &a{n} 1\n" for n in range(60_000)), "a.yaml:2500: stands for more than 5000 values"),
        ("a: &a 1\nb: [" + "*a," * 300_000 + "]", "a.yaml:2: stands for more than 5000 values"),
        ("[" * MEGABYTE, "a.yaml:1: is nested more than 50 deep"),
        ("- " * (MEGABYTE // 2), "a.yaml:1: is nested more than 50 deep"),
        (
            "".join(f"a{n}: &a{n} {'[' * 40}{f'*a{n - 1}' if n else 1}{']' * 40}\n" for n in range(9)),
            "a.yaml:1: is nested more than 50 deep, with its aliases",
        ),
        ("task: " + "x y " * (MEGABYTE // 4), "a.yaml:1: has too many words and lines"),
        ("a: 1\nb: |\n" + "\n" * MEGABYTE, "has too many words and lines"),
        ("a: !" + "x" * MEGABYTE + " 1", "a.yaml:1: has a tag that is too long"),
        ("%FOO bar\n" * 100_000 + "---\na: 1\n", "has too many words and lines"),
    ],
    ids=["list", "keys", "marks", "anchors", "aliases", "deep", "dashes", "chain", "words", "blank", "tag", "percent"],
)
def test_a_megabyte_that_is_no_recipe_is_refused_with_its_line_before_all_of_it_is_composed(text, message):
    [error] = errors(text)
    assert message in error and error.startswith("a.yaml:") and error.endswith(LIMIT)


@pytest.mark.parametrize("filler", ["#\n", "\n", "   # a comment\n"])
def test_a_megabyte_of_comments_and_blank_lines_is_read(filler):
    assert read("a: [1]\n" + filler * (900_000 // len(filler)) + "b: 2\n").values == {"a": [1], "b": 2}


def test_a_megabyte_in_one_value_is_read():
    assert read("a: " + "x" * 900_000).values == {"a": "x" * 900_000}
    assert read('a: "' + "x" * 900_000 + '"').values == {"a": "x" * 900_000}


def test_a_recipe_says_which_yaml_it_is_and_is_read_as_yaml_1_2():
    for version in ("1.1", "1.2", "1.3"):
        assert read(f"%YAML {version}\n---\na: yes\nb: 010\n").values == {"a": "yes", "b": 10}
    for version in ("9.9", "2.0", "1" * 5000 + ".0"):
        assert errors(f"# first\n%YAML {version}\n---\na: 1\n") == [
            "a.yaml:2: is not YAML: this %YAML directive is of another YAML: recipes are YAML 1.2; "
            "check the indentation, the quotes and the brackets here and on the line above"
        ]


@pytest.mark.parametrize("digits", ["0x" + "f" * 6000, "0o" + "7" * 6000, "0b" + "1" * 20_000, "9" * 5000])
def test_a_number_of_thousands_of_digits_is_refused_with_its_line(digits):
    document = read(f"a: 1\nb: {digits}\n")
    assert document.values == {"a": 1} and "b" in document.broken
    [error] = map(str, document.errors)
    assert error.startswith("a.yaml:2: ") and "is a number of too many digits" in error


def test_numbers_in_other_bases_are_read():
    assert read("{a: 0x1F, b: 0o17, c: 0b101, d: 1_000, e: -0x10}").values == {
        "a": 31, "b": 15, "c": 5, "d": 1000, "e": -16
    }  # fmt: skip


def test_an_emoji_as_json_writes_it_is_read():
    assert read('{"a": "\\ud83d\\ude00 and \\u00e9", "\\ud83d\\ude00": 1}').values == {"a": "😀 and é", "😀": 1}
    assert "a.yaml:1: a string holds half of a surrogate pair" in errors('a: "\\ude00\\ud83d"')[0]


@pytest.mark.parametrize("escape", ["\\U00110000", "\\UFFFFFFFF"])
def test_an_escape_that_is_no_character_is_refused_with_its_line(escape):
    [error] = errors(f'a: 1\nb: "{escape}"\n')
    assert error.startswith("a.yaml:2: is not YAML: an escape stands for no character of Unicode")


def test_a_nul_character_is_refused_wherever_a_recipe_holds_one():
    assert errors('a: 1\nb: "x\\0y"\n') == ["a.yaml:2: a string holds a NUL character; delete it"]


def test_every_recipe_is_composed_as_ruamel_composes_it():
    def shown(node):
        value = node.value if isinstance(node.value, str) else [
            tuple(map(shown, item)) if isinstance(item, tuple) else shown(item) for item in node.value
        ]  # fmt: skip
        marks = [(mark.line, mark.column, mark.index) for mark in (node.start_mark, node.end_mark)]
        return str(node.tag), marks, value

    paths = glob.glob("recipes/*.yaml") + glob.glob("docs/examples/*.yaml")
    assert len(paths) > 5
    for path in paths:
        for newline in ("\n", "\r\n", "\r"):
            text = Path(path).read_text(encoding="utf-8").replace("\n", newline)
            assert shown(bounded_yaml.compose(text)) == shown(YAML(typ="safe", pure=True).compose(text)), path
