"""Optimizer, learning rate, warm-up, steps, batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_recipes.common.text import nearest
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.global_batch import ACCUMULATION, KEY, find_errors, global_batch_of, rows_per_device
from hf_recipes.recipe.rules.rule import Rule, is_given, is_true, number_of, report_argument, report_key, text_of

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

# What lr_scheduler_kwargs may hold (transformers/optimization.py:960 get_scheduler; torch's ReduceLROnPlateau).
_PLATEAU = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")
SCHEDULER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": _PLATEAU,
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ),
    "greedy": (*_PLATEAU, "warmup", "max_lr", "verbose", "smooth", "window_size", "reset_start"),
}
NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")  # get_scheduler passes them no num_warmup_steps
NEED_EVALUATION = ("reduce_lr_on_plateau", "greedy")

# Keys of optim_args that an optimizer reads (transformers/trainer_optimizer.py); a family by its first letters.
_ADEMAMIX = ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")
OPTIM_ARGS: tuple[tuple[str, tuple[str, ...] | None], ...] = (
    ("adamw_anyprecision", ("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype")),
    ("adamw_torch_4bit", ("block_size", "bf16_stochastic_round")),
    ("adamw_torch_8bit", ("block_size", "bf16_stochastic_round")),
    ("sgd", ("momentum", "dampening", "weight_decay", "nesterov")),
    ("adagrad", ("lr_decay", "weight_decay", "eps")),
    ("rmsprop_bnb", None),  # passed on as it is
    ("rmsprop", ("momentum", "alpha", "eps", "weight_decay", "centered")),
    ("galore", ("rank", "update_proj_gap", "scale", "proj_type")),
    ("apollo", ("rank", "proj", "scale_type", "update_proj_gap", "scale", "proj_type")),
    ("grokadamw", ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping")),
    ("schedule_free", ("weight_lr_power", "r")),
    ("stable_adamw", ("max_lr", "kahan_sum", "decouple_lr")),
    ("ademamix", _ADEMAMIX),
    ("paged_ademamix", _ADEMAMIX),
    ("", ()),  # all others ignore optim_args
)


def optim_args_of(optim: str) -> tuple[str, ...] | None:
    return next(names for start, names in OPTIM_ARGS if optim.startswith(start))


def warmup_that_is_ignored(recipe: Recipe) -> Iterator[Diagnostic]:
    """get_scheduler gives `constant` (and two others) no warm-up, and no warning."""
    schedule, steps = text_of(recipe, "lr_scheduler_type"), number_of(recipe, "warmup_steps")
    own = text_of(recipe, "optim").startswith("schedule_free")  # these warm up by themselves
    if schedule in NO_WARMUP and steps and not own:
        fix = "write lr_scheduler_type: constant_with_warmup" if schedule == "constant" else "leave warmup_steps out"
        yield report_argument(recipe, "warmup_steps", f"lr_scheduler_type: {schedule} ignores warmup_steps", fix)


def warmup_that_is_one_step(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:2154: below 1 a share, from 1 on int(steps): 1.0 is one step and 10.7 are ten."""
    steps = number_of(recipe, "warmup_steps")
    if not isinstance(steps, float) or steps < 1:
        return
    if steps == 1:
        what, fix = "warmup_steps: 1.0 is one step, not 100 %", "write 1, or 0.999999999 for all steps"
        yield report_argument(recipe, "warmup_steps", what, fix)
    elif steps != int(steps):
        yield report_argument(
            recipe, "warmup_steps", f"warmup_steps: {steps} is cut to {int(steps)} steps", "write a whole number"
        )


def warmup_without_end(recipe: Recipe) -> Iterator[Diagnostic]:
    """The learning rate would never reach its value."""
    steps, most = number_of(recipe, "warmup_steps"), number_of(recipe, "max_steps")
    if steps and most and steps >= 1 and 0 < most <= steps:
        yield report_argument(
            recipe, "warmup_steps", f"warmup_steps: {steps} of max_steps: {most}: the run is all warm-up"
        )


