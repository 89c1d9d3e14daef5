"""Files that are not recipes, and YAML that is refused."""

from __future__ import annotations

import pytest

from tests.support.recipe_files import VALID, changed, errors_of


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.yaml: is empty; a recipe begins with 'task:'"),
        (b"# nothing\n", "a.yaml: is empty; a recipe begins with 'task:'"),
        (b"- a\n", "a.yaml: is a list, not a recipe; a recipe is a mapping that begins with 'task:'"),
        (b"hello\n", "a.yaml: is a string, not a recipe; a recipe is a mapping that begins with 'task:'"),
        (b"PK\x03\x04\x00\x00", "a.yaml: is a binary file, not a recipe; give a YAML file"),
        (b"task: chat\nx: caf\xe9\n", "a.yaml:2: is not UTF-8 text (byte 0xe9); save the file as UTF-8"),
        (b"task: chat\nx: \x07\n", "a.yaml:2: holds a control character (U+0007); delete it"),
        (
            b"task: a\n---\ntask: b\n",
            "a.yaml:2: holds a second document ('---'); one recipe is one document: give each its own file",
        ),
        (
            b"task: chat\nmodel:\n\tx: 1\n",
            "a.yaml:3: is not YAML: found character '\\t' that cannot start any token; "
            "check the indentation, the quotes and the brackets here and on the line above",
        ),
        (
            b"a: 1\n" * 2_000_000,
            "a.yaml: has 10.0 MB, and a recipe at most 1 MB; is this a data file? name it under dataset.data_files",
        ),
    ],
    ids=["empty", "comment", "list", "word", "binary", "latin1", "control", "two", "tab", "10MB"],
)
def test_a_file_that_is_no_recipe_is_one_message(here, data, message):
    assert errors_of(here(data)) == [message]


def test_a_missing_file_is_named_with_the_nearest_one(here):
    here(VALID, "recipes/rtx3070.yaml")
    assert errors_of("recipes/rtx3070.yml") == [
        "recipes/rtx3070.yml: no such file; did you mean 'recipes/rtx3070.yaml'?"
    ]
    assert errors_of("recipes/rtx370.yaml") == [
        "recipes/rtx370.yaml: no such file; did you mean 'recipes/rtx3070.yaml'?"
    ]
    assert errors_of("quickstrat") == [
        "quickstrat: no such file; did you mean 'quickstart', which came with the package? "
        "`hf-recipes recipes` lists these"
    ]
    assert errors_of("recipes/zzz") == ["recipes/zzz: no such file; see what is in 'recipes'"]
    assert errors_of("nowhere/a.yaml") == ["nowhere/a.yaml: no such file; there is no folder 'nowhere' either"]
    assert errors_of("recipes") == [
        "recipes: is a directory, not a recipe; give one file of it, such as recipes/rtx3070.yaml"
    ]


LIMIT = "a recipe is a page of settings: write the values out, or put the data into a data file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: " + "[" * 5000 + "]" * 5000, "is nested more than 50 deep"),
        ("".join(" " * n + "a:\n" for n in range(60)), "is nested more than 50 deep"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
            ),
            "stands for more than 5000 values",
        ),
        ("task: &t\n  - *t\n", "holds an alias that stands for itself"),
    ],
    ids=["brackets", "mappings", "aliases", "circle"],
)
def test_a_bomb_is_refused_quickly(here, text, message):
    [error] = errors_of(here(text))
    assert error.startswith("a.yaml:") and error.endswith(f": {message}; {LIMIT}")


def test_yaml_tags_are_refused_and_nothing_is_run(here):
    path = here(changed(line10="  output_dir: !!python/object/apply:os.mkdir [owned]", line14="metrics: !mine [f1]"))
    assert errors_of(path) == [
        "a.yaml:10: the YAML tag '!!python/object/apply:os.mkdir' is not supported; write a plain value without a tag",
        "a.yaml:14: the YAML tag '!mine' is not supported; write a plain value without a tag",
    ]
    assert not (here.__closure__[0].cell_contents / "owned").exists()


def test_an_error_writes_nothing(here, tmp_path):
    here(changed(line11="  sed: 1"))
    errors_of("a.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["a.yaml"]


def test_without_a_file_the_arguments_are_not_checked_against_it(here):
    assert errors_of("gone.yaml", "TrainingArguments.sed=1") == ["gone.yaml: no such file; see what is in '.'"]
    assert errors_of("gone.yaml", "seed") == [
        "gone.yaml: no such file; see what is in '.'",
        "argument 'seed': a setting is written Section.key=value; such as TrainingArguments.seed=1",
    ]
