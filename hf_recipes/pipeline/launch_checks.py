"""Whether a launch does what it looks like. Some do not, without a message (accelerate 1.15; docs/launching.md).

`find_environment_errors` reads only the environment, before torch is imported; `assert_world` looks again at what
accelerate made of it, after the training arguments are built and before a model is loaded.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_recipes.common.device import sharding
from hf_recipes.common.parent_watch import find_launcher
from hf_recipes.common.text import join_words
from hf_recipes.errors import Diagnostic, LaunchError
from hf_recipes.recipe import global_batch

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

WHERE = "accelerate launch"
# Optimizers by their first letters. bitsandbytes' kernels and Adafactor take no DTensor (tests/pipeline/
# test_launch_checks.py tries each one that is installed).
NOT_WITH_FSDP2 = ("adafactor", "ademamix", "adamw_bnb", "adamw_8bit", "lion_", "paged_", "rmsprop_bnb")
READS_ROWS_AND_COLUMNS = ("adafactor", "adalomo", "galore_", "apollo_")
LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # every launcher sets all of them


def resume_command(path: str, overrides: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """What to type to start this run again. Under a launcher: the launcher's own command line, where it can be seen."""
    if "WORLD_SIZE" not in environment:
        module = [sys.executable, "-m", "hf_recipes"]
        called = sys.argv[0] if os.path.basename(sys.argv[0]) == "hf-recipes" else ""
        return [*_program("hf-recipes", [called] if called else module), "run", path, *overrides]
    import psutil  # accelerate's

    launched = ["accelerate", "launch", "...", "-m", "hf_recipes.run", path, *overrides]
    try:
        arguments = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return launched
    begin = find_launcher(arguments)
    if begin is None:
        return launched
    name = os.path.basename(arguments[begin])
    if name in ("accelerate", "torchrun"):
        return [*_program(name, [arguments[begin]]), *arguments[begin + 1 :]]
    if name.startswith(("torch.", "deepspeed")):
        return [sys.executable, "-m", *arguments[begin:]]
    module = [sys.executable, "-m", "accelerate.commands.launch"]
    return [*_program("accelerate launch", module), *arguments[begin + 1 :]]


def _program(name: str, otherwise: list[str]) -> list[str]:
    """A program by its name if the shell finds it, as in an activated environment."""
    return name.split() if shutil.which(name.split()[0]) else otherwise


