"""What a run prints first and last. Pure: facts in, lines out."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

from hf_recipes.common.text import fill
from hf_recipes.data.labels import describe_counts
from hf_recipes.record import NAME, Batch, ModelFacts, RunRecord

if TYPE_CHECKING:
    from pathlib import Path

    from hf_recipes.recipe.recipe import Recipe

SHOWN = (
    *("perplexity", "bits_per_byte"),
    *("f1", "f1_micro", "span_f1", "span_f1_strict", "accuracy"),
    *("mse", "pearsonr", "spearmanr", "loss"),
)
# What Trainer and SFTTrainer add, and what is in the report only.
LEFT_OUT = (
    *("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time", "epoch"),
    *("num_tokens", "num_input_tokens_seen", "entropy", "mean_token_accuracy"),
    *("f1_weighted", "span_precision", "span_recall"),
)


def describe_start(recipe: Recipe, args: Any, record: RunRecord) -> list[str]:
    """One screenful before training: model, data, precision, device, batch, steps, output folder."""
    model, batch, device = record.model or ModelFacts(), record.batch or Batch(), record.device
    splits = ", ".join(
        f"{name} {f'{part.rows:,} rows' if part.rows else 'streamed'}" for name, part in record.data.items()
    )
    counts = record.data["train"].labels
    share = model.trainable_parameters / model.parameters
    kind = f"{model.class_}{', from scratch' if model.from_scratch else ''}"
    size = f"{model.parameters:,} parameters, {share:.1%} trained, {model.dtype}"
    facts = {
        "task": recipe.task,
        "model": f"{model.name} ({kind}): {size}{f', attention: {model.attention}' if model.attention else ''}",
        "data": f"{splits}; longest training row {record.data['train'].longest} tokens",
        "labels": f"{describe_counts(counts)} ({record.label_order} order)" if counts else "",
        "precision": describe_precision(recipe, args),
        "device": f"{device.name} ({device.kind}) x {args.world_size}",
        **_describe_steps(recipe, args, record.planned_steps or 0, batch),
        "output": str(args.output_dir),
    }
    lines = [line for name, text in facts.items() if text for line in fill(f"{name:<11}", text)]
    if record.planned_steps and _value(args.save_strategy) != "no":
        lines.append(str(record.resumption))
    return ["", *lines, ""]


def _describe_steps(recipe: Recipe, args: Any, steps: int, batch: Batch) -> dict[str, str]:
    if not steps:
        return {"steps": "none (do_train: false): the model is evaluated as it is"}
    asked = "as global_batch_size asks, " if recipe.get("global_batch_size") is not None else ""
    return {
        "batch": f"{batch.per_device} per device x {batch.processes} device{'s' * (batch.processes > 1)} x "
        f"{batch.accumulation} accumulation = {batch.sequences_per_step} sequences, "
        f"{asked}about {batch.tokens_per_step:,} tokens a step",
        "steps": f"{steps:,}, about {steps * batch.tokens_per_step:,} tokens in all; {_value(args.optim)}, "
        f"learning rate {args.learning_rate:g}, {_value(args.lr_scheduler_type)}",
    }


def _value(choice: Any) -> str:
    """An upstream enum's value ("cosine"), or the text itself."""
    return str(getattr(choice, "value", choice))


def describe_precision(recipe: Recipe, args: Any) -> str:
    """The training precision in a few words."""
    dtype = recipe.get("model.dtype", "float32")
    if recipe.get("master_weights"):
        return "O2: fp16 parameters and gradients, fp32 master weights, dynamic loss scaling"
    mixed = "bf16 autocast" if args.bf16 else "fp16 autocast with loss scaling" if args.fp16 else ""
    if recipe.section("BitsAndBytesConfig"):
        return f"{mixed or 'no autocast'}; quantised base model"
    return f"{mixed + ' over ' if mixed else ''}{dtype} weights"


def describe_outcome(record: RunRecord) -> list[str]:
    """What is to be known of a training that came to its end, beside its numbers."""
    lines = [f"warning: the run diverged: {record.diverged}"] if record.diverged else []
    if record.stopped_early:
        lines.append(f"early stopping ended the run {record.stopped_early}; {record.planned_steps} steps were planned")
    return lines


def describe_end(recipe: Recipe, folder: Path, record: RunRecord) -> list[str]:
    """The result: metrics before and after, files, and the next command."""
    trained = recipe.training.get("do_train") is not False
    lines = ["", f"{record.status} after {record.steps} steps" if trained else "evaluated; nothing was trained"]
    before, after, test = (record.metrics.of(split) for split in ("before", "eval", "test"))
    measured = [key.removeprefix("eval_") for key in after]
    others = [name for name in measured if name not in (*SHOWN, *LEFT_OUT)]  # of hooks, answers and modules
    for name in (*(name for name in SHOWN if name in measured), *others):
        was = f"{before[f'eval_{name}']:.4g} -> " if f"eval_{name}" in before else ""
        on_test = f"   (test {test[f'test_{name}']:.4g})" if f"test_{name}" in test else ""
        lines.append(f"  {name:<14} {was}{after[f'eval_{name}']:.4g}{on_test}")
    if record.tokens_per_second and record.time.train_seconds is not None:
        speed = f"{record.tokens_per_second:,.0f} tokens a second"
        lines.append(f"  trained for    {record.time.train_seconds:.0f} s at {speed}{describe_use_of_time(record)}")
    lines += ["", f"record   {folder / NAME}"]
    if (folder / "report.html").is_file():
        lines.append(f"report   {folder / 'report.html'}")
    if trained:
        weights = "adapter" if record.model and record.model.adapter else "weights"
        lines.append(f"model    {folder} ({weights}, tokenizer, model card, scores)")
        if not record.diverged:
            lines += [f"{'try' if not n else '':<8} {line}" for n, line in enumerate(describe_use(recipe, folder))]
        if not recipe.training.get("push_to_hub") and not record.diverged:
            named = folder.parent if re.fullmatch(r"seed=\d+", folder.name) else folder  # of a sweep
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", named.name).strip("-.") or "model"
            repo = recipe.training.get("hub_model_id") or f"YOU/{name}"
            push = shlex.join(["hf-recipes", "push", str(folder), "--repo", repo])
            lines.append(f"next     {push}    put it on the Hub")
    return lines


def describe_use_of_time(record: RunRecord) -> str:
    """Time spent waiting for data, and the share of the GPU's peak rate; "" where neither was measured."""
    wait, used = record.data_wait, record.utilization.mfu
    parts = [f"{wait:.1%} of the time waiting for data"] if wait is not None else []
    parts += [f"{used:.1%} of the peak rate (MFU)"] if used is not None else []
    return "".join(f", {part}" for part in parts)


def describe_use(recipe: Recipe, folder: Path) -> list[str]:
    """The commands that use the model of a run."""
    run = shlex.quote(str(folder))
    text = {"causal-lm": "Once upon a time", "chat": ""}.get(recipe.task, "a text")
    talk = f"hf-recipes chat {run}" if recipe.task == "chat" else f"hf-recipes predict {run} {shlex.quote(text)}"
    return [talk, f"hf-recipes evaluate {run} --data FILE"]
