"""A step that runs out of memory is made again in pieces: the run ends as if there had been room."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_recipes.run import run
from tests.scarce import scarce
from tests.small import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows

NEAR = 2e-6  # largest difference of a weight after six steps: sums in another order

TRAINER = """
task: text-classification
train_despite: [overlap]
model: {pretrained_model_name_or_path: model, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}
dataset: {path: json, data_files: {train: rows.jsonl, validation: rows.jsonl}}
TrainingArguments:
  output_dir: out
  max_steps: 6
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 4
  learning_rate: 1e-3
  logging_steps: 1
  save_steps: 2
"""
SFT = """
task: chat
train_despite: [overlap]
model: {pretrained_model_name_or_path: model}
dataset: {path: json, data_files: {train: rows.jsonl, validation: rows.jsonl}}
SFTConfig:
  output_dir: out
  max_steps: 6
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 4
  learning_rate: 1e-3
  logging_steps: 1
  save_steps: 2
"""


def texts() -> list[str]:
    return [" ".join(TEXTS[i % 4].split()[: 3 + i % 7]) for i in range(41)]


@pytest.fixture
def trainer(folder: Path, write_recipe: Callable[..., str]) -> str:
    words = sorted({word for text in texts() for word in text.split()})
    save_bert("model", wordpiece(words))
    write_rows("rows.jsonl", ({"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts())))
    return write_recipe(TRAINER)


@pytest.fixture
def sft(folder: Path, write_recipe: Callable[..., str]) -> str:
    save_llama("model", bpe(chat=CHATML))
    rows = [[{"role": "user", "content": t[:9]}, {"role": "assistant", "content": t}] for t in texts()]
    write_rows("rows.jsonl", ({"messages": messages} for messages in rows))
    return write_recipe(SFT)


def apart(first: str, second: str) -> float:
    """The largest difference of a weight."""
    a, b = (load_file(next(Path(folder).glob("*.safetensors"))) for folder in (first, second))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/record.json").read_text())
    return found


def logged(name: str) -> list[float]:
    return [entry[name] for entry in record()["log_history"] if name in entry]


def with_room(recipe: str, words: list[str]) -> dict[str, list[float]]:
    run(recipe, words)
    found = {name: logged(name) for name in ("loss", "grad_norm", "eval_loss", "num_tokens", "mean_token_accuracy")}
    shutil.move("out", "room")
    return found


# when, rows that fit, first training forward that fails (4 a step: the 11th is number 3 of 4 in the third step)
PLACES = {
    "in the first forward": ("forward", 2, 1, 2),
    "in a backward": ("backward", 2, 3, 2),
    "at number 3 of 4, forward": ("forward", 1, 11, 4),
    "at number 3 of 4, backward": ("backward", 1, 11, 4),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_a_step_that_is_out_of_memory_is_made_in_pieces_and_the_run_ends_as_if_there_had_been_room(
    kind: str, place: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, (when, rows, call, pieces) = request.getfixturevalue(kind), PLACES[place]
    room = with_room(recipe, [])
    with scarce(when, rows, from_call=call) as tried:
        run(recipe)
    assert max(tried) == 4 and tried[-1] <= 0  # it did try the whole micro-batch
    assert apart("room", "out") < NEAR
    for name, values in room.items():
        assert logged(name) == pytest.approx(values, rel=1e-4, abs=1e-6), name
    told = record()
    assert [one["pieces"] for one in told["out_of_memory"]] == [2, 4][: pieces // 2]
    assert told["status"] == "finished" and told["steps"] == 6
    assert f"in {pieces} pieces; batch, schedule and samples are the same" in capsys.readouterr().out
