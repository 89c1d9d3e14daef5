"""Launches: two real processes give one run; one that is not what it looks like is refused with the line to use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_recipes.cli import main
from hf_recipes.common.device import Device
from hf_recipes.errors import RecipeError
from hf_recipes.pipeline import launch_checks
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe
from tests.support.forks import run_ranks

RANK_0 = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "1"}  # what a launcher sets, too

TEXT = """
task: causal-lm
model:
  config: {{model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
           num_key_value_heads: 1, max_position_embeddings: 64}}
BpeTrainer: {{vocab_size: 384}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  sample_by: paragraph
  split: {{train: "train[:6%]"}}
  {length}
{section}:
  output_dir: out
  max_steps: 4
  per_device_train_batch_size: 4
  learning_rate: 1e-3
  logging_steps: 1
  save_strategy: "no"
  {more}
"""
KINDS = {
    "Trainer": {"section": "TrainingArguments", "length": "max_length: 32", "more": ""},
    "SFTTrainer": {"section": "SFTConfig", "length": "", "more": "max_length: 32\n  packing: false"},
}


def _launch(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_run_with_the_losses_of_one_process_with_twice_the_batch(
    kind: str, root: Path, folder: Path, write_recipe: Callable[..., str]
) -> None:
    recipe = write_recipe(TEXT.format(root=root, **KINDS[kind]))
    if kind == "Trainer":  # once by the launcher itself
        config = str(root / "accelerate_configs/cpu_2.yaml")
        done = _launch(["--config_file", config, "-m", "hf_recipes.run", recipe], folder)
        code, output = done.returncode, done.stdout + done.stderr
    else:
        code, output = run_ranks(lambda rank: main(["run", recipe]))
    assert code == 0, output[-3000:]
    assert output.count("record   out/record.json") == 1
    reason = "2 processes without an accelerator; else each would act as if it were the only one"
    assert f"use_cpu: true ({reason})" in output
    two = json.loads((folder / "out/record.json").read_text())
    from hf_recipes.pipeline.run import run

    section = KINDS[kind]["section"]
    run(recipe, [f"{section}.per_device_train_batch_size=8", f"{section}.output_dir=one", f"{section}.use_cpu=true"])
    one = json.loads((folder / "one/record.json").read_text())
    assert two["batch"] == {**one["batch"], "per_device": 4, "processes": 2}
    losses = [[entry["loss"] for entry in r["log_history"] if "loss" in entry] for r in (two, one)]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert two["metrics"]["eval"]["eval_loss"] == pytest.approx(one["metrics"]["eval"]["eval_loss"], rel=1e-5)


def test_a_launch_that_quietly_starts_one_process_is_refused_with_the_line_to_use(
    root: Path, folder: Path, write_recipe: Callable[..., str]
) -> None:
    recipe = write_recipe(TEXT.format(root=root, **KINDS["Trainer"]))
    done = _launch(["--quiet", "--cpu", "--num_processes", "2", "-m", "hf_recipes.run", recipe], folder)
    assert done.returncode != 0
    assert (
        "accelerate launch: several processes were asked for, but this launch starts only one; "
        "use: accelerate launch --config_file accelerate_configs/cpu_2.yaml -m hf_recipes.run recipe.yaml"
    ) in done.stderr
    assert not (folder / "out").exists()


@pytest.fixture
def recipe(root: Path, write_recipe: Callable[..., str]) -> Recipe:
    return read_recipe(write_recipe(TEXT.format(root=root, **KINDS["Trainer"])))


def _lines(errors: list) -> list[str]:
    return [str(error) for error in errors]


def test_a_plain_start_has_no_error(recipe: Recipe) -> None:
    assert launch_checks.find_environment_errors(recipe, {}) == []
    assert (
        launch_checks.find_environment_errors(
            recipe, {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2", "MASTER_ADDR": "x", **RANK_0}
        )
        == []
    )


def test_an_accelerate_file_with_another_precision_is_refused(recipe: Recipe) -> None:
    assert _lines(launch_checks.find_environment_errors(recipe, {"ACCELERATE_MIXED_PRECISION": "bf16"})) == [
        "accelerate launch: accelerate's mixed_precision is bf16, the recipe's precision is fp32; "
        "set mixed_precision: 'no' there and bf16: true in the recipe's TrainingArguments"
    ]
    same = recipe.with_values({"TrainingArguments.bf16": True}, "test")
    assert launch_checks.find_environment_errors(same, {"ACCELERATE_MIXED_PRECISION": "bf16"}) == []


def test_an_accelerate_file_with_another_accumulation_is_refused(recipe: Recipe) -> None:
    environment = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    assert _lines(launch_checks.find_environment_errors(recipe, environment)) == [
        "accelerate launch: accelerate's gradient_accumulation_steps is 4, which Trainer ignores; "
        "set gradient_accumulation_steps in the recipe's TrainingArguments"
    ]
    same = recipe.with_values({"TrainingArguments.gradient_accumulation_steps": 4}, "test")
    assert launch_checks.find_environment_errors(same, environment) == []


def test_a_sharding_file_and_a_recipe_that_names_fsdp_are_refused(recipe: Recipe) -> None:
    named = recipe.with_values({"TrainingArguments.fsdp": True}, "recipe.yaml:99")
    assert _lines(launch_checks.find_environment_errors(named, {"ACCELERATE_USE_FSDP": "true"})) == [
        "recipe.yaml:99: the accelerate file shards with fsdp and the recipe names fsdp or deepspeed, which overrides "
        "it; "
        "remove it from the recipe"
    ]


def test_sharding_a_run_with_master_weights_is_refused(recipe: Recipe) -> None:
    master = recipe.with_values({"master_weights": True, "TrainingArguments.fp16": True}, "recipe.yaml:3")
    assert _lines(launch_checks.find_environment_errors(master, {"ACCELERATE_USE_DEEPSPEED": "true"})) == [
        "recipe.yaml:3: master_weights keeps complete fp32 copies, deepspeed shards them; use bf16: true with it"
    ]


def test_an_optimizer_that_cannot_step_on_sharded_weights_is_refused(recipe: Recipe) -> None:
    eight = recipe.with_values({"TrainingArguments.optim": "adamw_bnb_8bit"}, "recipe.yaml:7")
    assert _lines(launch_checks.find_environment_errors(eight, {"ACCELERATE_USE_FSDP": "true"})) == [
        "recipe.yaml:7: optim: adamw_bnb_8bit cannot step on weights that FSDP2 shards; "
        "write adamw_torch, or launch with accelerate_configs/deepspeed_zero3.yaml"
    ]
    assert launch_checks.find_environment_errors(eight, {"ACCELERATE_USE_DEEPSPEED": "true"}) == []


def test_an_optimizer_that_makes_other_steps_under_zero_is_a_warning(recipe: Recipe) -> None:
    rows = recipe.with_values({"TrainingArguments.optim": "adafactor"}, "recipe.yaml:7")
    assert _lines(launch_checks.find_environment_warnings(rows, {"ACCELERATE_USE_DEEPSPEED": "true"})) == [
        "recipe.yaml:7: optim: adafactor reads rows and columns, and ZeRO gives it flat parts: other steps than "
        "elsewhere; write adamw_torch, or launch with accelerate_configs/multi_gpu.yaml"
    ]
    assert launch_checks.find_environment_warnings(rows, {}) == []


def test_the_refused_optimizers_are_those_that_fail_on_a_sharded_weight(folder: Path) -> None:
    from tests.support.forks import run_ranks

    ended, output = run_ranks(lambda rank: print(*_failing_on_sharded_weights()), count=1)
    assert ended == 0, output
    failing, tried = (line.split() for line in output.splitlines()[-1].split("tried:"))
    assert {"adamw_torch", "adamw_bnb_8bit", "adafactor", "sgd"} <= set(tried)
    assert set(failing) == {name for name in tried if name.startswith(launch_checks.NOT_WITH_FSDP2)}


def _failing_on_sharded_weights() -> list[str]:
    """Names of the installed optimizers that fail, "tried:", and names of all."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    failing, tried = [], []
    args = TrainingArguments(output_dir="out", use_cpu=True)
    mesh = init_device_mesh("cpu", (1,))
    for name in (each.value for each in OptimizerNames):
        model = torch.nn.Linear(64, 128)
        args.optim = OptimizerNames(name)
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        except (ImportError, ValueError):  # a package that is not installed
            continue
        tried.append(name)
        fully_shard(model, mesh=mesh)
        optimizer = kind(model.parameters(), **options)
        model(torch.ones(8, 64)).pow(2).mean().backward()
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError):
            failing.append(name)
    return [*failing, "tried:", *tried]


