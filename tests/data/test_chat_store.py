"""Chat rows are stored as text is: the same rows however they were made, found again, and never wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import trl

from hf_recipes.data.prepared import Prepared
from hf_recipes.data.splits import load_splits
from hf_recipes.data.tokens.parts import read_part, write_part
from hf_recipes.recipe.recipe import Recipe
from tests.support.tiny_models import CHATML, TEXTS, bpe, prepare, refusal, write_rows

Make = Callable[..., Recipe]
QWEN = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")


def talk(i: int) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": f"{TEXTS[i % 4]} {i}"}
    return [asked, {"role": "assistant", "content": f"  {TEXTS[(i + 1) % 4]} é {i}\n"}] * (1 + i % 3)


def call(i: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "miles", "arguments": {"stop": i}}}


TOOL = {"type": "function", "function": {"name": "miles", "parameters": {"type": "object", "properties": {}}}}
KINDS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": talk(i)} for i in range(60)],
    "tools": [
        {
            "messages": [
                *talk(i),
                {"role": "user", "content": "how far?"},
                {"role": "assistant", "content": "", "tool_calls": [call(i)]},
                {"role": "tool", "name": "miles", "content": str(i)},
                {"role": "assistant", "content": f"{i} miles"},
            ],
            "tools": [TOOL],
        }
        for i in range(40)
    ],
    "pairs": [{"prompt": TEXTS[i % 4] + " ", "completion": f"{TEXTS[i % 3]} {i}"} for i in range(60)],
    "prompts": [{"prompt": talk(i)[:1], "completion": talk(i)[1:2]} for i in range(60)],
    "alpaca": [{"instruction": TEXTS[i % 4], "input": "x" * (i % 2), "output": f"{i}"} for i in range(60)],
}


def content(prepared: Prepared) -> Any:
    rows = {split: data[:] for split, data in {"train": prepared.train, **prepared.evals}.items()}
    return rows, prepared.row_bytes, prepared.ids, prepared.stats, prepared.notes


def folder_of(prepared: Prepared) -> str:
    return str(Path(prepared.train.cache_files[0]["filename"]).parent)


@pytest.mark.parametrize(
    ("kind", "template"),
    [
        ("messages", CHATML),
        ("messages", QWEN),
        ("tools", QWEN),
        ("pairs", CHATML),
        ("prompts", QWEN),
        ("alpaca", CHATML),
    ],
    ids=lambda one: one if one in KINDS else "marked" if one == CHATML else "unmarked",
)
def test_several_processes_make_the_rows_of_one(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, template: str
) -> None:
    tokenizer = bpe(chat=template)
    files = write_rows("t.jsonl", KINDS[kind]), write_rows("v.jsonl", KINDS[kind][:9])
    found = []
    for processes, unit in ((1, 2**23), (2, 3000)):
        monkeypatch.setattr("hf_recipes.data.tokens.source.UNIT", unit)
        named = f"data_files: {{train: {files[0]}, validation: {files[1]}}}, cache_dir: {folder / str(unit)}"
        recipe = make("chat", named, section="SFTConfig", arguments=f"dataset_num_proc: {processes}")
        found.append(content(prepare(recipe, load_splits(recipe).train, tokenizer, length=600)))
    assert found[0] == found[1]


def test_stored_rows_are_found_again_by_another_learning_rate_and_not_by_another_template(
    make: Make, folder: Path
) -> None:
    rows, store = KINDS["messages"], f"cache_dir: {folder / 'cache'}"
    first = prepare(make("chat", store, section="SFTConfig"), rows, bpe(chat=CHATML), length=80)
    same = make("chat", store, section="SFTConfig", arguments="learning_rate: 1.0e-5")
    assert folder_of(prepare(same, rows, bpe(chat=CHATML), length=80)) == folder_of(first)
    every = make("chat", store, section="SFTConfig", arguments="assistant_only_loss: false")
    others = [
        prepare(same, rows, bpe(chat=CHATML.replace("kind", "good")), length=80),
        prepare(same, rows, bpe(chat=CHATML), length=79),
        prepare(every, rows, bpe(chat=CHATML), length=80),
        prepare(same, [*rows[:-1], {"messages": talk(99)}], bpe(chat=CHATML), length=80),
    ]
    assert len({folder_of(one) for one in (first, *others)}) == 5


def test_a_row_that_is_no_conversation_is_named_whatever_process_finds_it(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_recipes.data.tokens.source.UNIT", 1000)
    rows = [*KINDS["messages"]]
    for i in (37, 52):
        rows[i] = {"messages": [{"role": "narrator", "content": "once"}, *talk(i)]}
    messages = [
        refusal(make("chat", section="SFTConfig", arguments=f"dataset_num_proc: {n}"), rows, bpe(chat=CHATML))
        for n in (1, 2)
    ]
    assert messages[0] == messages[1] and "row 37 of the train split" in messages[0] and "(2 of 60 rows)" in messages[0]


def test_a_killed_preparation_of_chat_rows_is_continued(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_recipes.data.tokens.source.UNIT", 1000)
    tokenizer, cache = bpe(chat=CHATML), folder / "cache"
    rows = [{"messages": talk(i)} for i in range(150)]
    whole = make("chat", f"cache_dir: {folder / 'whole'}", section="SFTConfig")
    expected = content(prepare(whole, rows, tokenizer, length=80))
    recipe = make("chat", f"cache_dir: {cache}", section="SFTConfig", arguments="dataset_num_proc: 1")
    process = get_context("fork").Process(target=lambda: prepare(recipe, rows, tokenizer, length=80))
    process.start()
    while process.is_alive() and len(list(cache.rglob("*.npz"))) < 5:
        time.sleep(0.001)
    process.kill()
    process.join()
    parts = sorted(cache.rglob("*.npz"))
    known = read_part(parts[0])
    assert known is not None
    known["ids"][0] += 1  # shows that the part is used, and not made again
    write_part(parts[0], known)
    continued = content(prepare(recipe, rows, tokenizer, length=80))
    assert continued[0]["train"]["input_ids"][0][0] == expected[0]["train"]["input_ids"][0][0] + 1
    continued[0]["train"]["input_ids"][0][0] -= 1
    assert continued[0]["train"] == expected[0]["train"]


def test_labels_are_stored_in_four_bytes_and_ids_in_two(make: Make, folder: Path) -> None:
    store = f"cache_dir: {folder / 'cache'}"
    found = prepare(make("chat", store, section="SFTConfig"), KINDS["messages"], bpe(chat=CHATML), length=80)
    kinds = {name: one.feature.dtype for name, one in found.train.features.items()}
    assert kinds == {"input_ids": "uint16", "labels": "int32"}
    index = json.loads((Path(folder_of(found)) / "index.json").read_text(encoding="utf-8"))
    assert index["tokens"] == found.stats["train"].tokens