def find_environment_errors(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> list[Diagnostic]:
    """Launches that would not do what was asked, and accelerate files that say otherwise than the recipe."""
    processes = int(environment.get("WORLD_SIZE", "1"))
    errors = list(global_batch.find_errors(recipe, processes))
    if "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        # accelerate's simple_launcher, taken for --cpu, exports these for MPI and then starts one process
        what = "several processes were asked for, but this launch starts only one"
        fix = "use: accelerate launch --config_file accelerate_configs/cpu_2.yaml -m hf_recipes.run " + recipe.path
        errors.append(Diagnostic(location=WHERE, message=what, fix=fix))
    left, missing = ([name for name in LAUNCHED if bool(environment.get(name)) is given] for given in (True, False))
    if ("WORLD_SIZE" in left or "LOCAL_RANK" in left) and missing:
        # SLURM, Kubernetes or an earlier shell: torch would wait for processes that nobody started, or refuse
        what = (
            f"{join_words(left)} set without {join_words(missing)}: left over, since no launcher started this process"
        )
        fix = "unset WORLD_SIZE RANK LOCAL_RANK, or use: accelerate launch -m hf_recipes.run " + recipe.path
        errors.append(Diagnostic(location="environment", message=what, fix=fix))
    training, section = recipe.training, recipe.trainer
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    master = bool(recipe.get("master_weights"))
    asked = "bf16" if training.get("bf16") else "fp16" if training.get("fp16") and not master else "no"
    if precision != "no" and precision != asked:
        ours = "fp32" if asked == "no" else asked
        what = f"accelerate's mixed_precision is {precision}, the recipe's precision is {ours}"
        fix = f"set mixed_precision: 'no' there and {precision}: true in the recipe's {section}"
        errors.append(Diagnostic(location=WHERE, message=what, fix=fix))
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation.isdigit() and int(accumulation) not in (1, global_batch.accumulation_of(recipe, processes)):
        what = f"accelerate's gradient_accumulation_steps is {accumulation}, which Trainer ignores"
        fix = f"set gradient_accumulation_steps in the recipe's {section}"
        errors.append(Diagnostic(location=WHERE, message=what, fix=fix))
    for name in sharding(environment):
        if training.get("fsdp") or training.get("deepspeed"):
            what = f"the accelerate file shards with {name} and the recipe names fsdp or deepspeed, which overrides it"
            errors.append(
                Diagnostic(location=recipe.location(f"{section}.{name}"), message=what, fix="remove it from the recipe")
            )
        optim = str(training.get("optim") or "")
        if name == "fsdp" and optim.startswith(NOT_WITH_FSDP2):
            what = f"optim: {optim} cannot step on weights that FSDP2 shards"
            fix = "write adamw_torch, or launch with accelerate_configs/deepspeed_zero3.yaml"
            errors.append(Diagnostic(location=recipe.location(f"{section}.optim"), message=what, fix=fix))
        if master:
            what = f"master_weights keeps complete fp32 copies, {name} shards them"
            errors.append(
                Diagnostic(location=recipe.location("master_weights"), message=what, fix="use bf16: true with it")
            )
    return errors


def find_environment_warnings(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> list[Diagnostic]:
    """What is not the same run under this launch as on one process."""
    optim = str(recipe.training.get("optim") or "")
    if "deepspeed" in sharding(environment) and optim.startswith(READS_ROWS_AND_COLUMNS):
        what = f"optim: {optim} reads rows and columns, and ZeRO gives it flat parts: other steps than elsewhere"
        fix = "write adamw_torch, or launch with accelerate_configs/multi_gpu.yaml"
        return [Diagnostic(location=recipe.location(f"{recipe.trainer}.optim"), message=what, fix=fix)]
    return []


def find_device_errors(recipe: Recipe, device: Device, environment: Mapping[str, str] = os.environ) -> list[Diagnostic]:
    """What needs the device's facts: nn.DataParallel without a launcher."""
    errors = []
    if device.kind == "cuda" and device.count > 1 and "WORLD_SIZE" not in environment:
        what = f"{device.count} GPUs are visible and no launcher is used: Trainer would take nn.DataParallel"
        fix = (
            "use: accelerate launch --config_file accelerate_configs/multi_gpu.yaml "
            f"-m hf_recipes.run {recipe.path}, or show one GPU with CUDA_VISIBLE_DEVICES=0"
        )
        errors.append(Diagnostic(location=WHERE, message=what, fix=fix))
    return errors


def assert_world(args: Any, environment: Mapping[str, str] = os.environ) -> None:
    """The ranks that the launcher started are the ranks that Trainer sees. Raises LaunchError."""
    from accelerate import PartialState

    state = PartialState()
    started = int(environment.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        what = f"the launcher started {started} processes but this one sees {state.num_processes}: each would be rank 0"
        raise LaunchError.at(WHERE, what, "set use_cpu: true in the recipe, or launch on GPUs that this torch sees")
    if getattr(args, "n_gpu", 0) > 1:
        raise LaunchError.at(WHERE, "Trainer would take nn.DataParallel", "use accelerate_configs/multi_gpu.yaml")


def assert_sharding(state: Any, environment: Mapping[str, str] = os.environ) -> None:
    """What the accelerate file shards with is on, now that a trainer is built. `state`: its AcceleratorState. Raises
    LaunchError."""
    if "deepspeed" in sharding(environment) and state.deepspeed_plugin.zero_stage not in (2, 3):
        what = f"zero_stage is {state.deepspeed_plugin.zero_stage}, and this package runs ZeRO-2 and ZeRO-3"
        raise LaunchError.at(WHERE, what, "set zero_stage: 2 or 3 in the accelerate file, or use DDP")
    if "fsdp" not in sharding(environment):
        return
    if state.distributed_type != "FSDP":
        what = "FSDP was asked for, and accelerate turns it off without a GPU: this would be plain DDP"
        raise LaunchError.at(WHERE, what, "use accelerate_configs/cpu_2.yaml on a CPU")
    if state.fsdp_plugin.fsdp_version != 2:
        what = "FSDP 1 is deprecated, and its checkpoints fit no other launch"
        raise LaunchError.at(WHERE, what, "set fsdp_version: 2 in the accelerate file")
