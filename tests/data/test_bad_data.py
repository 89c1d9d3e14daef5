"""Bad input to `hf-recipes run`: one message with its location and its fix, exit code 2, no traceback.

The model folder of the data tests has a config and a tokenizer, but weights that fail to load: an error that is
reported instead was found before any model was loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_recipes.cli import main
from hf_recipes.data.splits import load_splits
from hf_recipes.recipe.read import read_recipe
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_llama, write_rows

Refused = Callable[..., list[str]]


@pytest.fixture
def refused(folder: Path, write_recipe: Callable[..., str], capfd: pytest.CaptureFixture[str]) -> Refused:
    """Runs a recipe that must fail; returns the errors on stderr. `model` is on line 2, `dataset` on line 3."""
    from transformers.utils import logging

    logging.disable_default_handler()  # it holds the stream of an earlier test, which is closed
    save_llama(folder / "model", bpe(chat=CHATML))
    shutil.copytree("model", "broken")
    Path("broken/model.safetensors").write_bytes(b"no weights")
    rows = [{"text": f"{TEXTS[i % 4]} {i}", "label": "ab"[i % 2]} for i in range(12)]
    write_rows("a.jsonl", rows)

    def run(dataset: str, task: str = "text-classification", model: str = "./broken", arguments: str = "") -> list[str]:
        section = "SFTConfig" if task == "chat" else "TrainingArguments"
        path = write_recipe(
            f"task: {task}\nmodel: {{pretrained_model_name_or_path: {model}}}\ndataset: {{path: json, {dataset}}}\n"
            f"{section}: {{output_dir: out, max_steps: 1, report_to: none{arguments}}}\n"
        )
        with pytest.raises(SystemExit) as ended:
            main(["run", path])
        assert ended.value.code == 2
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        return [line.removeprefix("error: ") for line in errors.splitlines() if line.startswith("error: ")]

    return run


def left() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir()) if Path("out").is_dir() else []


@pytest.mark.parametrize(
    ("dataset", "line"),
    [
        (
            "data_files: b.jsonl",
            "3: data file 'b.jsonl' does not exist (paths are relative to the working directory); "
            "did you mean 'a.jsonl'?",
        ),
        (
            "data_files: a.jsonl, max_length: 65",
            "3: dataset.max_length: 65 tokens are more than the model's 64 positions; "
            "set dataset.max_length: 64 or less",
        ),
    ],
)
def test_what_needs_no_data_is_reported_before_anything_is_written(refused: Refused, dataset: str, line: str) -> None:
    assert refused(dataset) == [f"recipe.yaml:{line}"]
    assert left() == []


ROWS = {"text": "the sea", "label": "a"}


@pytest.mark.parametrize(
    ("rows", "dataset", "line"),
    [
        ([], "data_files: b.jsonl", "b.jsonl is empty; add some rows"),
        (
            [ROWS] * 10,
            "data_files: b.jsonl, text_column: txt",
            "the data has no column 'txt' (it has text, label); did you mean 'text'?",
        ),
        (
            [ROWS, {"text": "the sea", "label": "b"}] * 5 + [{"text": "", "label": "b"}],
            "data_files: {train: b.jsonl, validation: b.jsonl}",
            "row 10 of the train split has no text (''); remove such rows",
        ),
        (
            [{"text": "the sea", "label": "c"}],
            "data_files: {train: a.jsonl, validation: b.jsonl}",
            "row 0 of the eval split has the label 'c', which is none of the model's; the labels are a, b",
        ),
        (
            [ROWS],
            "data_files: {train: a.jsonl, validation: b.jsonl, test: bad.jsonl}",
            "bad.jsonl:1 is not JSON: Expecting ',' delimiter (column 13); fix that line, or remove it",
        ),
    ],
)
def test_rows_that_cannot_be_trained_on_are_reported_before_the_model_is_loaded(
    refused: Refused, rows: list[dict], dataset: str, line: str
) -> None:
    write_rows("b.jsonl", rows)
    Path("bad.jsonl").write_text('{"text": "a"\n')
    assert refused(dataset) == [f"recipe.yaml:3: {line}"]
    assert left() == ["record.json"]
    record = json.loads(Path("out/record.json").read_text())
    assert (record["status"], record["stage"]) == ("failed", "data")
    assert record["error"] == f"DataError: recipe.yaml:3: {line}"


def test_labels_that_are_all_masked_are_reported_before_the_model_is_loaded(refused: Refused) -> None:
    write_rows("b.jsonl", [{"prompt": "the sea " * 30, "completion": "was"}] * 20)
    assert refused("data_files: b.jsonl", task="chat", arguments=", max_length: 16") == [
        "recipe.yaml:4: no row of the train split has an answer token within max_length 16: all labels are masked; "
        "raise SFTConfig.max_length or check the columns"
    ]


def test_words_without_tags_are_reported_before_the_model_is_loaded(refused: Refused) -> None:
    write_rows("b.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tokens": ["a", "b"], "tags": ["O"]}] * 10)
    dataset = "data_files: {train: b.jsonl, validation: b.jsonl}"
    assert refused(dataset, task="token-classification") == [
        "recipe.yaml:3: row 1 of the train split has 2 tokens but 1 tags; give every token one tag"
    ]


def test_an_output_dir_that_is_a_file_is_reported_and_left_as_it_is(refused: Refused) -> None:
    Path("out").write_text("mine")
    assert refused("data_files: a.jsonl") == [
        "recipe.yaml:4: output_dir 'out' is not writable ('out' is a file); choose another"
    ]
    assert Path("out").read_text() == "mine"


def damage(name: str, **files: bytes | None) -> None:
    shutil.copytree("model", name)
    for file, content in files.items():
        path = Path(name, file.replace("__", "."))
        path.unlink() if content is None else path.write_bytes(content)


CONFIG_FIX = "was the folder written by save_pretrained of a model?"


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            {"model__safetensors": b"garbage" * 50},
            "the model './damaged' cannot be loaded: Error while deserializing header: header too large; "
            "the file is damaged: copy or download it again",
        ),
        (
            {"model__safetensors": None},
            "the model './damaged' cannot be loaded: Error no file named model.safetensors, or pytorch_model.bin, "
            f"found in directory ./damaged.; {CONFIG_FIX}",
        ),
        (
            {"config__json": b'{"hidden_size": 8}'},
            "the model './damaged' cannot be loaded: Unrecognized model in ./damaged. Should have a `model_type` key "
            f"in its config.json.; {CONFIG_FIX}",
        ),
        (
            {"config__json": b"{bad"},
            "the model './damaged' cannot be loaded: ./damaged/config.json is not JSON (Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1)); restore that file, or copy the folder again",
        ),
        (
            {"config__json": None},
            "the folder './damaged' has no model (config.json is missing); is it a model's folder?",
        ),
        (
            {"tokenizer__json": None, "tokenizer_config__json": None},
            "the folder './damaged' has no tokenizer (tokenizer.json is missing); "
            "name another one in the tokenizer section",
        ),
        (
            {"tokenizer__json": b"{bad"},
            "the tokenizer './damaged' cannot be loaded: ./damaged/tokenizer.json is not JSON (Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1)); restore that file, or copy the folder again",
        ),
    ],
)
def test_a_damaged_model_folder_is_reported(refused: Refused, files: dict[str, bytes | None], line: str) -> None:
    damage("damaged", **files)
    assert refused("data_files: a.jsonl", model="./damaged")[-1] == f"recipe.yaml:2: {line}"
    assert left() == ["record.json"]


def test_a_model_folder_that_is_not_there_is_reported_with_the_nearest_name(refused: Refused) -> None:
    assert refused("data_files: a.jsonl", model="./modell")[-1] == (
        "recipe.yaml:2: there is no model folder './modell' here; did you mean './model'?"
    )


def test_a_hub_name_that_cannot_be_reached_is_reported(refused: Refused) -> None:
    line = refused("data_files: a.jsonl", model="nobody/nothing")[-1]
    assert line.startswith("recipe.yaml:2: the model 'nobody/nothing' cannot be loaded: ")
    assert line.endswith("; check the name; offline, only a local folder or a model already in the Hub cache loads")


def test_a_head_of_other_labels_and_a_wrong_num_labels_are_reported(refused: Refused) -> None:
    assert refused("data_files: a.jsonl", model="./broken, num_labels: 5") == [
        "recipe.yaml:2: model.num_labels is 5, and there are 2 labels; leave it out"
    ]
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained("model", num_labels=5).save_pretrained("five")
    bpe().save_pretrained("five")
    assert refused("data_files: a.jsonl", model="./five") == [
        "recipe.yaml:2: the model './five' has weights of other shapes than its config with this recipe's fields; "
        "for a head with new labels write model.ignore_mismatched_sizes: true"
    ]


@pytest.mark.parametrize("value", [17, ["a"]])
def test_a_value_of_another_kind_far_into_a_file_is_reported_where_upstream_would_quote_the_texts_around_it(
    refused: Refused, value: object
) -> None:
    rows: list[dict[str, object]] = [{"text": f'say "hi"\n{i}'} for i in range(3_000)]
    write_rows("late.jsonl", [*rows, {"text": value}, *rows])
    errors = refused("data_files: late.jsonl, chunksize: 20000", "causal-lm")
    assert len(errors) == 1 and f"late.jsonl:3001 has {json.dumps(value)} in the column 'text'" in errors[0]


def test_texts_that_are_in_quotes_themselves_are_read_as_they_are(
    folder: Path, write_recipe: Callable[..., str]
) -> None:
    write_rows("quoted.jsonl", [{"text": f'"{i}"'} for i in range(3_000)])
    text = "task: causal-lm\nmodel: {config: {model_type: gpt2}}\nBpeTrainer: {vocab_size: 300}\n"
    text += "dataset: {path: json, data_files: {train: quoted.jsonl, validation: quoted.jsonl}, chunksize: 20000}\n"
    splits = load_splits(read_recipe(write_recipe(text + "TrainingArguments: {output_dir: out}\n")))
    assert splits.train["text"][2_999] == '"2999"'


def test_half_of_a_surrogate_pair_is_named_with_its_line(refused: Refused) -> None:
    rows = [{"text": "a pair \U0001f600"}] * 60
    write_rows("half.jsonl", rows)
    with Path("half.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"text": "lone \\ud800 surrogate"}\n')
    errors = refused("data_files: half.jsonl", "causal-lm")
    assert len(errors) == 1 and r"half.jsonl:61 has \ud800, half of a surrogate pair" in errors[0]
    assert errors[0].endswith("fix that line, or remove it")
