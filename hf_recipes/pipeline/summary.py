"""What a run says first and last, and the facts of it that go into its record. Pure: facts in, lines out."""

from __future__ import annotations

import math
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from hf_recipes.data.row_ids import fingerprint
from hf_recipes.models.build import parameter_counts
from hf_recipes.models.config import from_scratch, model_name
from hf_recipes.training.trainer import steps_of

if TYPE_CHECKING:
    from pathlib import Path

    from hf_recipes.common.device import Device
    from hf_recipes.data.prepared import Prepared
    from hf_recipes.recipe.recipe import Recipe

SHOWN = ("perplexity", "bits_per_byte", "f1", "span_f1", "accuracy", "loss")


def facts(recipe: Recipe, args: Any, trainer: Any, model: Any, tokenizer: Any, prepared: Prepared) -> dict[str, Any]:
    """Model, data, batch and steps of a run that is about to train, as record.json keeps them."""
    total, trainable = parameter_counts(model)
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    sequences = per_device * args.world_size * accumulation
    rows = len(trainer.train_dataset)
    tokens = prepared.stats["train"].tokens
    steps = steps_of(args, rows) if recipe.training.get("do_train") is not False else 0
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {
        "model": {
            "class": type(inner).__name__,
            "name": model_name(recipe),
            "source": "scratch" if from_scratch(recipe) else "local" if os.path.exists(model_name(recipe)) else "hub",
            "from_scratch": from_scratch(recipe),
            "num_labels": len(prepared.label_names) or None,
            "parameters": total,
            "trainable_parameters": trainable,
            "adapter": "LoraConfig" in recipe.sections,
            "dtype": str(inner.dtype).removeprefix("torch."),
            "attention": getattr(inner.config, "_attn_implementation", None),
        },
        "tokenizer": {"class": type(tokenizer).__name__, "vocabulary": len(tokenizer)},
        "data_source": "local" if recipe.get("dataset.data_files") or _local(recipe) else "hub",
        "data": {
            split: {**prepared.stats[split].counts(), "fingerprint": fingerprint(source.rows, source.columns)}
            for split, source in prepared.sources.items()
        },
        "label_names": list(prepared.label_names) or None,
        "batch": {
            "per_device": per_device,
            "processes": args.world_size,
            "accumulation": accumulation,
            "sequences_per_step": sequences,
            "tokens_per_step": round(tokens / rows * sequences),
        },
        "planned_steps": steps,
        "seed": args.seed,
        "upstream_defaults": _settings(args),
    }


def _local(recipe: Recipe) -> bool:
    return recipe.is_generated or os.path.exists(str(recipe.get("dataset.path", "")))


def _settings(args: Any) -> dict[str, Any]:
    """Every field of the arguments as they are, upstream's defaults included; no token."""
    return {k: v for k, v in args.to_dict().items() if "token" not in k or k == "include_num_input_tokens_seen"}


def opening(recipe: Recipe, args: Any, device: Device, record: dict[str, Any]) -> list[str]:
    """One screenful before training: what, on what, in which batches, where to."""
    model, batch, rows = record["model"], record["batch"], record["data"]
    share = model["trainable_parameters"] / model["parameters"]
    attention = f", attention: {model['attention']}" if model["attention"] else ""
    splits = ", ".join(f"{name} {part['rows']:,} rows" for name, part in rows.items())
    steps = record["planned_steps"]
    plan = [
        f"batch      {batch['per_device']} per device x {batch['processes']} device{'s' * (batch['processes'] > 1)} x "
        f"{batch['accumulation']} accumulation = {batch['sequences_per_step']} sequences, "
        f"about {batch['tokens_per_step']:,} tokens a step",
        f"steps      {steps:,}, about {steps * batch['tokens_per_step']:,} tokens in all; {_word(args.optim)}, "
        f"learning rate {args.learning_rate:g}, {_word(args.lr_scheduler_type)}",
    ]
    if not steps:
        plan = ["steps      none (do_train: false): the model is evaluated as it is"]
    return [
        "",
        f"task       {recipe.task}",
        f"model      {model['name']} ({model['class']}{', from scratch' if model['from_scratch'] else ''}): "
        f"{model['parameters']:,} parameters, {model['trainable_parameters']:,} trainable ({share:.1%}), "
        f"{model['dtype']}{attention}",
        f"data       {splits}; longest training row {rows['train']['longest']} tokens",
        f"precision  {precision(recipe, args)}",
        f"device     {device.name} ({device.kind}) x {args.world_size}",
        *plan,
        f"output     {args.output_dir}",
        *([str(record["resumption"])] if steps and _word(args.save_strategy) != "no" else []),
        "",
    ]


