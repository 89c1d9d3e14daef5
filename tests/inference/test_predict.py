"""`hf-recipes predict`: what a user gets for texts, files and lines of stdin."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.cli import main
from hf_recipes.commands.predict import command, predict
from hf_recipes.errors import RecipeError
from hf_recipes.inference.classify import words_of
from hf_recipes.inference.trained import find_trained, load_trained
from hf_recipes.pipeline.run import run
from tests.support.tiny_models import write_rows
from tests.support.trained_runs import conversations, rows_of

Enter = Callable[..., Path]
NEAR = 1e-5  # of probabilities: batches are padded otherwise


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_labels_and_probabilities_of_200_texts_are_those_of_the_transformers_pipeline(enter_run: Enter) -> None:
    from transformers import pipeline

    enter_run("text-classification")
    texts = [row["text"] for row in rows_of("sentiment", 300)]
    ours = list(predict(find_trained("out"), [{"text": text} for text in texts]))
    theirs = pipeline("text-classification", model="out", top_k=None)(texts, truncation=True, max_length=64)
    assert [one["text"] for one in ours] == texts
    assert [one["label"] for one in ours] == [one[0]["label"] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one["probabilities"] == pytest.approx({part["label"]: part["score"] for part in other}, abs=NEAR)
    assert len({one["label"] for one in ours}) == 2 or len({one["score"] for one in ours}) > 100


@pytest.mark.parametrize("words", [False, True], ids=["texts", "lists of words"])
def test_entities_in_200_rows_are_those_of_the_transformers_pipeline(enter_run: Enter, words: bool) -> None:
    from transformers import pipeline

    enter_run("token-classification")
    rows = rows_of("names", 300)
    ours = list(predict(find_trained("out"), rows if words else [{"text": " ".join(row["tokens"])} for row in rows]))
    pipe = pipeline("token-classification", model="out", aggregation_strategy="first")
    pipe.tokenizer.model_max_length = 64
    more = {"is_split_into_words": True, "delimiter": " "} if words else {}
    count = 0
    for row, one in zip(rows, ours, strict=True):
        text = " ".join(row["tokens"])
        if len(pipe.tokenizer(text)["input_ids"]) > 64:  # the pipeline cuts it
            continue
        theirs = pipe([row["tokens"] if words else text], **more)[0]
        spans = [(e["entity_group"], e["start"], e["end"], e["word"]) for e in theirs]
        assert [(e["entity_group"], e["start"], e["end"], e["word"]) for e in one["entities"]] == spans
        assert [e["score"] for e in one["entities"]] == pytest.approx([e["score"] for e in theirs], abs=NEAR)
        count += len(spans)
    assert count > 50


def test_entities_of_a_text_longer_than_the_model_reads_are_found_to_its_end(enter_run: Enter) -> None:
    enter_run("token-classification")
    text = "it was a good day , and then " * 12 + "she saw Elinor there ."
    trained = find_trained("out")
    alone = next(predict(trained, [{"text": "and then she saw Elinor there ."}]))["entities"]
    found = next(predict(trained, [{"text": text}]))["entities"]
    assert [text[one["start"] : one["end"]] for one in found if one["start"] > 340] == [one["word"] for one in alone]


@pytest.mark.slow
def test_continuations_of_200_prompts_are_those_of_the_transformers_pipeline(enter_run: Enter) -> None:
    from transformers import pipeline

    enter_run("causal-lm")
    prompts = [message["content"] for row in conversations(count=200) for message in row["messages"][:1]]
    ours = list(predict(find_trained("out"), [{"text": text} for text in prompts], given={"max_new_tokens": 8}))
    pipe = pipeline("text-generation", model="out", return_full_text=False)
    theirs = pipe(prompts, max_new_tokens=8, do_sample=False)
    assert [one["generated_text"] for one in ours] == [one[0]["generated_text"] for one in theirs]


@pytest.mark.slow
def test_answers_to_200_conversations_are_those_of_the_transformers_pipeline(enter_run: Enter) -> None:
    from transformers import pipeline

    enter_run("chat")
    rows = [{"messages": row["messages"][:1]} for row in conversations(count=200)]
    ours = list(predict(find_trained("out"), rows, given={"max_new_tokens": 8}))
    pipe = pipeline("text-generation", model="out", return_full_text=False)
    theirs = pipe([row["messages"] for row in rows], max_new_tokens=8, do_sample=False)
    assert [one["generated_text"] for one in ours] == [one[0]["generated_text"] for one in theirs]


def test_a_model_of_conll_files_reads_sentences_and_conll_files(folder: Path) -> None:
    from hf_recipes.inference.inputs import dataset_of_file, load_file
    from hf_recipes.recipe.recipe import Recipe

    dataset = {"path": "text", "data_files": {"train": "train.conll"}, "format": "conll"}
    recipe = Recipe(path="r.yaml", sections={"task": "token-classification", "dataset": dataset}, locations={})
    Path("a.txt").write_text("Anne smiled .\nShe saw Captain Wentworth there .\n")
    assert [row["text"] for row in load_file(recipe, "a.txt")] == ["Anne smiled .", "She saw Captain Wentworth there ."]
    for name in ("b.conll", "b.txt"):
        Path(name).write_text("Anne B-PER\nsmiled O\n\nShe O\n")
        assert [row["tokens"] for row in load_file(recipe, name)] == [["Anne", "smiled"], ["She"]]
    write_rows("c.jsonl", [{"tokens": ["Anne"], "tags": ["B-PER"]}])
    assert "format" not in dataset_of_file(recipe, "c.jsonl").section("dataset")


def test_rows_of_sharegpt_are_answered_as_messages_are(enter_run: Enter) -> None:
    enter_run("chat")
    rows = conversations(60, 4)
    roles = {"user": "human", "assistant": "gpt"}
    shared = [
        {"conversations": [{"from": roles[one["role"]], "value": one["content"]} for one in row["messages"]]}
        for row in rows
    ]
    found = find_trained("out")
    answers = [[one["generated_text"] for one in predict(found, part)] for part in (rows, shared)]
    assert answers[0] == answers[1] and any(answers[0])


def test_an_adapter_predicts_what_the_trained_model_does(enter_run: Enter) -> None:
    """The scores that its run wrote."""
    import pyarrow.parquet as pq

    folder = enter_run("text-classification", lora=True)
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    ours = list(predict(find_trained("out"), rows, batch_size=7))
    scores = pq.read_table("out/scores.parquet")
    for one, wanted in zip(ours, scores["probabilities"].to_pylist(), strict=True):
        assert list(one["probabilities"].values()) == pytest.approx(wanted, abs=NEAR)


def test_lines_of_stdin_become_json_lines_in_their_order(
    enter_run: Enter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_run("text-classification")
    text = b"a very long text about a film that was good in every way\n\nbad\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    command("out", [])
    found = _lines(capsys)
    assert [one["text"] for one in found] == ["a very long text about a film that was good in every way", "bad"]
    assert [sum(one["probabilities"].values()) for one in found] == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt", "rows.parquet"])
def test_a_file_of_rows_is_predicted_and_the_output_file_is_complete(
    enter_run: Enter, tmp_path: Path, name: str
) -> None:
    enter_run("text-classification")
    texts = ["a good film", "a bad film, with a comma", "neither"]
    file = tmp_path / name
    if name.endswith("jsonl"):
        write_rows(file, [{"text": text, "id": i} for i, text in enumerate(texts)])
    elif name.endswith("parquet"):
        from datasets import Dataset

        Dataset.from_dict({"text": texts}).to_parquet(str(file))
    else:
        quoted = ["text", *(f'"{text}"' for text in texts)] if name.endswith("csv") else texts
        file.write_text("\n".join(quoted) + "\n")
    command("out", [], file=str(file), output=str(tmp_path / "out.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["text"] for one in found] == texts
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out.jsonl"])


def test_an_output_file_is_not_left_half_written(enter_run: Enter, tmp_path: Path) -> None:
    enter_run("text-classification")
    write_rows(tmp_path / "rows.jsonl", [{"text": "good"}, {"text": ""}])
    with pytest.raises(RecipeError) as raised:
        command("out", [], file=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "out.jsonl"))
    assert str(raised.value) == "row 1: its text in 'text' is empty; give a text in every row"
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.strip()


def test_a_folder_that_is_not_there_is_refused_with_the_nearest_name(
    enter_run: Enter, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_run("text-classification")
    assert _refusal(["predict", "oud", "a"], capsys) == "error: oud: there is no such folder; did you mean 'out'?"


def test_a_run_that_failed_is_refused_with_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("failed").mkdir()
    record = {"schema": 3, "task": "chat", "status": "failed", "stage": "data", "error": "data.jsonl is empty"}
    Path("failed/record.json").write_text(json.dumps(record))
    assert _refusal(["predict", "failed", "a"], capsys) == (
        "error: failed: the run wrote no weights (it is 'failed', in data: data.jsonl is empty); train it again"
    )


def test_an_adapter_whose_base_is_gone_is_refused_with_the_option_that_names_it(
    enter_run: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = enter_run("text-classification", lora=True)
    shutil.copytree(folder / "out", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert _refusal(["predict", "out", "a"], capsys) == (
        "error: out: the adapter's base model 'base' is not there (paths are relative to the working directory); "
        "name its folder or Hub id with --base-model"
    )
    command("out", ["good"], base_model=str(folder / "base"))
    assert _lines(capsys)[0]["label"] in ("positive", "negative")


def test_settings_of_text_generation_are_refused_for_a_classifier(
    enter_run: Enter, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_run("text-classification")
    assert _refusal(["predict", "out", "a", "--max-new-tokens", "3"], capsys) == (
        "error: argument '--max-new-tokens': a model for text classification generates no text; leave it out"
    )


def test_a_model_folder_without_a_record_is_used_by_its_architecture(enter_run: Enter, tmp_path: Path) -> None:
    folder = enter_run("chat")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / "out" / name, tmp_path)
    found = find_trained(str(tmp_path))
    assert (found.task, found.record) == ("chat", None)
    assert next(predict(found, [{"text": "hello"}], given={"max_new_tokens": 4})).keys() == {"text", "generated_text"}
    with pytest.raises(RecipeError) as raised:
        load_trained(find_trained(str(tmp_path), "token-classification"))
    assert "it was not trained for token-classification" in str(raised.value)


def test_a_text_is_read_as_its_words_are_by_a_tokenizer_that_is_trained_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte-level tokenizer writes a word behind a blank otherwise than a word alone."""
    monkeypatch.chdir(tmp_path)
    rows = rows_of("names", 0, 200)
    write_rows("train.jsonl", rows)
    write_rows("validation.jsonl", rows_of("names", 200, 20))
    model = "{model_type: distilbert, dim: 32, hidden_dim: 64, n_layers: 1, n_heads: 2}"
    arguments = "output_dir: out, max_steps: 120, learning_rate: 1e-2, save_strategy: 'no', report_to: none"
    Path("recipe.yaml").write_text(
        f"task: token-classification\nmodel: {{config: {model}}}\nBpeTrainer: {{vocab_size: 1000}}\n"
        "dataset: {path: json, data_files: {train: train.jsonl, validation: validation.jsonl}, max_length: 64}\n"
        f"TrainingArguments: {{{arguments}, per_device_train_batch_size: 16, use_cpu: true}}\n"
    )
    run("recipe.yaml")
    asked = [row["tokens"] for row in rows[:60]]

    def spans(given: list) -> list:
        found = predict(find_trained("out"), given, cpu=True)
        return [[(e["entity_group"], e["start"], e["end"]) for e in one["entities"]] for one in found]

    for one in predict(find_trained("out"), [{"tokens": words} for words in asked], cpu=True):
        assert all(e["word"] == one["text"][e["start"] : e["end"]] == e["word"].strip() for e in one["entities"])
    words, texts = spans([{"tokens": words} for words in asked]), spans([{"text": " ".join(words)} for words in asked])
    assert sum(map(len, words)) > 10
    assert texts == words
    # Signs stand at their words in what people write: they keep tags of their own, as in the rows of words.
    written = [re.sub(r" ([,.!?])(?= |$)", r"\1", " ".join(words)) for words in asked]
    same = [i for i, text in enumerate(written) if [text[a:b] for a, b in words_of(text)] == asked[i]]
    assert len(same) > 10 and any(written[i] != " ".join(asked[i]) for i in same)

    def by_words(text: str, entities: list) -> list:
        starts, ends = zip(*words_of(text), strict=True)
        return [(group, starts.index(start), ends.index(end)) for group, start, end in entities]

    for i, found in zip(same, spans([{"text": written[i]} for i in same]), strict=True):
        assert by_words(written[i], found) == by_words(" ".join(asked[i]), words[i])
    for found in spans([{"text": "Anne 🚢 Bath."}, {"text": "السفينة تبحر"}]):
        assert all(one[2] <= other[1] for one, other in pairwise(found))
    # The same of a tokenizer as it was trained before, without the blank: texts are split into words.
    file = Path("out/tokenizer.json")
    file.write_text(file.read_text().replace('"add_prefix_space":true', '"add_prefix_space":false')
                    .replace('"add_prefix_space": true', '"add_prefix_space": false'))  # fmt: skip
    assert spans([{"text": " ".join(words)} for words in asked]) == spans([{"tokens": words} for words in asked])
