"""A step that runs out of memory is retried with a smaller micro-batch: the run ends as if there had been room."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_recipes.cli import main
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline.run import run
from tests.support.forks import run_ranks
from tests.support.limited_memory import limited_memory
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows

NEAR = 1e-5  # largest difference of a weight after six steps of Adam at 1e-3: sums in another order

TRAINER = """
task: text-classification
disable_guards: [overlap]
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
disable_guards: [overlap]
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


RunWithRoom = Callable[[str, list[str]], dict[str, list[float]]]


@pytest.fixture(scope="module")
def with_room(tmp_path_factory: pytest.TempPathFactory) -> RunWithRoom:
    """The folder `room` of a run that never ran out of memory, and what it logged; one run a recipe and its words."""
    runs: dict[tuple[str, ...], Path] = {}

    def straight(recipe: str, words: list[str]) -> dict[str, list[float]]:
        key = (Path(recipe).read_text(), *words)
        if key not in runs:
            run(recipe, words)
            runs[key] = tmp_path_factory.mktemp("straight") / "out"
            shutil.move("out", runs[key])
        shutil.copytree(runs[key], "room")
        entries = json.loads(Path("room/record.json").read_text())["log_history"]
        names = ("loss", "grad_norm", "eval_loss", "num_tokens", "mean_token_accuracy")
        return {name: [entry[name] for entry in entries if name in entry] for name in names}

    return straight


