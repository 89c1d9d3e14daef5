"""Evaluation, saving, the best model, early stopping, metrics, resuming."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hf_recipes.common.text import nearest
from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.rules.rule import (
    Rule,
    argument,
    has_section,
    is_given,
    is_true,
    number_of,
    report_argument,
    report_key,
    strings_in,
    text_of,
)

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe


def best_model_and_its_checkpoints(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:1752: "--load_best_model_at_end requires the save and eval strategy to match"."""
    if not is_true(recipe, "load_best_model_at_end"):
        return
    evaluate, save = text_of(recipe, "eval_strategy"), text_of(recipe, "save_strategy")
    where = "load_best_model_at_end"
    if evaluate == "no":
        what = "load_best_model_at_end without evaluation knows no best: eval_strategy is no"
        yield report_argument(
            recipe, where, what, f"write eval_strategy: {save if save in ('steps', 'epoch') else 'epoch'}"
        )
    elif save != "best" and evaluate and save and evaluate != save:
        what = f"load_best_model_at_end needs eval_strategy and save_strategy to be the same: {evaluate}, {save}"
        yield report_argument(recipe, where, what, f"write save_strategy: {evaluate}, or best")
    elif evaluate == save == "steps":
        yield from _multiples(recipe)


def _multiples(recipe: Recipe) -> Iterator[Diagnostic]:
    """save_steps must be a multiple of eval_steps, which falls back to logging_steps."""
    every, saved = (
        number_of(recipe, "eval_steps") or number_of(recipe, "logging_steps"),
        number_of(recipe, "save_steps"),
    )
    if not every or not saved:
        return
    shares = (every < 1) + (saved < 1)
    scale = 1_000_000 if shares else 1  # upstream's own way around 0.3 % 0.1
    if shares == 1 or round(saved * scale) % round(every * scale):
        name = "eval_steps" if is_given(recipe, "eval_steps") else "eval_steps (by logging_steps)"
        what = f"load_best_model_at_end needs save_steps: {saved} to be a multiple of {name}: {every}"
        fix = "write save_steps and eval_steps so that it is"
        yield report_argument(
            recipe, "save_steps" if is_given(recipe, "save_steps") else "load_best_model_at_end", what, fix
        )


