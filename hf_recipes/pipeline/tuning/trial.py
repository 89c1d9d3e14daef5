"""One trial in this process: some real steps of a recipe on its own rows, timed. Nothing is saved or evaluated."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.pipeline.tuning.pairs import Trial
from hf_recipes.recipe.recipe import Recipe

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.pipeline.rows import RecipeRows

WARM_UP = 2  # steps that are not timed: memory is taken, kernels are chosen, programs compiled
CHECKED = 3  # first steps whose losses are compared
LOCATION = "tune"


class OutOfTrialMemoryError(Exception):
    """The trial's micro-batch does not fit."""


def short(recipe: Recipe, folder: str, steps: int, *, log_each: bool) -> Recipe:
    """The recipe for some steps that save, evaluate and report nothing. Its batch and precision are its own."""
    section = recipe.trainer
    values: dict[str, Any] = {
        "output_dir": folder, "max_steps": steps, "save_strategy": "no", "eval_strategy": "no", "eval_on_start": False,
        "load_best_model_at_end": False, "push_to_hub": False, "report_to": "none", "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding", "logging_first_step": False, "resume_from_checkpoint": None,
    }  # fmt: skip
    if log_each:
        values |= {"logging_strategy": "steps", "logging_steps": 1}
    sections = {
        name: value
        for name, value in recipe.sections.items()
        if name not in ("EarlyStoppingCallback", "sample_prompts")
    }
    found = replace(recipe, sections=sections)
    for name in ("save_steps", "eval_steps"):
        found = found.without_key(f"{section}.{name}")
    return found.with_values({f"{section}.{name}": value for name, value in values.items()}, LOCATION)


class TrialRunner:
    """Keeps the rows, which take time to read, from one trial to the next."""

    def __init__(self) -> None:
        self._rows: dict[str, RecipeRows] = {}

    def run(self, recipe: Recipe, steps: int, *, check: bool) -> Trial:
        """`steps` timed steps. `check`: instead the losses of the first steps, without dropout. Raises RecipeError for
        what a run would refuse, OutOfTrialMemoryError for a micro-batch that does not fit."""
        import torch

        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                return self._run(short(recipe, folder, CHECKED if check else WARM_UP + steps, log_each=check), check)
            except torch.OutOfMemoryError as problem:
                raise OutOfTrialMemoryError(str(problem)) from problem
            finally:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def _run(self, recipe: Recipe, check: bool) -> Trial:
        from transformers import set_seed

        from hf_recipes.common.device import this_device
        from hf_recipes.models.half_precision import prepare_model
        from hf_recipes.recipe.defaults import choose
        from hf_recipes.training import trainer as training
        from hf_recipes.training.signals import Listener
        from hf_recipes.training.step_timer import StepTimer

        began = time.perf_counter()
        device = this_device(use_cpu=bool(recipe.training.get("use_cpu")))
        recipe, _ = choose(recipe, device)
        rows = self.rows_of(recipe)
        recipe = recipe.with_values({recipe.max_length_key: rows.length}, LOCATION)
        args = training.build_arguments(recipe)
        set_seed(args.seed)
        model = self.build_model(recipe, rows, device)
        if recipe.get("master_weights"):
            model = prepare_model(model)
        if check:
            remove_dropout(model)
        clock = make_clock(device.kind == "cuda")
        with Listener(_silent).listening() as listener:
            session = training.Session(
                listener=listener, run_facts=lambda _: {}, timer=StepTimer(_silent), say=_silent
            )  # fmt: skip
            trainer = training.build_trainer(
                recipe, args, model, rows.tokenizer, rows.prepared, lambda _: {}, None, _silent, session
            )  # fmt: skip
            trainer.add_callback(clock)
            if device.kind == "cuda":
                import torch

                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        if trainer.parts.retry.splits:
            raise OutOfTrialMemoryError("a micro-batch was out of memory")
        losses = tuple(float(one["loss"]) for one in trainer.state.log_history if "loss" in one)
        return clock.trial(began, trainer, losses, check, device)

    def build_model(self, recipe: Recipe, rows: RecipeRows, device: Device) -> Any:
        from hf_recipes.models.build import build_model

        return build_model(recipe, rows.config, rows.tokenizer, rows.prepared.config, _silent)

    def rows_of(self, recipe: Recipe) -> RecipeRows:
        """Rows depend on packing, and on nothing else that is tried."""
        from hf_recipes.pipeline.rows import prepare_rows_of

        key = str([recipe.training.get(name) for name in ("packing", "padding_free")])
        if key not in self._rows:
            self._rows[key] = prepare_rows_of(recipe, _silent)
        return self._rows[key]


def make_clock(synchronize: bool) -> Any:
    """A callback with the end of each step, and the tokens until then."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.tokens: list[int] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if synchronize:
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())
            self.tokens.append(int(state.num_input_tokens_seen))

        def trial(self, began: float, trainer: Any, losses: tuple[float, ...], check: bool, device: Any) -> Trial:
            first = 0 if check else WARM_UP - 1
            model = trainer.plain_model()
            facts = _utilization(trainer, model, device)
            return Trial(
                seconds=tuple(b - a for a, b in zip(self.ends[first:], self.ends[first + 1 :], strict=False)),
                tokens=tuple(b - a for a, b in zip(self.tokens[first:], self.tokens[first + 1 :], strict=False)),
                losses=() if check else losses,
                first_losses=losses if check else (),
                waiting=trainer.parts.wait.seconds,
                start_seconds=self.ends[first] - began,
                peak_bytes=torch.cuda.max_memory_allocated() if synchronize else None,
                attention=getattr(model.config, "_attn_implementation", None),
                **facts,
            )

    return Clock()


def _utilization(trainer: Any, model: Any, device: Any) -> dict[str, float | None]:
    from hf_recipes.pipeline.facts import describe_device
    from hf_recipes.pipeline.utilization import describe_utilization
    from hf_recipes.record import Batch

    length = trainer.state.num_input_tokens_seen / max(1, trainer.state.global_step * trainer.args.train_batch_size)
    length /= trainer.args.gradient_accumulation_steps
    batch = Batch(processes=1, sequences_per_step=1, tokens_per_step=round(length))
    found = describe_utilization(model, trainer.args, batch, describe_device(device))
    return {"flops_per_token": found.flops_per_token, "peak_flops": found.peak_flops}


def remove_dropout(model: Any) -> None:
    """So that two settings that draw other numbers compute the same losses."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def facts_here(recipe: Recipe) -> Mapping[str, Any]:
    """What candidates depend on: the device and what is installed."""
    import importlib.util
    import shutil

    from hf_recipes.common.device import this_device

    device = this_device(use_cpu=bool(recipe.training.get("use_cpu")))
    packages = [name for name in ("flash_attn", "liger_kernel", "triton") if importlib.util.find_spec(name)]
    if shutil.which("g++") or shutil.which("clang++"):
        packages.append("c++")
    return {**asdict(device), "packages": packages, "kernels": cached_kernels()}


def cached_kernels() -> list[str]:
    """Attention kernels of the Hub that are in its cache already, by upstream's names: nothing is downloaded. Needs the
    package `kernels`."""
    import importlib.util

    if importlib.util.find_spec("kernels") is None:
        return []
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.modeling_flash_attention_utils import FLASH_ATTN_KERNEL_FALLBACK

    names = dict.fromkeys(FLASH_ATTN_KERNEL_FALLBACK.values())
    return [name for name in names if Path(HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "snapshots").is_dir()]


def _silent(line: str = "") -> None:
    """What a run would print."""
