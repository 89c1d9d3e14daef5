"""`hf-recipes inspect` and `prepare`: the numbers of the rows, the key that fixes each, and an exit status."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.cli import main
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_llama, write_rows

Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(folder: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """(exit status, standard output) of a command on recipe.yaml."""
    save_llama(folder / "model", bpe(chat=CHATML, length=10_000), positions=1024)

    def run(*arguments: str) -> tuple[int, str]:
        try:
            main(list(arguments))
        except SystemExit as ended:
            status = int(ended.code or 0)
        else:
            status = 0
        shown = capfd.readouterr()
        assert status != 2, shown.err
        return status, shown.out

    return run


def chat_rows(count: int) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {
            "messages": [
                {"role": "user", "content": f"{TEXTS[i % 4]} {i}"},
                {
                    "role": "assistant",
                    "content": " ".join(draw.choices(TEXTS[0].split(), k=draw.randint(1, 40))) + f" {i}",
                },
            ]
        }
        for i in range(count)
    ]


def write_chat(write_recipe: Callable[..., str], training: str) -> None:
    write_rows("train.jsonl", chat_rows(120))
    write_rows("validation.jsonl", chat_rows(140)[120:])
    write_recipe(
        "task: chat\nmodel: {pretrained_model_name_or_path: ./model}\n"
        "dataset: {path: json, data_files: {train: train.jsonl, validation: validation.jsonl}}\n"
        f"SFTConfig: {{output_dir: out, {training}}}\n"
    )


def test_answers_beyond_the_length_are_counted_with_the_key_and_the_length_that_keep_them(
    write_recipe: Callable[..., str], call: Call
) -> None:
    write_chat(write_recipe, "max_length: 60")
    status, shown = call("inspect", "recipe.yaml", "--json")
    found = json.loads(shown)
    train = found["splits"]["train"]
    assert status == 1 and train["rows"] == 120 and 0.01 < train["lost"] < 1 and train["rows_cut"] > 5
    keep = train["quantiles"]["99%"]
    assert f"SFTConfig.max_length: {keep} keeps 99% of the rows" in {one["fix"] for one in found["findings"]}
    status, shown = call("inspect", "recipe.yaml", f"SFTConfig.max_length={train['quantiles']['100%']}", "--json")
    again = json.loads(shown)
    assert again["splits"]["train"]["tokens"] == train["tokens"] and again["splits"]["train"]["lost"] == 0
    assert [one for one in again["findings"] if "max_length" in one["fix"]] == []


def test_a_person_reads_lengths_samples_and_findings(write_recipe: Callable[..., str], call: Call) -> None:
    write_chat(write_recipe, "max_length: 60")
    status, shown = call("inspect", "recipe.yaml", "--near-duplicates", "0")
    assert status == 1 and "near duplicates" not in shown
    lines = shown.splitlines()
    assert lines[0].startswith("train    120 rows, ") and "max_length is 60" in lines[1]
    assert any(line.startswith("finding: train: ") and "answer tokens are beyond 60 tokens" in line for line in lines)
    row = next(i for i, line in enumerate(lines) if line.startswith("train row 0"))
    text = "\n".join(lines[row + 1 : row + 8])
    asked, _, answered = text.partition("[[")
    assert "<|im_start|>assistant" in asked and set(answered.partition("]]")[0].split()) <= set(TEXTS[0].split())


def test_data_without_fault_end_with_status_0(write_recipe: Callable[..., str], call: Call) -> None:
    write_rows("a.jsonl", [{"text": f"{draw_text(i)}", "label": "ab"[i % 2]} for i in range(80)])
    write_recipe(
        "task: text-classification\nmodel: {pretrained_model_name_or_path: ./model}\n"
        "dataset: {path: json, data_files: a.jsonl}\nTrainingArguments: {output_dir: out}\n"
    )
    status, shown = call("inspect", "recipe.yaml")
    assert (status, shown.splitlines()[-1]) == (0, "nothing to change"), shown


def test_copies_are_counted_in_documents_where_rows_are_blocks_of_them(
    write_recipe: Callable[..., str], call: Call
) -> None:
    texts = [draw_text(i) for i in range(40)]
    write_rows("a.jsonl", [{"text": text} for text in (*texts, *texts[:7])])
    write_rows("v.jsonl", [{"text": draw_text(i)} for i in range(50, 60)])
    write_recipe(
        "task: causal-lm\nmodel: {pretrained_model_name_or_path: ./model}\n"
        "dataset: {path: json, data_files: {train: a.jsonl, validation: v.jsonl}, max_length: 16}\n"
        "TrainingArguments: {output_dir: out}\n"
    )
    status, shown = call("inspect", "recipe.yaml")
    assert status == 1 and "7 of the 47 rows of the data repeat an earlier one" in shown
    assert "train: 7 of 47 rows of the data are there more than once" in shown


def test_no_length_beyond_the_positions_of_the_model_is_advised(write_recipe: Callable[..., str], call: Call) -> None:
    write_chat(write_recipe, "max_length: 60")
    config = Path("model/config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 60}), encoding="utf-8")
    _, shown = call("inspect", "recipe.yaml", "--json")
    fixes = {one["fix"] for one in json.loads(shown)["findings"]}
    assert "the model has 60 positions: split the texts, or take a model with more" in fixes
    assert not [fix for fix in fixes if "keeps 99%" in fix]


def draw_text(i: int) -> str:
    return " ".join(random.Random(i).choices([f"{a}{b}" for a in TEXTS[0].split() for b in TEXTS[1].split()], k=20))


def test_copies_in_the_validation_split_are_a_finding(write_recipe: Callable[..., str], call: Call) -> None:
    rows = [{"text": draw_text(i), "label": "ab"[i % 2]} for i in range(60)]
    write_rows("a.jsonl", rows)
    write_rows("b.jsonl", [{"text": row["text"] + " more", "label": row["label"]} for row in rows[:10]])
    write_recipe(
        "task: text-classification\nmodel: {pretrained_model_name_or_path: ./model}\n"
        "dataset: {path: json, data_files: {train: a.jsonl, validation: b.jsonl}}\n"
        "TrainingArguments: {output_dir: out}\n"
    )
    status, shown = call("inspect", "recipe.yaml")
    assert status == 1
    assert "finding: eval: 10 of the first 10 rows are nearly rows of the train split" in shown


def test_prepare_stores_what_run_finds_and_says_where(write_recipe: Callable[..., str], call: Call) -> None:
    write_rows("a.jsonl", [{"text": draw_text(i)} for i in range(200)])
    write_recipe(
        "task: causal-lm\nmodel: {pretrained_model_name_or_path: ./model}\n"
        "dataset: {path: json, data_files: a.jsonl, max_length: 32, cache_dir: cache}\n"
        "TrainingArguments: {output_dir: out, max_steps: 1, report_to: none, use_cpu: true, eval_strategy: 'no'}\n"
    )
    status, shown = call("prepare", "recipe.yaml")
    assert status == 0
    train = next(line for line in shown.splitlines() if line.startswith("train    180 documents, "))
    place = Path(train.partition(" in ")[2].rpartition(" in ")[2] or train.rpartition(" in ")[2])
    before = (place / "index.json").stat()
    assert call("run", "recipe.yaml")[0] == 0
    after = (place / "index.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert len(list(Path("cache/hf_recipes").glob("*/rows"))) == 2
