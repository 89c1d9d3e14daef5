"""A run that is killed and resumed ends as the straight one does: same weights, same logged figures, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from hf_recipes.pipeline.run import run
from tests.support.killed_runs import final_state, run_until_killed
from tests.support.tiny_models import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows

# 21 rows of differing lengths; 2 a batch x 2 accumulation: 6 steps an epoch (the last one short), 13 are two epochs.
TRAINER = """
task: text-classification
disable_guards: [overlap]
model: {{pretrained_model_name_or_path: model, hidden_dropout_prob: 0.1}}
dataset: {{path: json, data_files: {{train: rows.jsonl, validation: rows.jsonl}}}}
TrainingArguments:
  output_dir: out
  max_steps: 15
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  warmup_steps: 3
  lr_scheduler_type: cosine
  logging_steps: 3
  save_steps: {save}
"""
SFT = """
task: chat
disable_guards: [overlap]
model: {{pretrained_model_name_or_path: model, attention_dropout: 0.1}}
dataset: {{path: json, data_files: {{train: rows.jsonl, validation: rows.jsonl}}}}
SFTConfig:
  output_dir: out
  max_steps: 15
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 1e-3
  logging_steps: 3
  save_steps: {save}
"""
LORA = "LoraConfig={r: 4, lora_alpha: 8, lora_dropout: 0.1, target_modules: all-linear}"


def texts() -> list[str]:
    return [" ".join(TEXTS[i % 4].split()[: 3 + i % 7]) for i in range(21)]


@pytest.fixture
def trainer(folder: Path, write_recipe: Callable[..., str]) -> Callable[[int], str]:
    words = sorted({word for text in texts() for word in text.split()})
    save_bert("model", wordpiece(words))
    write_rows("rows.jsonl", ({"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts())))
    return lambda save: write_recipe(TRAINER.format(save=save))


@pytest.fixture
def sft(folder: Path, write_recipe: Callable[..., str]) -> Callable[[int], str]:
    save_llama("model", bpe(chat=CHATML))
    write_rows(
        "rows.jsonl",
        (
            {"messages": [{"role": "user", "content": text[:9]}, {"role": "assistant", "content": text}]}
            for text in texts()
        ),
    )
    return lambda save: write_recipe(SFT.format(save=save))


def ends(recipe: str, words: list[str], kill: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(straight, resumed): what a run ends with, and what it ends with after a kill at a step."""
    run(recipe, words)
    straight = final_state()
    shutil.move("out", "straight")
    run_until_killed(recipe, words, kill)
    assert json.loads(Path("out/record.json").read_text(encoding="utf-8"))["status"] == "running"
    run(recipe, words, resume=True)
    return straight, final_state()


def compare(recipe: str, words: list[str], kill: int) -> None:
    straight, resumed = ends(recipe, words, kill)
    assert resumed["log"] == straight["log"]
    assert resumed == straight


# saves at 4 and 8 lie inside the first and the second epoch, between two log lines; a kill at 7 or 11 loses 3 steps
TRAINER_CASES = {
    "first epoch": (4, 7, []),
    "second epoch": (4, 11, []),
    "at an epoch's end": (6, 8, []),
    "workers": (4, 11, ["TrainingArguments.dataloader_num_workers=2"]),
    "persistent workers": (
        4,
        7,
        ["TrainingArguments.dataloader_num_workers=2", "TrainingArguments.dataloader_persistent_workers=true"],
    ),
    "length groups": (4, 11, ["TrainingArguments.train_sampling_strategy=group_by_length"]),
    "evaluation in between": (4, 11, ["TrainingArguments.eval_strategy=steps", "TrainingArguments.eval_steps=2"]),
    "8-bit optimizer": (4, 11, ["TrainingArguments.optim=adamw_bnb_8bit"]),
    "LoRA": (4, 11, [LORA]),
}
UNGUARDED = "disable_guards=[overlap, truncation, end_token]"  # rows of random words, cut at 32 tokens
SFT_CASES = {
    "second epoch": (4, 11, []),
    "packing": (4, 11, ["SFTConfig.packing=true", "SFTConfig.max_length=32", UNGUARDED]),
    "LoRA, packing, workers": (
        4,
        11,
        [
            LORA,
            "SFTConfig.packing=true",
            "SFTConfig.max_length=32",
            "SFTConfig.dataloader_num_workers=1",
            UNGUARDED,
        ],
    ),
    "length groups, SFT": (4, 11, ["SFTConfig.train_sampling_strategy=group_by_length"]),
    "activation checkpointing off, NEFTune": (
        4,
        11,
        ["SFTConfig.activation_checkpointing=false", "SFTConfig.neftune_noise_alpha=5"],
    ),
}