def test_several_gpus_without_a_launcher_are_refused_with_the_command_to_use(recipe: Recipe) -> None:
    cards = Device(kind="cuda", name="NVIDIA A100", count=4, capability=(8, 0), bf16=True)
    assert _lines(launch_checks.find_device_errors(recipe, cards, {})) == [
        "accelerate launch: 4 GPUs are visible and no launcher is used: Trainer would take nn.DataParallel; "
        "use: accelerate launch --config_file accelerate_configs/multi_gpu.yaml -m hf_recipes.run recipe.yaml, "
        "or show one GPU with CUDA_VISIBLE_DEVICES=0"
    ]
    assert launch_checks.find_device_errors(recipe, cards, {"WORLD_SIZE": "4"}) == []


def test_fsdp_on_a_cpu_and_fsdp_1_are_refused() -> None:
    def refusal(kind: str, version: int) -> str:
        state = SimpleNamespace(distributed_type=kind, fsdp_plugin=SimpleNamespace(fsdp_version=version))
        with pytest.raises(RecipeError) as caught:
            launch_checks.assert_sharding(state, {"ACCELERATE_USE_FSDP": "true"})
        return str(caught.value)

    assert refusal("MULTI_CPU", 2) == (
        "accelerate launch: FSDP was asked for, and accelerate turns it off without a GPU: this would be plain DDP; "
        "use accelerate_configs/cpu_2.yaml on a CPU"
    )
    assert refusal("FSDP", 1) == (
        "accelerate launch: FSDP 1 is deprecated, and its checkpoints fit no other launch; "
        "set fsdp_version: 2 in the accelerate file"
    )