# when, rows that fit, first training forward that fails (4 a step: the 7th is number 3 of 4 in the second step)
PLACES = {
    "in the first forward": ("forward", 2, 1, 2),
    "in a backward": ("backward", 2, 3, 2),
    "at number 3 of 4, forward": ("forward", 1, 7, 4),
    "at number 3 of 4, backward": ("backward", 1, 7, 4),
}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        *(("trainer", place) for place in PLACES),
        *(pytest.param("sft", place, marks=[pytest.mark.slow] if "number" in place else []) for place in PLACES),
    ],
)
def test_a_step_that_is_out_of_memory_is_retried_in_pieces_and_the_run_ends_as_if_there_had_been_room(
    kind: str,
    place: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    with_room: RunWithRoom,
) -> None:
    recipe, (when, rows, call, pieces) = request.getfixturevalue(kind), PLACES[place]
    room = with_room(recipe, [])
    with limited_memory(when, rows, from_call=call) as tried:
        run(recipe)
    assert max(tried) == 4 and tried[-1] <= 0  # it did try the whole micro-batch
    assert apart("room", "out") < NEAR
    for name, values in room.items():
        assert logged(name) == pytest.approx(values, rel=1e-4, abs=1e-6), name
    found = record()
    assert [one["pieces"] for one in found["out_of_memory"]] == [2, 4][: pieces // 2]
    assert found["status"] == "finished" and found["steps"] == 6
    assert f"in {pieces} pieces; effective batch size, schedule and samples are unchanged" in capsys.readouterr().out


def test_the_split_is_saved_in_a_checkpoint_and_not_tried_again(trainer: str, with_room: RunWithRoom) -> None:
    room = with_room(trainer, [])
    with limited_memory("forward", 2):
        run(trainer, ["TrainingArguments.max_steps=4"])
        with limited_memory("forward", 2) as tried:
            run(trainer, ["TrainingArguments.max_steps=6"], resume=True)
    assert max(tried) == 2 and record()["out_of_memory"] == []
    assert len(room["loss"]) == len(logged("loss"))


def test_out_of_memory_in_the_optimizers_step_is_never_retried(trainer: str, with_room: RunWithRoom) -> None:
    with limited_memory("optimizer", 1, from_call=4), pytest.raises(RecipeError) as caught:
        run(trainer)
    message = str(caught.value)
    assert message.startswith("recipe.yaml:9: out of memory outside of forward and backward (the optimizer's step?) in")
    assert message.endswith("--resume continues from checkpoint-2, which is complete")
    assert (record()["status"], record()["steps"]) == ("out of memory", 3)
    run(trainer, resume=True)
    shutil.move("out", "resumed")
    room = with_room(trainer, [])
    shutil.move("resumed", "out")
    assert apart("out", "room") == 0.0 and logged("loss") == room["loss"]
    assert record()["tokens"] == json.loads(Path("room/record.json").read_text())["tokens"]


@pytest.mark.parametrize("kind", ["trainer", "sft"])
def test_an_evaluation_that_is_out_of_memory_is_made_in_pieces_with_the_same_scores(
    kind: str, request: pytest.FixtureRequest, with_room: RunWithRoom
) -> None:
    recipe = request.getfixturevalue(kind)
    with_room(recipe, [])
    with limited_memory("evaluation", 3):
        run(recipe)
    with_less, room = record(), json.loads(Path("room/record.json").read_text())
    assert [one["phase"] for one in with_less["out_of_memory"]] in ([], ["evaluation", "evaluation"])  # after training
    for name, value in room["metrics"]["eval"].items():
        if not name.endswith(("runtime", "per_second", "preparation_time")):
            assert with_less["metrics"]["eval"][name] == pytest.approx(value, rel=1e-5), name


def test_rows_that_are_packed_without_padding_are_split_at_document_borders(
    sft: str, capsys: pytest.CaptureFixture[str], with_room: RunWithRoom
) -> None:
    words = ["SFTConfig.packing=true", "SFTConfig.max_length=64"]
    room = with_room(sft, words)
    with limited_memory("forward", 12):
        run(sft, words)
    assert record()["out_of_memory"] and apart("room", "out") < NEAR
    assert logged("loss") == pytest.approx(room["loss"], rel=1e-4)


def test_the_balancing_loss_of_experts_counts_once_for_a_split_micro_batch(
    folder: Path, write_recipe: Callable[..., str], with_room: RunWithRoom
) -> None:
    bpe().save_pretrained("tokenizer")
    Path("text.txt").write_text("\n".join(TEXTS * 30))
    recipe = write_recipe("""
task: causal-lm
disable_guards: [overlap]
model:
  config: {model_type: mixtral, hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
           num_key_value_heads: 1, num_local_experts: 4, max_position_embeddings: 64, vocab_size: 340,
           output_router_logits: true, router_aux_loss_coef: 1.0}
tokenizer: {pretrained_model_name_or_path: tokenizer}
dataset: {path: text, data_files: text.txt, max_length: 16}
TrainingArguments: {output_dir: out, max_steps: 3, per_device_train_batch_size: 8, logging_steps: 1}
""")
    room = with_room(recipe, [])
    with limited_memory("forward", 2):
        run(recipe)
    assert record()["out_of_memory"][-1]["pieces"] == 4
    assert logged("loss") == pytest.approx(room["loss"], rel=0.05)  # four times the balancing loss would add a half
    assert room["loss"][0] > 7  # ln(340) and a balancing loss of about 2


def test_one_sample_that_does_not_fit_ends_the_run_with_its_last_checkpoint(trainer: str) -> None:
    with limited_memory("forward", 0, from_call=13), pytest.raises(RecipeError) as caught:
        run(trainer)
    assert "one sample does not fit: out of memory in forward, step 4" in str(caught.value)
    assert "--resume continues from checkpoint-2, which is complete" in str(caught.value)
    assert record()["status"] == "out of memory"


def test_with_dropout_the_log_reports_that_the_masks_differ(trainer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with limited_memory("backward", 2):
        run(trainer, ["model.hidden_dropout_prob=0.1"])
    assert "dropout draws other masks than in the unsplit step" in capsys.readouterr().out
    assert record()["status"] == "finished"


def launched(when: str, recipe: str) -> tuple[int, str]:
    """Exit code and output of two processes, of which the second has room for two rows only."""

    def rank(number: int) -> None:
        with limited_memory(when, 2) if number == 1 else contextlib.nullcontext():
            main(["run", recipe])

    return run_ranks(rank)


def test_the_second_of_two_processes_splits_alone_in_the_forward(trainer: str) -> None:
    ended, output = launched("nowhere", trainer)
    assert ended == 0, output[-3000:]
    losses = logged("loss")
    shutil.move("out", "room")
    Path("ranks.log").unlink()
    ended, output = launched("forward", trainer)
    assert ended == 0, output[-3000:]
    assert apart("room", "out") < NEAR
    assert logged("loss") == pytest.approx(losses, rel=1e-4)
    assert "in 2 pieces" in output


def test_in_a_backward_that_reduces_both_processes_end_with_one_message(trainer: str) -> None:
    recipe = "one.yaml"
    Path(recipe).write_text(Path(trainer).read_text().replace("gradient_accumulation_steps: 4", ""))
    ended, output = launched("backward", recipe)
    assert ended != 0
    assert "out of memory in the backward that reduces gradients" in output
    assert record()["status"] == "out of memory"