QUICK = ("persistent workers", "length groups", "LoRA, packing, workers")  # the others are `-m slow`


def _marked(cases: Iterable[str]) -> list[Any]:
    return [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", _marked(TRAINER_CASES))
def test_a_killed_run_of_trainer_ends_as_the_straight_one(trainer: Callable[[int], str], case: str) -> None:
    save, kill, words = TRAINER_CASES[case]
    compare(trainer(save), words, kill)


@pytest.mark.parametrize("case", _marked(SFT_CASES))
def test_a_killed_run_of_sft_trainer_ends_as_the_straight_one(sft: Callable[[int], str], case: str) -> None:
    save, kill, words = SFT_CASES[case]
    compare(sft(save), words, kill)


WITHOUT = {  # a case, and the part of LoopState that is replaced by upstream's behaviour
    "length groups": ("seed_sampler", lambda self, sampler, args: sampler),
    "persistent workers": ("seed_loader", lambda self, loader, args, epoch=0: loader),
    "first epoch": ("take_progress", lambda self: {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", WITHOUT)
def test_without_our_part_the_resumed_run_still_ends_elsewhere(
    trainer: Callable[[int], str], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day that one of these fails, that part of LoopState may go."""
    from hf_recipes.checkpoints.loop_state import LoopState

    monkeypatch.setattr(LoopState, *WITHOUT[case])
    save, kill, words = TRAINER_CASES[case]
    straight, resumed = ends(trainer(save), words, kill)
    assert resumed["steps"] == straight["steps"]
    assert resumed["log"] != straight["log"]


def test_early_stopping_counts_on_and_the_best_model_is_the_straight_runs(trainer: Callable[[int], str]) -> None:
    words = [
        "TrainingArguments.eval_strategy=steps",
        "TrainingArguments.eval_steps=2",
        "TrainingArguments.load_best_model_at_end=true",
        "TrainingArguments.metric_for_best_model=eval_loss",
        "TrainingArguments.save_total_limit=1",
        "TrainingArguments.learning_rate=0.1",  # diverges: the first evaluation is the best
        "EarlyStoppingCallback.early_stopping_patience=4",
    ]
    compare(trainer(2), words, 7)
    history = json.loads(Path("out/record.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 8 < 15  # four evaluations without a better one, two of them after the resumption
    assert [path.name for path in Path("out").glob("checkpoint-*")] == [f"checkpoint-{best}"]


def test_a_run_that_is_killed_again_and_again_ends_as_the_straight_one(trainer: Callable[[int], str]) -> None:
    recipe = trainer(2)
    run(recipe)
    straight = final_state()
    shutil.move("out", "straight")
    run_until_killed(recipe, [], 3)
    for step in (5, 6, 9, 14):
        run_until_killed(recipe, [], step, resume=True)
    run(recipe, resume=True)
    assert final_state() == straight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "more"), [(7, []), (11, ["TrainingArguments.train_sampling_strategy=group_by_length"])]
)
def test_two_processes_one_of_which_is_killed_end_as_the_straight_run(
    trainer: Callable[[int], str], root: Path, kill: int, more: list[str]
) -> None:
    recipe, words = trainer(4), ["TrainingArguments.per_device_train_batch_size=1", *more]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(root / "accelerate_configs/cpu_2.yaml"), "--main_process_port", "0"]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def launched(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*launch, *command], env=environment, capture_output=True, text=True, timeout=300)

    assert launched("-m", "hf_recipes.run", recipe, *words).returncode == 0
    straight = final_state()
    shutil.move("out", "straight")
    died = launched(str(root / "tests/support/kill_at_step.py"), str(kill), "1", recipe, *words)
    assert died.returncode != 0
    assert (
        not Path("out/record.json").exists() or json.loads(Path("out/record.json").read_text())["status"] != "finished"
    )
    resumed = launched("-m", "hf_recipes.run", recipe, *words, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert f"resuming from out/checkpoint-{kill - kill % 4}, step {kill - kill % 4} of 15" in resumed.stdout
    assert sorted(path.name for path in Path("out/checkpoint-4").glob("rng_state*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    assert final_state() == straight