def scheduler_arguments(recipe: Recipe) -> Iterator[Diagnostic]:
    """An unknown argument is a TypeError at train(), after the model is loaded; `constant` ignores all of them."""
    schedule, given = text_of(recipe, "lr_scheduler_type"), recipe.training.get("lr_scheduler_kwargs")
    given = given if isinstance(given, dict) else {}
    known = SCHEDULER_ARGUMENTS.get(schedule)
    where = "lr_scheduler_kwargs"
    for name in given if known is not None else ():
        if known is not None and name not in known:
            yield report_argument(
                recipe,
                f"{where}.{name}",
                f"lr_scheduler_type: {schedule} has no {name}",
                _scheduler_fix(str(name), schedule, known),
            )
    if schedule in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        floors = [name for name in ("min_lr", "min_lr_rate") if given.get(name) is not None]
        if len(floors) != 1:
            many = "both" if floors else "none"
            what = f"lr_scheduler_type: {schedule} needs one of min_lr and min_lr_rate, and has {many}"
            key = where if where in recipe.training else "lr_scheduler_type"
            yield report_argument(recipe, key, what, "write lr_scheduler_kwargs: {min_lr_rate: 0.1}")
    if schedule == "warmup_stable_decay" and given.get("num_decay_steps") is None:
        what = "lr_scheduler_type: warmup_stable_decay needs num_decay_steps"
        yield report_argument(recipe, "lr_scheduler_type", what, "write lr_scheduler_kwargs: {num_decay_steps: ...}")


def _scheduler_fix(name: str, schedule: str, known: tuple[str, ...]) -> str:
    if name in ("min_lr", "min_lr_rate", "min_lr_ratio") and schedule == "cosine":
        return "write lr_scheduler_type: cosine_with_min_lr with min_lr_rate"
    if name == "min_lr_ratio" and "min_lr_rate" in known:
        return "did you mean 'min_lr_rate'?"
    near = nearest(name, known)
    if near:
        return f"did you mean {near!r}?"
    return f"it has {', '.join(known)}" if known else "it has no arguments of its own"