def test_a_world_that_is_not_the_launched_one_is_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        launch_checks.assert_world(None, {"WORLD_SIZE": "2"})
    assert str(caught.value) == (
        "accelerate launch: the launcher started 2 processes but this one sees 1: each would be rank 0; "
        "set use_cpu: true in the recipe, or launch on GPUs that this torch sees"
    )


def test_a_sharded_launch_is_recognised_by_its_environment() -> None:
    from hf_recipes.common.device import is_sharded

    assert is_sharded({"ACCELERATE_USE_FSDP": "true"}) and is_sharded({"ACCELERATE_USE_DEEPSPEED": "True"})
    assert not is_sharded({}) and not is_sharded({"ACCELERATE_USE_FSDP": "false"})


def test_the_command_that_goes_on_is_one_that_the_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/env/bin/{name}")
    assert launch_checks.resume_command("a.yaml", ["x=1"], {}) == ["hf-recipes", "run", "a.yaml", "x=1"]
    monkeypatch.setattr("shutil.which", lambda name: None)  # an environment that is not activated
    monkeypatch.setattr(sys, "argv", ["env/bin/hf-recipes", "run", "a.yaml"])
    assert launch_checks.resume_command("a.yaml", [], {}) == ["env/bin/hf-recipes", "run", "a.yaml"]
    monkeypatch.setattr(sys, "argv", ["hf_recipes/__main__.py", "run", "a.yaml"])
    assert launch_checks.resume_command("a.yaml", [], {}) == [sys.executable, "-m", "hf_recipes", "run", "a.yaml"]
