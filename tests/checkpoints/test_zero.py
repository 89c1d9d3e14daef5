"""DeepSpeed's ZeRO-2 and ZeRO-3: a run on two processes ends and resumes as one process does, and its files fit every
launch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_recipes.cli import main
from tests.support.forks import run_forked, run_ranks
from tests.support.sharded_ranks import run_fsdp, run_zero

pytest.importorskip("deepspeed", reason="pip install '.[test]' brings it on Linux")
pytestmark = pytest.mark.slow

TEXT = """
task: causal-lm
model:
  config: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
           num_key_value_heads: 1, max_position_embeddings: 64, tie_word_embeddings: true}}
BpeTrainer: {{vocab_size: 385}}
{lora}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  sample_by: paragraph
  split: {{train: "train[:6%]"}}
  max_length: 32
global_batch_size: 8
TrainingArguments:
  output_dir: out
  max_steps: 6
  per_device_train_batch_size: 4
  learning_rate: 1e-2
  lr_scheduler_type: constant
  logging_steps: 1
  eval_strategy: steps
  eval_steps: 2
  save_steps: 2
  load_best_model_at_end: true
  use_cpu: true
"""
LORA = "LoraConfig: {r: 4, lora_alpha: 64, target_modules: [q_proj, v_proj]}"
KINDS = {"full": "", "lora": LORA}


@pytest.fixture
def launch(root: Path, write_recipe: Callable[..., str]) -> Callable[..., str]:
    """Starts a run of a kind of recipe on one process or two; returns its output."""

    def start(how: str, kind: str, out: str, *words: str) -> str:
        recipe = write_recipe(TEXT.format(root=root, lora=KINDS[kind]), f"{kind}.yaml")
        arguments = ["run", recipe, f"TrainingArguments.output_dir={out}", *words]
        if how == "one":
            code, output = run_forked(arguments, None)
        else:
            ranks = {
                "ddp": run_ranks,
                "fsdp": run_fsdp,
                "zero2": lambda work, **more: run_zero(work, 2, **more),
                "zero3": lambda work, **more: run_zero(work, 3, **more),
            }[how]
            code, output = ranks(lambda rank: main(arguments), output=f"{out}.log")
        assert code == 0, output[-4000:]
        return output

    return start


def record(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "record.json").read_text())
    return found


def losses(out: str) -> list[float]:
    return [entry["loss"] for entry in record(out)["log_history"] if "loss" in entry]


def weights(out: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (file,) = Path(out).glob("*model.safetensors")
    return load_file(file)


def assert_same_run(one: str, other: str) -> None:
    """To rounding: the order of sums differs."""
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)
    before, after = record(one), record(other)
    assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-5)
    assert after["metrics"]["eval"]["eval_loss"] == pytest.approx(before["metrics"]["eval"]["eval_loss"], rel=1e-6)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("how", "kind"), [("zero2", "full"), ("zero3", "full"), ("zero3", "lora")])
def test_a_sharded_run_is_that_of_one_process_from_its_first_weights_to_its_end(launch, how, kind):
    launch("one", kind, "one")
    launch(how, kind, "two")
    assert_same_run("one", "two")
    assert json.loads(Path("two/checkpoint-6/manifest.json").read_text())["world_size"] == 2
    names = {path.name for path in Path("two/checkpoint-6").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"} <= names
    assert not [name for name in names if name.startswith(("global_step", "zero_", "latest"))]
    if kind == "full":
        from transformers import AutoModelForCausalLM

        ids = torch.arange(32)[None]
        logits = [AutoModelForCausalLM.from_pretrained(out)(ids).logits for out in ("one", "two")]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("first", ["zero2", "zero3", "one"])
def test_a_checkpoint_continues_on_every_launch_and_the_mean_loss_is_of_all_steps(launch, first):
    launch("one", "full", "straight")
    launch(first, "full", "out", "TrainingArguments.max_steps=4", "TrainingArguments.save_steps=4")
    begun = Path("out").rename("begun")
    then = ("zero2", "zero3", "fsdp", "one") if first == "zero2" else ("zero3",) if first == "zero3" else ("zero2",)
    for how in then:
        source = f"TrainingArguments.resume_from_checkpoint={begun}/checkpoint-4"
        output = launch(how, "full", how, source)
        assert "resuming from begun/checkpoint-4, step 4 of 6" in output
        assert losses(how) == pytest.approx(losses("straight"), rel=1e-5)
        assert record(how)["train_loss"] == pytest.approx(record("straight")["train_loss"], rel=1e-5)


@pytest.mark.parametrize("how", ["zero2", "zero3"])
def test_a_model_is_evaluated_without_training(launch, how):
    launch("one", "full", "trained", "TrainingArguments.max_steps=2")
    model = "model={pretrained_model_name_or_path: trained, config: null}"
    launch(how, "full", "evaluated", "TrainingArguments.do_train=false", model, "BpeTrainer=null")
    ours, theirs = (record(out)["metrics"]["eval"]["eval_loss"] for out in ("evaluated", "trained"))
    assert ours == pytest.approx(theirs, rel=1e-6)