def scheduler_without_evaluation(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:1792: "lr_scheduler_type reduce_lr_on_plateau requires an eval strategy"."""
    schedule = text_of(recipe, "lr_scheduler_type")
    if schedule in NEED_EVALUATION and text_of(recipe, "eval_strategy") == "no":
        what = f"lr_scheduler_type: {schedule} follows evaluations, and eval_strategy is no"
        yield report_argument(recipe, "lr_scheduler_type", what, "write eval_strategy: epoch or steps")


def optim_args_that_are_ignored(recipe: Recipe) -> Iterator[Diagnostic]:
    """trainer_optimizer.py: adamw_torch with optim_args amsgrad=True trains without amsgrad, without a warning."""
    given = recipe.training.get("optim_args")
    optim = text_of(recipe, "optim") or "adamw_torch"
    if not isinstance(given, str) or not given:
        return
    names = []
    for pair in given.replace(" ", "").split(","):
        name, equals, text = pair.partition("=")
        names.append(name)
        if not name or not equals or not text or "=" in text:
            what = f"optim_args: {given!r} is not a list of key=value"
            yield report_argument(recipe, "optim_args", what, "write it as 'key=value, key=value'")
            return
    known = optim_args_of(optim)
    for name in names if known is not None else ():
        if known is not None and name not in known:
            near = nearest(name, known)
            fix = f"did you mean {near!r}?" if near else (f"it reads {', '.join(known)}" if known else "leave it out")
            yield report_argument(recipe, "optim_args", f"optim: {optim} ignores {name} in optim_args", fix)


def low_rank_optimizers(recipe: Recipe) -> Iterator[Diagnostic]:
    """trainer_optimizer.py: "You need to define `optim_target_modules`"; layer-wise ones take no accumulation."""
    optim = text_of(recipe, "optim")
    if not optim.startswith(("galore_", "apollo_")):
        return
    if recipe.training.get("optim_target_modules") is None:
        yield report_argument(
            recipe, "optim", f"optim: {optim} needs optim_target_modules", "write optim_target_modules: all-linear"
        )
    if optim.endswith("_layerwise") and recipe.get(KEY) is not None:
        what = f"optim: {optim} steps inside backward, and {KEY} may ask for accumulation"
        yield report_key(recipe, KEY, what, "state per_device_train_batch_size alone")
    elif optim.endswith("_layerwise") and (number_of(recipe, "gradient_accumulation_steps") or 1) > 1:
        what = f"optim: {optim} steps inside backward, so it takes no gradient_accumulation_steps"
        yield report_argument(
            recipe, "gradient_accumulation_steps", what, "write 1, or take the optimizer without _layerwise"
        )


def batch_size_that_changes_by_itself(recipe: Recipe) -> Iterator[Diagnostic]:
    """accelerate/utils/memory.py:167: after an out-of-memory the step count and the schedule start again
    on weights already trained, and the effective batch is smaller than the recipe says."""
    if is_true(recipe, "auto_find_batch_size"):
        what = "auto_find_batch_size changes the effective batch and restarts the schedule on trained weights"
        fix = "state per_device_train_batch_size and gradient_accumulation_steps"
        yield report_argument(recipe, "auto_find_batch_size", what, fix)


def global_batch_that_no_launch_keeps(recipe: Recipe) -> Iterator[Diagnostic]:
    """global_batch.py; the number of processes is known at the launch, which asks again (launch_checks.py)."""
    yield from find_errors(recipe)


def global_batch_of_one_launch(recipe: Recipe) -> Iterator[Diagnostic]:
    """Both keys are right on one number of processes only."""
    whole, steps = global_batch_of(recipe), recipe.training.get(ACCUMULATION)
    unit = rows_per_device(recipe) * steps if isinstance(steps, int) and steps > 0 else 0
    if whole and unit and whole % unit == 0 and whole > unit:
        what = f"{KEY}: {whole} with {ACCUMULATION}: {steps} fits a launch of {whole // unit} processes only"
        yield report_argument(recipe, ACCUMULATION, what, f"remove {ACCUMULATION}: {KEY} decides it")


def epochs_that_are_ignored(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer.py:727: "it will override any value given in num_train_epochs" (at info level)."""
    most = number_of(recipe, "max_steps")
    if most and most > 0 and is_given(recipe, "num_train_epochs"):
        what = f"num_train_epochs has no effect: max_steps: {most} wins"
        yield report_argument(recipe, "num_train_epochs", what, "keep one of them (max_steps: -1 means none)")


# torch.utils.checkpoint.checkpoint's keywords that a file can hold, and transformers' own (modeling_utils.py:3110).
CHECKPOINTING_ARGUMENTS = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
CHECKPOINTING_ARGUMENTS_5 = ("every_n_layers", "offload")


def checkpointing_arguments(recipe: Recipe) -> Iterator[Diagnostic]:
    """torch/utils/checkpoint.py: "Unexpected keyword arguments", in the first step's forward."""
    known = (*CHECKPOINTING_ARGUMENTS, *CHECKPOINTING_ARGUMENTS_5)
    for key in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        given = recipe.training.get(key)
        for name in given if isinstance(given, dict) else ():
            if name not in known:
                near = nearest(str(name), known)
                fix = f"did you mean {near!r}?" if near else f"it has {', '.join(known)}"
                yield report_argument(recipe, f"{key}.{name}", f"{key} has no {name!r}", fix)


def compile_with_tf32(recipe: Recipe) -> Iterator[Diagnostic]:
    """pytorch#166387: transformers sets the new tf32 switch, inductor's autotuning reads the old one, which raises."""
    if (is_true(recipe, "torch_compile") or is_given(recipe, "torch_compile_mode")) and is_true(recipe, "tf32"):
        what = "tf32: true with torch_compile may fail in inductor's autotuning (pytorch#166387)"
        yield report_argument(recipe, "tf32", what, "if it does, leave torch_compile_mode: max-autotune out")


ERRORS: tuple[Rule, ...] = (
    warmup_that_is_ignored,
    warmup_that_is_one_step,
    scheduler_arguments,
    scheduler_without_evaluation,
    optim_args_that_are_ignored,
    low_rank_optimizers,
    checkpointing_arguments,
    batch_size_that_changes_by_itself,
    global_batch_that_no_launch_keeps,
)
WARNINGS: tuple[Rule, ...] = (
    warmup_without_end,
    global_batch_of_one_launch,
    epochs_that_are_ignored,
    compile_with_tf32,
)
