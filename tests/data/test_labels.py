"""Which number each label has: the recipe's names, the checkpoint's head, the ClassLabel, the sorted labels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, List

from hf_recipes.data import text_classification
from hf_recipes.data.labels import choose_labels, labels_of_data
from hf_recipes.data.splits import load_splits
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import SHAPE, bpe, prepare, wordpiece, write_rows

WORDS = ("sea", "house", "light", "water", "long", "good", "new", "old", "day", "time", "man", "small")


def recipe_of(model: dict[str, Any], task: str = "text-classification", **training: Any) -> Recipe:
    named = {"pretrained_model_name_or_path": "checkpoint", **model}
    sections = {"task": task, "model": named, "dataset": {"path": "json"}, "TrainingArguments": training}
    return Recipe(path="recipe.yaml", sections=sections, locations={})


def checkpoint(*names: str, head: str = "BertForSequenceClassification") -> Any:
    return SimpleNamespace(architectures=[head], id2label=dict(enumerate(names)))


def chosen(recipe: Recipe, values: list, config: Any = None, class_names: list[str] | None = None) -> tuple:
    found = choose_labels(recipe, labels_of_data(values, class_names), config, "label_column", "label")
    texts = class_names or list(map(str, dict.fromkeys(values)))
    return found.names, [found.index[text] for text in texts], found.order


@pytest.mark.parametrize(
    ("model", "values", "head", "class_names", "expected"),
    [
        # the recipe's own, also for numbers
        ({"id2label": {0: "pos", 1: "neg"}}, ["neg", "pos"], None, None, (("pos", "neg"), [1, 0], "the recipe's")),
        ({"id2label": {"0": "no", "1": "yes"}}, [0, 1], None, None, (("no", "yes"), [0, 1], "the recipe's")),
        ({"label2id": {"pos": 0, "neg": 1}}, ["neg", "pos"], None, None, (("pos", "neg"), [1, 0], "the recipe's")),
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, ["a", "c"], None, None, (("a", "b", "c"), [0, 2], "the recipe's")),
        ({"id2label": {0: "no", 1: "yes"}}, [False, True], None, None, (("no", "yes"), [0, 1], "the recipe's")),
        # the checkpoint's head
        ({}, ["neg", "pos"], ("pos", "neg"), None, (("pos", "neg"), [1, 0], "the checkpoint's head's")),
        ({}, ["neg", "pos"], ("POS", "NEG"), None, (("POS", "NEG"), [1, 0], "the checkpoint's head's")),
        ({}, ["no", "yes"], ("yes", "?", "no"), None, (("yes", "?", "no"), [2, 0], "the checkpoint's head's")),
        ({}, [0, 1], ("pos", "neg"), None, (("pos", "neg"), [0, 1], "the checkpoint's head's")),
        ({}, ["0", "1"], ("LABEL_0", "LABEL_1"), None, (("LABEL_0", "LABEL_1"), [0, 1], "the checkpoint's head's")),
        ({}, [], ("LABEL_0", "LABEL_1"), ["pos", "neg"], (("pos", "neg"), [0, 1], "the checkpoint's head's")),
        ({}, [], ("neg", "pos"), ["pos", "neg"], (("neg", "pos"), [1, 0], "the checkpoint's head's")),
        # else the ClassLabel, else sorted
        ({}, [], None, ["pos", "neg"], (("pos", "neg"), [0, 1], "the data's ClassLabel's")),
        ({}, ["pos", "neg"], None, None, (("neg", "pos"), [1, 0], "sorted")),
        ({}, ["x", "y"], ("a", "b", "c"), None, (("x", "y"), [0, 1], "sorted")),
        ({"ignore_mismatched_sizes": True}, ["x", "y"], ("a", "b"), None, (("x", "y"), [0, 1], "sorted")),
    ],
)
def test_labels_are_numbered_by_the_recipe_then_the_head_then_the_class_label_then_sorted(
    model: dict, values: list, head: tuple | None, class_names: list | None, expected: tuple
) -> None:
    assert chosen(recipe_of(model), values, checkpoint(*head) if head else None, class_names) == expected


def test_a_checkpoint_without_a_head_of_this_task_has_no_say(make: Callable[..., Recipe]) -> None:
    for config in (checkpoint("pos", "neg", head="BertModel"), checkpoint("pos", "neg", head="BertForMaskedLM")):
        assert chosen(recipe_of({}), ["neg", "pos"], config)[2] == "sorted"
    assert chosen(make("text-classification"), ["neg", "pos"], checkpoint("pos", "neg"))[2] == "sorted"  # from scratch


OTHER_HEAD = (
    "recipe.yaml: the checkpoint's head has the labels cat, dog, and the data neg, pos; name the head's outputs as the "
    "data does with model.id2label: {0: ..., 1: ...}, or write model.ignore_mismatched_sizes: true to train the "
    "head for other labels"
)


@pytest.mark.parametrize(
    ("model", "values", "head", "class_names", "expected"),
    [
        (
            {}, ["neg", "pos"], ("cat", "dog"), None,
            OTHER_HEAD,
        ),
        (
            {}, [], ("cat", "dog"), ["neg", "pos"],
            OTHER_HEAD,
        ),
        (
            {"id2label": {0: "neg", 1: "pos"}}, ["neg", "pos"], ("pos", "neg"), None,
            "recipe.yaml: the recipe numbers the labels neg, pos, the checkpoint's head pos, neg; leave it out: the "
            "head's order is taken; for a new head write model.ignore_mismatched_sizes: true",
        ),
        (
            {"id2label": {0: "neg", 1: "pos"}}, ["good", "neg"], None, None,
            "recipe.yaml: the recipe names the labels neg, pos, and the train split has good; name every label of the "
            "data",
        ),
        (
            {"id2label": {1: "neg", 2: "pos"}}, ["neg", "pos"], None, None,
            "recipe.yaml: model.id2label must give each of 2 labels one of the numbers 0 to 1; number them from 0 on, "
            "each once",
        ),
        (
            {"id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 1, "pos": 0}}, ["neg", "pos"], None, None,
            "recipe.yaml: model.label2id contradicts model.id2label; keep one of them",
        ),
    ],
)  # fmt: skip
def test_names_that_contradict_the_head_or_the_data_are_refused(
    model: dict, values: list, head: tuple | None, class_names: list | None, expected: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        chosen(recipe_of(model), values, checkpoint(*head) if head else None, class_names)
    assert str(raised.value) == expected


def test_a_smaller_set_of_numbers_is_the_heads_only_where_nothing_is_trained() -> None:
    config = checkpoint("entailment", "neutral", "contradiction")
    assert chosen(recipe_of({}, do_train=False), [0, 1], config)[0] == ("entailment", "neutral", "contradiction")
    assert chosen(recipe_of({}), [0, 1], config)[0] == ("0", "1")  # from_pretrained then asks for a new head


def test_the_recipe_may_give_the_heads_labels_new_names_and_says_so() -> None:
    recipe = recipe_of({"id2label": {0: "neg", 1: "pos"}})
    found = choose_labels(
        recipe, labels_of_data(["neg", "pos"], None), checkpoint("NO", "YES"), "label_column", "label"
    )
    assert (found.names, found.notes) == (
        ("neg", "pos"),
        (
            "warning: recipe.yaml: the recipe gives the labels of the checkpoint's head new names: NO -> neg, "
            "YES -> pos",
        ),
    )


def test_tags_follow_the_recipe_and_the_head_too(make: Callable[..., Recipe]) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}]
    recipe = make("token-classification").with_values({"model.id2label": {0: "B-X", 1: "O"}}, "recipe.yaml:2")
    assert prepare(recipe, rows, wordpiece(["a", "b"])).train["labels"][0] == [-100, 1, 0, -100]
    numbered = [{"tokens": ["a", "b"], "tags": [0, 1]}]
    found = prepare(recipe, numbered, wordpiece(["a", "b"]))
    assert (found.label_names, found.train["labels"][0]) == (("B-X", "O"), [-100, 0, 1, -100])
    tagged = Dataset.from_list(numbered).cast_column("tags", List(ClassLabel(names=["O", "B-X"])))
    assert prepare(recipe, tagged, wordpiece(["a", "b"])).train["labels"][0] == [-100, 1, 0, -100]


# a whole run ----------------------------------------------------------------------------------------------------------


def save_flipped(folder: Path, kind: str, names: tuple[str, ...], tokenizer: Any) -> Any:
    """A random classifier whose head's names are not sorted, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.5, pad_token_id=0,
        id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)}, **SHAPE,
    )  # fmt: skip
    model = getattr(transformers, f"BertFor{kind}Classification")(config).eval()
    tokenizer.save_pretrained(folder)
    return model


