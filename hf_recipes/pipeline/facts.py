"""The facts of a run as its record has them: described before training, completed during it."""

from __future__ import annotations

import os
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from hf_recipes.data.row_ids import fingerprint
from hf_recipes.models.build import parameter_counts
from hf_recipes.models.config import from_scratch, model_name
from hf_recipes.pipeline.utilization import describe_utilization
from hf_recipes.record import (
    Batch,
    DataFacts,
    DeviceFacts,
    EarlyStop,
    GuardEvents,
    ModelFacts,
    RecipeFacts,
    RunRecord,
    SplitStep,
    Timing,
    TokenizerFacts,
)
from hf_recipes.training.steps import count_steps

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.data.prepared import Prepared
    from hf_recipes.recipe.recipe import Recipe
    from hf_recipes.training.step_timer import StepTimer


def describe_recipe(recipe: Recipe) -> RecipeFacts:
    """The resolved recipe as text and as values."""
    from hf_recipes.recipe.recipe import dump_recipe

    return RecipeFacts(path=recipe.path, text=dump_recipe(recipe), sections=recipe.sections)


def describe_device(device: Device) -> DeviceFacts:
    """The device without the number of processes, which is the batch's."""
    return DeviceFacts(**{one.name: getattr(device, one.name) for one in fields(DeviceFacts)})


def describe_model(recipe: Recipe, model: Any, prepared: Prepared) -> ModelFacts:
    """The model as it is about to train, under its adapter if it has one."""
    total, trainable = parameter_counts(model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, scratch = model_name(recipe), from_scratch(recipe)
    return ModelFacts(
        class_=type(inner).__name__,
        name=name,
        source="scratch" if scratch else "local" if os.path.exists(name) else "hub",
        from_scratch=scratch,
        num_labels=prepared.config.get("num_labels"),
        parameters=total,
        trainable_parameters=trainable,
        adapter="LoraConfig" in recipe.sections,
        dtype=str(inner.dtype).removeprefix("torch."),
        attention=getattr(inner.config, "_attn_implementation", None),
    )


def describe_data(prepared: Prepared) -> dict[str, DataFacts]:
    """Counts and fingerprint of each split."""
    return {
        split: DataFacts(
            **asdict(prepared.stats[split]),
            fingerprint=fingerprint(source.rows, source.columns),
            columns=source.kinds,
        )
        for split, source in prepared.sources.items()
    }


def count_rows(train: Any) -> int:
    """Of the trainer's data set; 0 for a stream, which has no length."""
    return len(train) if hasattr(train, "__len__") else 0


def describe_batch(args: Any, data: DataFacts, train: Any) -> Batch:
    """`train`: the trainer's data set; a stream knows the tokens of its rows."""
    rows = count_rows(train)
    tokens_of_row = data.tokens / rows if rows else train.tokens_of_row
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    sequences = per_device * args.world_size * accumulation
    return Batch(
        per_device=per_device,
        processes=args.world_size,
        accumulation=accumulation,
        sequences_per_step=sequences,
        tokens_per_step=round(tokens_of_row * sequences),
    )


def add_facts(
    record: RunRecord, recipe: Recipe, args: Any, trainer: Any, model: Any, tokenizer: Any, prepared: Prepared
) -> RunRecord:
    """With model, tokenizer, data, batch and steps of a run that is about to train."""
    data, rows = describe_data(prepared), count_rows(trainer.train_dataset)
    batch = describe_batch(args, data["train"], trainer.train_dataset)
    return replace(
        record,
        model=describe_model(recipe, model, prepared),
        tokenizer=TokenizerFacts(class_=type(tokenizer).__name__, vocabulary=len(tokenizer)),
        data_source="local" if recipe.get("dataset.data_files") or _is_local(recipe) else "hub",
        data=data,
        label_names=tuple(prepared.label_names),
        label_order=prepared.label_order,
        batch=batch,
        utilization=describe_utilization(model, args, batch, record.device),
        planned_steps=count_steps(args, rows) if recipe.training.get("do_train") is not False else 0,
        seed=args.seed,
        upstream_defaults=_arguments(args),
    )


def _is_local(recipe: Recipe) -> bool:
    return recipe.is_generated or os.path.exists(str(recipe.get("dataset.path", "")))


def _arguments(args: Any) -> dict[str, Any]:
    """Every field of the arguments as they are, upstream's defaults included; no token."""
    return {k: v for k, v in args.to_dict().items() if "token" not in k or k == "include_num_input_tokens_seen"}


def add_outcome(record: RunRecord, trainer: Any) -> RunRecord:
    """With what became of a training that came to its end: whether it diverged, and whether it was stopped early."""
    return replace(record, diverged=trainer.describe_divergence() or None, stopped_early=_find_early_stop(trainer))


def _find_early_stop(trainer: Any) -> EarlyStop | None:
    from transformers import EarlyStoppingCallback

    state, args = trainer.state, trainer.args
    stopped = any(
        one.early_stopping_patience_counter >= one.early_stopping_patience
        for one in trainer.callback_handler.callbacks
        if isinstance(one, EarlyStoppingCallback)
    )
    if not stopped:
        return None
    metric = str(args.metric_for_best_model or "loss")
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    return EarlyStop(step=state.global_step, metric=metric, best_step=state.best_global_step, best=state.best_metric)


def add_progress(record: RunRecord, trainer: Any, timer: StepTimer, logged: int, tokens: int) -> RunRecord:
    """With steps, tokens and log of a training so far, and what its last session has done. `logged`, `tokens`: log
    entries and tokens of the sessions before it."""
    state, session = trainer.state, record.sessions[-1]
    if session.first_step is None or state.global_step < session.first_step - 1:
        return record  # the checkpoint was not loaded: the run is where it was
    evaluating = sum(entry.get("eval_runtime", 0.0) for entry in state.log_history[logged:])
    evaluating += timer.evaluating_seconds
    guard = trainer.parts.guard
    session = replace(
        session,
        last_step=state.global_step if state.global_step >= session.first_step else None,
        tokens=max(0, state.num_input_tokens_seen - tokens),
        time=Timing(
            train_seconds=max(0.0, timer.training_seconds - evaluating),
            data_seconds=trainer.parts.wait.seconds,
            eval_seconds=evaluating,
        ),
        step_seconds=timer.step_seconds,
        guards=GuardEvents(skipped_steps=tuple(guard.skipped), rolled_back=sum(guard.rolled_back.values())),
    )
    return replace(
        record,
        steps=state.global_step,
        epochs=state.epoch,
        tokens=state.num_input_tokens_seen,  # earlier sessions included, as upstream counts
        total_flos=state.total_flos,
        log_history=tuple(state.log_history),
        best_checkpoint=state.best_model_checkpoint,
        out_of_memory=tuple(SplitStep(**one) for one in trainer.parts.retry.splits),
        sessions=(*record.sessions[:-1], session),
    )
