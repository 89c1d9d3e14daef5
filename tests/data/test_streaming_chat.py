"""Streamed conversations: the rows that are stored without streaming, resumed exactly, on several processes too."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import trl

from hf_recipes.cli import main
from hf_recipes.data.prepared import Prepared
from hf_recipes.data.splits import load_splits
from hf_recipes.pipeline.run import run
from hf_recipes.recipe.read import read_recipe
from hf_recipes.record.file import read_record
from tests.support.forks import run_ranks
from tests.support.killed_runs import final_state, run_until_killed
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_llama, write_rows

RECIPE = """
task: chat
model: {pretrained_model_name_or_path: model}
disable_guards: [end_token, truncation]
dataset: {path: json, data_files: {train: [a.jsonl, b.jsonl], validation: v.jsonl}, streaming: true, buffer_size: 9}
SFTConfig:
  {output_dir: out, max_length: 64, max_steps: 8, save_steps: 2, per_device_train_batch_size: 4, logging_steps: 1}
"""
QWEN = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")


def talk(i: int) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": f"{TEXTS[i % 4][:12]} {i}"}
    return [asked, {"role": "assistant", "content": f"{TEXTS[(i + 1) % 4][: 8 + i % 9]} é"}]


def call(i: int) -> list[dict[str, Any]]:
    """A conversation whose messages have other keys than those of the first rows, of other kinds in each."""
    called = {"type": "function", "function": {"name": "go", "arguments": {"n": i} if i % 2 else {"to": [str(i)]}}}
    return [talk(i)[0], {"role": "assistant", "content": "", "tool_calls": [called]}, *talk(i + 1)]


@pytest.fixture
def recipe(write_recipe: Callable[..., str]) -> str:
    save_llama("model", bpe(chat=CHATML))
    write_rows("a.jsonl", [{"messages": talk(i)} for i in range(40)])
    write_rows("b.jsonl", [{"messages": talk(i)} for i in range(40, 70)])
    write_rows("v.jsonl", [{"messages": talk(i)} for i in range(9_070, 9_080)])
    return write_recipe(RECIPE)


def prepared(recipe: str, template: str = CHATML, *words: str) -> Prepared:
    found = read_recipe(recipe, words)
    module = import_module("hf_recipes.data.chat")
    made: Prepared = module.prepare(load_splits(found), bpe(chat=template), found, 64)
    return made


def pairs(rows: Any) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"], row["labels"]) for row in rows]


ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "messages": (CHATML, [{"messages": talk(i)} for i in range(60)]),
    "tool calls behind the first part of the file": (
        QWEN,
        [{"messages": talk(i) if i < 40 else call(i)} for i in range(60)],
    ),
    "pairs": (CHATML, [{"prompt": f"{TEXTS[i % 4]} ", "completion": f"{i}"} for i in range(60)]),
    "prompts": (QWEN, [{"prompt": talk(i)[:1], "completion": talk(i)[1:]} for i in range(60)]),
    "without an answer": (CHATML, [{"messages": talk(i)[: 1 + i % 2]} for i in range(60)]),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_pass_has_the_rows_of_the_table_in_an_order_of_the_seed(recipe: str, kind: str) -> None:
    template, rows = ROWS[kind]
    write_rows("a.jsonl", rows)
    words = ["dataset.data_files.train=a.jsonl", "dataset.chunksize=4000"]
    write_rows("v.jsonl", rows[1:20])
    table = prepared(recipe, template, *words, "dataset.streaming=false", "dataset.buffer_size=null")
    stored = pairs(table.train)
    streamed = prepared(recipe, template, *words)
    first = pairs(itertools.islice(streamed.train, 2 * len(stored)))
    assert sorted(first[: len(stored)]) == sorted(stored) == sorted(first[len(stored) :])
    assert first[: len(stored)] not in (stored, first[len(stored) :])
    assert pairs(itertools.islice(streamed.train, 9)) == first[:9]
    other = prepared(recipe, template, *words, "SFTConfig.seed=1")
    assert pairs(itertools.islice(other.train, 9)) != first[:9]
    assert content_of(streamed) == content_of(table)


def content_of(found: Prepared) -> Any:
    return pairs(found.evals["eval"]), found.row_bytes, found.ids


def test_a_run_streams_conversations_and_says_so(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = read_record(run(recipe, ["SFTConfig.max_steps=2"]), strict=True)
    out = capsys.readouterr().out
    assert "train streamed, eval 10 rows" in out and "the loss is on the parts marked >>" in out
    assert (record.data["train"].rows, record.steps, record.data["train"].lost_label_tokens) == (0, 2, 0)
    assert record.metrics.of("eval")["eval_perplexity"] > 1
    lengths = [len(ids) for ids, _ in pairs(itertools.islice(prepared(recipe).train, 70))]
    assert record.batch is not None and record.batch.tokens_per_step == round(4 * sum(lengths) / 70)


@pytest.mark.slow
def test_a_killed_run_learns_from_the_rows_of_one_that_is_not(recipe: str) -> None:
    run(recipe, ["SFTConfig.output_dir=straight"])
    draw = random.Random(2)
    run_until_killed(recipe, [], draw.randrange(3, 5))
    run_until_killed(recipe, [], draw.randrange(5, 8), resume=True)
    run(recipe, [], resume=True)
    assert final_state() == final_state("straight")


def test_two_processes_learn_from_the_rows_of_one_with_twice_the_batch(recipe: str) -> None:
    words = ["SFTConfig.save_strategy=no", "SFTConfig.max_steps=6"]
    code, output = run_ranks(
        lambda rank: main(["run", recipe, *words, "SFTConfig.per_device_train_batch_size=2", "SFTConfig.use_cpu=true"])
    )
    assert code == 0, output[-3000:]
    run(recipe, [*words, "SFTConfig.output_dir=one"])
    ours, theirs = (json.loads(Path(out, "record.json").read_text())["log_history"] for out in ("out", "one"))
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (ours, theirs)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-5)


BAD = {
    '{"messages": [{"role": "narrator", "content": "once"}]}': "b.jsonl:1501: message 0 has the role 'narrator'",
    '{"messages": "hello"}': "b.jsonl:1501:",
    '{"messages": [{"role": "user"': "b.jsonl:1501 is not JSON",
    '{"talk": []}': "b.jsonl:1501 has a column 'talk' that the first rows lack (they have messages)",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_that_a_run_meets_late_is_named_with_its_line(
    recipe: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "".join(json.dumps({"messages": talk(i)}) + "\n" for i in range(1_500))
    Path("b.jsonl").write_text(f"{good}{line}\n{good}", encoding="utf-8")
    words = ["dataset.data_files.train=b.jsonl", "dataset.chunksize=20000", "SFTConfig.per_device_train_batch_size=64"]
    with pytest.raises(SystemExit) as ended:
        main(["run", recipe, *words, "SFTConfig.max_steps=40"])
    printed = capsys.readouterr().err
    assert (ended.value.code, "Traceback" in printed) == (2, False)
    assert BAD[line] in printed


@pytest.mark.parametrize("name", ["packing", "padding_free", "shuffle_dataset"])
def test_what_needs_all_rows_is_refused(recipe: str, name: str) -> None:
    from hf_recipes.errors import RecipeError

    with pytest.raises(RecipeError, match=f"dataset.streaming: true: {name} needs all rows at once"):
        read_recipe(recipe, [f"SFTConfig.{name}=true"])