def rows_it_gets_right(kind: str, model: Any, folder: Path, tokenizer: Any) -> list[dict]:
    """Rows labelled with the names that plain transformers gives them: it scores 1.0 on them. The head's bias is
    moved so that every name occurs."""
    import torch

    texts = [[WORDS[(i * 5 + j * j) % len(WORDS)] for j in range(3 + i % 4)] for i in range(24)]

    def logits(words: list[str]) -> Any:
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            found = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0]
        return found[1:-1] if kind == "Token" else found[None]

    middle = torch.cat([logits(words) for words in texts]).median(dim=0).values
    model.classifier.bias.data -= middle
    model.save_pretrained(folder)
    names = [[model.config.id2label[n] for n in logits(words).argmax(-1).tolist()] for words in texts]
    if kind == "Token":
        return [{"tokens": words, "tags": tags} for words, tags in zip(texts, names, strict=True)]
    return [{"text": " ".join(words), "label": name} for words, (name,) in zip(texts, names, strict=True)]


@pytest.mark.parametrize(
    ("kind", "names", "metric"),
    [("Sequence", ("pos", "neg"), "f1"), ("Token", ("I-X", "O"), "span_f1")],
)
def test_a_checkpoint_that_is_right_in_plain_transformers_is_right_here_alone_and_as_before(
    kind: str, names: tuple, metric: str, write_recipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = wordpiece(WORDS)
    model = save_flipped(Path("model"), kind, names, tokenizer)
    rows = rows_it_gets_right(kind, model, Path("model"), tokenizer)
    used = {name for row in rows for name in row.get("tags", [row.get("label")])}
    assert used == set(names)
    write_rows("train.jsonl", rows[:16])
    write_rows("validation.jsonl", rows[16:])
    task = {"Sequence": "text-classification", "Token": "token-classification"}[kind]
    recipe = write_recipe(
        f"task: {task}\nmodel: {{pretrained_model_name_or_path: model}}\n"
        "dataset: {path: json, data_files: {train: train.jsonl, validation: validation.jsonl}}\n"
        "TrainingArguments: {output_dir: out, max_steps: 1, eval_on_start: true, learning_rate: 1e-2, "
        "report_to: none, save_strategy: 'no', disable_tqdm: true}\n"
        "disable_guards: [overlap]\n"
    )
    record = json.loads(run(recipe, ["TrainingArguments.do_train=false"]).read_text())
    assert (record["metrics"]["eval"][f"eval_{metric}"], record["metrics"]["eval"]["eval_accuracy"]) == (1.0, 1.0)
    lines = " ".join(capsys.readouterr().out.split())
    counts = ", ".join(f"{name} {record['data']['train']['labels'][name]}" for name in names)
    assert f"labels {counts} (the checkpoint's head's order)" in lines
    record = json.loads(run(recipe, ["TrainingArguments.output_dir=trained"]).read_text())
    assert record["metrics"]["before"][f"eval_{metric}"] == 1.0
    assert json.loads(Path("trained/config.json").read_text())["id2label"] == {str(i): n for i, n in enumerate(names)}


# what is said of doubtful rows --------------------------------------------------------------------------------------


def notes_of(make: Callable[..., Recipe], rows: list[dict], task: str = "text-classification") -> tuple[str, ...]:
    tokenizer = bpe() if task == "text-classification" else wordpiece(["a", "b"])
    return prepare(make(task), rows, tokenizer, held_out=rows[:2]).notes


def test_labels_that_differ_by_case_texts_under_two_labels_and_repeated_rows_are_counted_with_an_example(
    make: Callable[..., Recipe],
) -> None:
    rows = [
        {"text": "the sea", "label": "Pos"},
        {"text": "the house", "label": "pos"},
        {"text": "the light", "label": "neg "},
        {"text": "the sea", "label": "neg"},
        {"text": "the house", "label": "pos"},
        {"text": "the sea", "label": "neg"},
        {"text": "the day", "label": "neg"},
    ]
    assert notes_of(make, rows) == (
        "warning: recipe.yaml:3: labels differ only by case or blanks, and are classes of their own: 'Pos' (1), "
        "'pos' (2); 1 more such groups",
        "warning: recipe.yaml:3: train: 2 of 7 rows repeat an earlier one exactly, such as: row 4 is row 1, "
        "'the house'",
        "warning: recipe.yaml:3: train: 1 texts stand under more than one label, such as: 'the sea' is 'Pos' in row 0 "
        "and 'neg' in row 3",
    )


@pytest.mark.parametrize("files", ["{data}", "[{data}]", "{{train: {data}}}"])
def test_repeated_rows_are_named_by_the_file_where_test_size_shuffled_them(
    make: Callable[..., Recipe], tmp_path: Path, files: str
) -> None:
    rows = [{"text": f"the sea {i}", "label": ("pos", "neg")[i % 2]} for i in range(40)]
    rows[31] = rows[30] = {**rows[7], "label": "neg"}
    data = write_rows(tmp_path / "a.jsonl", rows)
    recipe = make("text-classification", f"data_files: {files.format(data=data)}, test_size: 0.1")
    notes = text_classification.prepare(load_splits(recipe), bpe(), recipe, 64).notes
    told = " ".join(line for line in notes if "rows repeat an earlier one exactly" in line)
    named = {int(row): int(line) for row, line in re.findall(rf"row (\d+) of {data} \(line (\d+)\)", told)}
    assert len(named) == 2 and named.items() <= {7: 8, 30: 31, 31: 32}.items()


def test_sentences_that_are_tagged_in_two_ways_are_named_too(make: Callable[..., Recipe]) -> None:
    rows = [{"tokens": ["a", "b"], "tags": tags} for tags in (["O", "B-X"], ["O", "O"], ["O", "B-X"])]
    assert notes_of(make, rows, "token-classification") == (
        "tags: IOB2",
        "warning: recipe.yaml:3: train: 1 of 3 rows repeat an earlier one exactly, such as: row 2 is row 0, 'a b'",
        "warning: recipe.yaml:3: train: 1 texts stand under more than one label, such as: 'a b' is [O, B-X] in row "
        "0 and [O, O] in row 1",
        "warning: recipe.yaml:3: eval: 1 texts stand under more than one label, such as: 'a b' is [O, B-X] in row "
        "0 and [O, O] in row 1",
    )