def saving_the_best(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer.py:689: save_strategy best needs metric_for_best_model; without evaluation nothing is saved."""
    if text_of(recipe, "save_strategy") != "best":
        return
    if text_of(recipe, "eval_strategy") == "no":
        what = "save_strategy: best saves nothing: eval_strategy is no"
        yield report_argument(recipe, "save_strategy", what, "write eval_strategy: epoch or steps")
    if not text_of(recipe, "metric_for_best_model") and not is_true(recipe, "load_best_model_at_end"):
        what = "save_strategy: best needs metric_for_best_model"
        yield report_argument(recipe, "save_strategy", what, "write metric_for_best_model: loss")


def early_stopping(recipe: Recipe) -> Iterator[Diagnostic]:
    """trainer_callback.py:751: two assertions without a message, at the first step of training."""
    if not has_section(recipe, "EarlyStoppingCallback"):
        return
    where = "EarlyStoppingCallback"
    if text_of(recipe, "eval_strategy") == "no":
        what = "EarlyStoppingCallback looks at evaluations, and eval_strategy is no"
        yield report_key(recipe, where, what, "write eval_strategy: epoch or steps")
    by_loss = text_of(recipe, "lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")  # upstream sets loss for these
    if not text_of(recipe, "metric_for_best_model") and not is_true(recipe, "load_best_model_at_end") and not by_loss:
        what = "EarlyStoppingCallback needs metric_for_best_model"
        yield report_key(recipe, where, what, "write metric_for_best_model, or load_best_model_at_end: true (by loss)")


def early_stopping_ends_with_the_last(recipe: Recipe) -> Iterator[Diagnostic]:
    """trainer_callback.py:748 warns: "Once training is finished, the best model will not be loaded automatically"."""
    if has_section(recipe, "EarlyStoppingCallback") and not is_true(recipe, "load_best_model_at_end"):
        what = "EarlyStoppingCallback without load_best_model_at_end: true ends with the last model, not the best"
        yield report_key(recipe, "EarlyStoppingCallback", what, "write load_best_model_at_end: true")


def metrics_of_the_task(recipe: Recipe) -> Iterator[Diagnostic]:
    """A metric must be one that the task has, or a module of `evaluate`, which is named by its folder or Hub id."""
    from hf_recipes.catalog.metrics import GENERATED, names_a_module
    from hf_recipes.catalog.tasks import task_of

    allowed = (*task_of(recipe).metrics, *(GENERATED if recipe.task == "chat" else ()))
    given = recipe.get("metrics")
    for name in given if isinstance(given, list) else []:
        if not isinstance(name, str) or name in allowed:
            continue
        if names_a_module(name):
            if recipe.task == "causal-lm":
                what = f"{name!r} needs predictions to compare, and task causal-lm has none"
                yield report_key(recipe, "metrics", what, f"it has {', '.join(allowed)}")
            continue
        near = nearest(name, allowed)
        fix = f"did you mean {near!r}?" if near else f"it has {', '.join(allowed)}"
        if os.path.exists(name):
            fix = f"of a module of `evaluate` write the path: ./{name}"
        yield report_key(recipe, "metrics", f"task {recipe.task} has no metric {name!r}", fix)


def modules_of_metrics(recipe: Recipe) -> Iterator[Diagnostic]:
    """A module is a program: it runs if it is on this machine, one of the Hub where its user trusts it."""
    from hf_recipes.catalog.metrics import is_local_module, names_a_module

    given = recipe.get("metrics")
    for name in strings_in(given) if isinstance(given, list) else []:
        if not names_a_module(name) or os.path.exists(os.path.expanduser(name)):
            continue
        if is_local_module(name):
            what = f"there is no metric {name!r} (paths are relative to the working directory)"
            yield report_key(recipe, "metrics", what, "name the folder of a module of `evaluate`")
        else:
            what = f"{name!r} is a program of the Hub: it runs only if you trust it"
            yield report_key(recipe, "metrics", what, "start with: hf-recipes run --trust-remote-code")


def _measured(recipe: Recipe) -> dict[str, str]:
    """Names for metric_for_best_model -> the entry that `metrics` lacks for it ("" where it is measured)."""
    from hf_recipes.catalog.metrics import METRICS
    from hf_recipes.catalog.tasks import task_of

    task = task_of(recipe)
    given = recipe.get("metrics")
    chosen = strings_in(given) if isinstance(given, list) else list(task.default_metrics)
    found = {"loss": ""}
    for name in task.metrics:
        found |= dict.fromkeys(METRICS[name].keys, "" if name in chosen else name)
    return found


def best_by_what(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer.py:3443: a KeyError at the first evaluation. Both f1 and eval_f1 are understood."""
    name = text_of(recipe, "metric_for_best_model").removeprefix("eval_")
    if not name:
        return
    from hf_recipes.catalog.metrics import GENERATED

    found = _measured(recipe)
    if name not in found and recipe.task == "chat" and any(name in keys for keys in GENERATED.values()):
        what = f"metric_for_best_model: {name!r} is computed once, at the end of a run"
        yield report_argument(recipe, "metric_for_best_model", what, "choose the best model by loss")
    elif name not in found:
        names = [key for key, missing in found.items() if not missing]
        near = nearest(name, names)
        fix = f"did you mean {near!r}?" if near else f"this task measures {', '.join(names)}"
        yield report_argument(recipe, "metric_for_best_model", f"metric_for_best_model: {name!r} is not measured", fix)
    elif found[name]:
        what = f"metric_for_best_model: {name!r} is not measured"
        yield report_argument(recipe, "metric_for_best_model", what, f"add {found[name]!r} to metrics")


def best_in_which_direction(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 training_args.py:1592: greater_is_better is true unless the name ends in "loss": for perplexity too."""
    name = text_of(recipe, "metric_for_best_model").removeprefix("eval_")
    if name not in _measured(recipe):
        return
    from hf_recipes.catalog.metrics import LOWER_IS_BETTER

    lower = name in LOWER_IS_BETTER
    greater = recipe.training.get("greater_is_better")
    if not isinstance(greater, bool):
        greater = not name.endswith("loss")
    if lower == greater:
        note = "" if "greater_is_better" in recipe.training else " (upstream's default for this name)"
        what = f"greater_is_better: {str(greater).lower()}{note} takes the worst {name} for the best"
        key = "greater_is_better" if "greater_is_better" in recipe.training else "metric_for_best_model"
        yield report_argument(recipe, key, what, f"write greater_is_better: {str(not lower).lower()}")


def evaluation_without_metrics(recipe: Recipe) -> Iterator[Diagnostic]:
    """trainer.py: prediction_loss_only leaves compute_metrics out; batch_eval_metrics wants another signature of it;
    eval_do_concat_batches: false hands it lists of batches."""
    reasons = {
        "prediction_loss_only": (True, "leaves the metrics out"),
        "batch_eval_metrics": (True, "wants metrics in parts; here they are of the complete set, and need no logits"),
        "eval_do_concat_batches": (False, "hands the metrics lists of batches"),
    }
    for key, (bad, reason) in reasons.items():
        if key in recipe.training and argument(recipe, key) is bad:
            yield report_argument(recipe, key, f"{key}: {str(bad).lower()} {reason}", "leave it out")


def intervals_that_are_ignored(recipe: Recipe) -> Iterator[Diagnostic]:
    """eval_steps counts only under eval_strategy: steps, save_steps only under save_strategy: steps."""
    for kind in ("eval", "save", "logging"):
        strategy = text_of(recipe, f"{kind}_strategy")
        if is_given(recipe, f"{kind}_steps") and strategy and strategy != "steps":
            if kind == "logging" and text_of(recipe, "eval_strategy") == "steps":
                continue  # eval_steps may come from it
            what = f"{kind}_steps has no effect: {kind}_strategy is {strategy}"
            yield report_argument(
                recipe, f"{kind}_steps", what, f"write {kind}_strategy: steps, or leave {kind}_steps out"
            )


def resuming_without_the_optimizer(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer.py:3923: without optimizer.pt a resumed run has, silently, a fresh optimizer and schedule."""
    if is_true(recipe, "save_only_model") and is_given(recipe, "resume_from_checkpoint"):
        what = "resume_from_checkpoint with save_only_model: its checkpoints hold no optimizer and no schedule"
        yield report_argument(
            recipe, "save_only_model", what, "leave save_only_model out, or start again from the weights"
        )


def resuming_without_training(recipe: Recipe) -> Iterator[Diagnostic]:
    """A checkpoint is loaded by train(): without it the model that `model` names would be evaluated instead."""
    if recipe.training.get("do_train") is False and is_given(recipe, "resume_from_checkpoint"):
        what = "resume_from_checkpoint has no effect with do_train: false: the checkpoint would not be evaluated"
        yield report_argument(
            recipe, "resume_from_checkpoint", what, "write model.pretrained_model_name_or_path: the checkpoint"
        )


def resuming_with_other_rows(recipe: Recipe) -> Iterator[Diagnostic]:
    """ignore_data_skip starts the epoch's rows again: some are seen twice, others never."""
    if is_true(recipe, "ignore_data_skip"):
        what = "ignore_data_skip: true: a resumed run sees other rows than an uninterrupted one"
        yield report_argument(recipe, "ignore_data_skip", what, "leave it out")


def nan_that_is_hidden(recipe: Recipe) -> Iterator[Diagnostic]:
    """5.23 trainer.py:1912: a NaN loss is logged as 0.0. Absent, this package turns the filter off."""
    if recipe.training.get("logging_nan_inf_filter") is True:
        what = "logging_nan_inf_filter: true logs a NaN loss as 0.0"
        yield report_argument(recipe, "logging_nan_inf_filter", what, "leave it out: this package turns it off")


def flags_of_other_scripts(recipe: Recipe) -> Iterator[Diagnostic]:
    """Flags for example scripts, "not directly used by Trainer": a run always evaluates, the test split too."""
    if recipe.training.get("do_predict") is True:
        what = "do_predict has no effect: a test split is always evaluated after training"
        yield report_argument(recipe, "do_predict", what, "leave it out")
    if recipe.training.get("do_eval") is False:
        yield report_argument(
            recipe, "do_eval", "do_eval: false has no effect: a run ends with evaluation", "leave it out"
        )
    if is_given(recipe, "include_for_metrics") and recipe.training["include_for_metrics"] != []:
        what = "include_for_metrics costs memory, and no metric of this package reads it"
        yield report_argument(recipe, "include_for_metrics", what, "leave it out")


ERRORS: tuple[Rule, ...] = (
    best_model_and_its_checkpoints,
    saving_the_best,
    early_stopping,
    metrics_of_the_task,
    best_by_what,
    best_in_which_direction,
    evaluation_without_metrics,
    resuming_without_the_optimizer,
    resuming_without_training,
)
WARNINGS: tuple[Rule, ...] = (
    early_stopping_ends_with_the_last,
    modules_of_metrics,
    intervals_that_are_ignored,
    resuming_with_other_rows,
    nan_that_is_hidden,
    flags_of_other_scripts,
)