def _word(choice: Any) -> str:
    """An upstream enum's word ("cosine"), or the word itself."""
    return str(getattr(choice, "value", choice))


def precision(recipe: Recipe, args: Any) -> str:
    """The training precision in words."""
    dtype = recipe.get("model.dtype", "float32")
    if recipe.get("master_weights"):
        return "O2: fp16 parameters and gradients, fp32 master weights, dynamic loss scaling"
    mixed = "bf16 autocast" if args.bf16 else "fp16 autocast with loss scaling" if args.fp16 else ""
    if recipe.section("BitsAndBytesConfig"):
        return f"{mixed or 'no autocast'}; quantised base model"
    return f"{mixed + ' over ' if mixed else ''}{dtype} weights"


def so_far(trainer: Any) -> dict[str, Any]:
    """Steps and log of a training that did not come to its end."""
    state = trainer.state
    return {"steps": state.global_step, "epochs": state.epoch, "log_history": state.log_history}


def survived(trainer: Any) -> dict[str, Any]:
    """What went wrong in a training and did not end it."""
    guard = trainer.parts.guard
    return {
        "out_of_memory": trainer.parts.retry.splits,
        "guards": {"skipped_steps": guard.skipped, "rolled_back": sum(guard.rolled_back.values())},
    }


def trained(trainer: Any, result: Any, history: int, tokens_before: int) -> dict[str, Any]:
    """Steps, time and speed of a training that came to its end; `history` log entries and `tokens_before` tokens are an
    earlier session's."""
    # upstream's train_runtime holds the evaluations in between too
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in trainer.state.log_history[history:])
    seconds = max(result.metrics["train_runtime"] - evaluating, 1e-9)
    tokens = trainer.state.num_input_tokens_seen - tokens_before
    return {
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "time": {"train_seconds": seconds, "eval_seconds": evaluating},
        "tokens_per_second": tokens / seconds if tokens and seconds else None,
        "train_loss": result.metrics["train_loss"],
        "tokens": trainer.state.num_input_tokens_seen,  # of the whole run, earlier sessions included
        "total_flos": trainer.state.total_flos,
        "log_history": trainer.state.log_history,
        "best_checkpoint": trainer.state.best_model_checkpoint,
    }


def closing(recipe: Recipe, folder: Path, record: dict[str, Any]) -> list[str]:
    """The result: metrics before and after, and what to type next."""
    trained = recipe.training.get("do_train") is not False
    lines = ["", f"{record['status']} after {record['steps']} steps" if trained else "evaluated; nothing was trained"]
    before, after, test = (record["metrics"].get(name) or {} for name in ("before", "eval", "test"))
    for name in SHOWN:
        if f"eval_{name}" in after:
            was = f"{before[f'eval_{name}']:.4g} -> " if f"eval_{name}" in before else ""
            on_test = f"   (test {test[f'test_{name}']:.4g})" if f"test_{name}" in test else ""
            lines.append(f"  {name:<14} {was}{after[f'eval_{name}']:.4g}{on_test}")
    if record.get("tokens_per_second"):
        seconds = record["time"]["train_seconds"]
        lines.append(f"  trained for    {seconds:.0f} s at {record['tokens_per_second']:,.0f} tokens a second")
    if not math.isfinite(after.get("eval_loss", 0.0)):
        lines.append("  the loss is no finite number: the run diverged; lower learning_rate, or raise warmup_steps")
    lines += ["", f"record   {folder / 'record.json'}"]
    if (folder / "report.html").is_file():
        lines.append(f"report   {folder / 'report.html'}")
    if trained:
        what = "adapter" if record["model"]["adapter"] else "weights"
        lines.append(f"model    {folder} ({what}, tokenizer, card, scores)")
        if not recipe.training.get("push_to_hub"):
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-.") or "model"
            repo = recipe.training.get("hub_model_id") or f"YOU/{name}"
            push = shlex.join(["hf-recipes", "push", str(folder), "--repo", repo])
            lines.append(f"next     {push}    put it on the Hub")
    return lines
