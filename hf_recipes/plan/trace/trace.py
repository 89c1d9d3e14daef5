"""`trace_here`: the recipe's own Trainer for two optimizer steps, an evaluation batch and saving, watched.

The same function watches a real run on CPU tensors (`real=True`), which is what its predictions are compared with.
"""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.catalog.tasks import TASKS, split_metrics, task_of
from hf_recipes.common.device import Device
from hf_recipes.errors import PlanError
from hf_recipes.evaluation.scoring import Scoring
from hf_recipes.models import build
from hf_recipes.models.config import longest_input
from hf_recipes.plan.trace import longformer
from hf_recipes.plan.trace.autocast import Simulation, replace_autocast
from hf_recipes.plan.trace.costs import work_of
from hf_recipes.plan.trace.cuda_allocator import rounded
from hf_recipes.plan.trace.cuda_workspaces import CudaWorkspaces
from hf_recipes.plan.trace.field_effects import estimate_reasons
from hf_recipes.plan.trace.flash_attention import flash_attention_on_meta
from hf_recipes.plan.trace.flex_attention import flex_attention_on_meta
from hf_recipes.plan.trace.fsdp_rank import fsdp_on_meta, shards_in
from hf_recipes.plan.trace.load import replay_load
from hf_recipes.plan.trace.meta_model import build_config, meta_model, tensors_before_training, vocabulary_size
from hf_recipes.plan.trace.module_paths import track_modules
from hf_recipes.plan.trace.peak import summarize_peak
from hf_recipes.plan.trace.repeated_steps import RepeatedSteps
from hf_recipes.plan.trace.result import Trace
from hf_recipes.plan.trace.short_run import is_padded, is_uniform, shorten_recipe
from hf_recipes.plan.trace.stand_in_optimizers import stand_in_optimizer
from hf_recipes.plan.trace.stand_in_rows import LABELS, prepared_rows, stand_in_tokenizer
from hf_recipes.plan.trace.tracker import Tracker, UntraceableError
from hf_recipes.plan.trace.trainer_effects import describe_untraced, evaluate_once, list_evaluations, patch_trainer
from hf_recipes.plan.trace.upstream_patches import patch_upstream_for_meta
from hf_recipes.recipe.defaults import choose, choose_length
from hf_recipes.recipe.global_batch import accumulation_of
from hf_recipes.training import trainer as training

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

NO_MEMORY_EFFECT = (  # choices that are made for the user and have no effect on memory: the run prints them
    "logging_nan_inf_filter",
    "include_num_input_tokens_seen",
    "dataloader_pin_memory",
    "metrics",
    "task_type",
    "output_dir",
    "use_cpu",
)
REPEATS = True  # of micro-batches: the second step's are not computed again where that is exact
STEPS = 2  # optimizer states exist from the second on


def trace_here(
    recipe: Recipe,
    *,
    length: int | None = None,
    micro_batch: int | None = None,
    capability: tuple[int, int] = (8, 6),
    cpu: bool = False,
    real: bool = False,
    evaluation: bool = True,
    processes: int = 1,
    fsdp: Mapping[str, str] = MappingProxyType({}),
) -> Trace:
    """As hf_recipes.plan.trace, in this process: torch is patched meanwhile. `real`: on CPU tensors, computing;
    `evaluation`: whether evaluation and saving are traced after the training steps."""
    device = Device(kind="cpu", name="CPU", bf16=True)
    if not cpu:
        device = Device(kind="cuda", name="the planned GPU", count=1, capability=capability, bf16=capability >= (8, 0))
    recipe, lines = choose(recipe, device)
    config = build_config(recipe)
    vocabulary = vocabulary_size(recipe, config)
    tokenizer = stand_in_tokenizer(vocabulary, 2**31)
    recipe, length, more = traced_length(recipe, config, length)
    notes = [line for line in (*lines, *more) if line.partition(":")[0].rpartition(".")[2] not in NO_MEMORY_EFFECT]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        short = shorten_recipe(recipe, folder, micro_batch, STEPS)
        if not real:
            stack.enter_context(patch_upstream_for_meta(cuda=not cpu, trl=recipe.trainer == "SFTConfig"))
            stack.enter_context(flash_attention_on_meta())
            if recipe.get("model.attn_implementation") == "flex_attention":
                stack.enter_context(flex_attention_on_meta())
        tracker = Tracker(
            device="cpu" if real else "meta",
            uniform=is_uniform(recipe, int(short.training.get("per_device_train_batch_size", 8))),
            workspaces=None if cpu else CudaWorkspaces(capability),
        )
        if processes > 1:
            if not real:
                stack.enter_context(fsdp_on_meta(processes, fsdp, tracker))
            stack.enter_context(shards_in(tracker))
        simulation = Simulation(tracker, None if cpu else capability)
        if config.model_type == longformer.MODEL_TYPE and not real:
            stack.enter_context(longformer.global_attention(tracker, recipe.task == "text-classification"))
        if not cpu:
            stack.enter_context(patch_trainer(tracker))
        if not real:
            stack.enter_context(replace_autocast(simulation, "cpu" if cpu else "cuda"))
        trainer = stand_in_trainer(short, config, tokenizer, length, tracker.device, notes.append)
        trainer.optimizer = stand_in_optimizer(recipe, trainer.model, cpu)
        if recipe.training.get("fp16") and not recipe.get("master_weights") and not real:
            _scale_losses(trainer)
        gc.collect()
        began = time.perf_counter()
        try:
            load = _watch(
                trainer, tracker, simulation, bool(recipe.section("BitsAndBytesConfig")), sharded=processes > 1
            )
            if evaluation:
                tracker.uniform = is_uniform(recipe, trainer.args.eval_batch_size)
                row_bytes = _evaluate_and_save(recipe, trainer, tracker, simulation)
                notes += describe_untraced(recipe, row_bytes)
        except UntraceableError as problem:
            what = f"plan cannot trace {problem}"
            raise PlanError.at(
                recipe.path, what, "its memory depends on data; `run --no-plan` trains without a plan"
            ) from problem
        seconds = time.perf_counter() - began
        found = _result(
            recipe, short, trainer, tracker, simulation, length, notes, seconds, None if cpu else capability
        )
        return replace(found, load=load)


def traced_length(recipe: Recipe, config: Any, length: int | None) -> tuple[Recipe, int, list[str]]:
    """The recipe with the length of its longest row, which is `length` if one is given."""
    dotted = recipe.max_length_key
    positions = longest_input(config)
    if length is not None:
        if positions is not None and length > positions:
            raise PlanError.at(recipe.path, f"{length} tokens are more than the model's {positions} positions")
        if not (recipe.training.get("padding_free") and not recipe.training.get("packing")):
            recipe = recipe.with_values({dotted: length}, "plan's length")
        return recipe, length, []
    recipe, found, lines = choose_length(recipe, positions, 2**31)
    if found >= 2**31:
        what = "no length is given, and the model has no limit of positions"
        raise PlanError.at(recipe.path, what, f"set {dotted}, or give plan --length")
    return recipe, found, lines


def stand_in_trainer(
    recipe: Recipe, config: Any, tokenizer: Any, length: int, device: str, say: Callable[[str], None]
) -> Any:
    """pipeline/run.py's order of work with rows and a tokenizer that stand in."""
    args = training.build_arguments(recipe)
    stated = recipe.get("model.num_labels") or len(recipe.get("model.id2label") or recipe.get("model.label2id") or ())
    labels = int(stated or getattr(config, "num_labels", LABELS))
    rows = args.train_batch_size * args.gradient_accumulation_steps * STEPS * args.world_size
    prepared = prepared_rows(recipe, tokenizer, length, rows, labels, _token_types(recipe, config), is_padded(recipe))
    model = meta_model(recipe, config, tokenizer, prepared.config, device, say)
    if recipe.get("master_weights"):
        from hf_recipes.models.half_precision import prepare_model

        with Tracker(device=device):  # it looks at the weights, and a tracker answers for meta ones
            model = prepare_model(model)
    scoring = Scoring(task_of(recipe), prepared, split_metrics(recipe)[0])
    trainer = training.build_trainer(
        recipe, args, model, tokenizer, prepared, scoring.compute_metrics, scoring.preprocess_logits, say
    )
    needed = ("DefaultFlowCallback", "FollowModel")  # no progress bars, no reports
    trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if type(c).__name__ in needed]
    return trainer


def _token_types(recipe: Recipe, config: Any) -> bool:
    """Whether the model's own tokenizer gives token_type_ids, too."""
    own = "BpeTrainer" not in recipe.sections
    return own and config.model_type in ("bert", "albert", "electra", "deberta", "deberta-v2", "funnel", "convbert")


def _scale_losses(trainer: Any) -> None:
    """fp16 autocast: accelerate takes it on a few devices by name, and makes a loss scaler there; its memory is three
    scalars, but backward and clipping go through it."""
    from accelerate.state import AcceleratorState

    AcceleratorState._shared_state["_mixed_precision"] = "fp16"
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("meta")


def _watch(
    trainer: Any, tracker: Tracker, simulation: Simulation, loads_onto_gpu: bool, sharded: bool
) -> tuple[int, ...]:
    """Training under the tracker; the weights are there before it begins, or, `sharded`, this rank's when it has.
    `loads_onto_gpu`: from_pretrained puts them there, one by one. Returns the events of that load."""
    model = trainer.model
    loaded = [] if sharded else tensors_before_training(model)
    load: tuple[int, ...] = ()
    if loads_onto_gpu and simulation.capability is not None and tracker.device == "meta":
        load = replay_load(tracker, model)
    for tensor in loaded:
        tracker.track(tensor, "loaded", part="weights")
    training_step = trainer.training_step
    repeated = RepeatedSteps(tracker, simulation, model.parameters())
    accumulation, done = trainer.args.gradient_accumulation_steps, 0
    repeats = REPEATS and simulation.capability is not None and tracker.device == "meta" and not sharded

    steps_left = STEPS * trainer.args.gradient_accumulation_steps
    # The loader holds the next batch already: on a CPU it counts, on a GPU it is not there yet.
    next_batch_is_here = simulation.capability is None and tracker.device == "meta"

    def watched_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps_left, done
        place, steps_left, done = done % accumulation, steps_left - 1, done + 1
        waiting = []
        with tracker.during("forward"):
            if next_batch_is_here and steps_left:
                tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
                waiting = [tracker.add_storage(tensor.nbytes, "the next batch") for tensor in tensors]
            if repeats:
                loss = repeated.step(place, inputs, lambda: training_step(model, inputs, *args, **kwargs))
            else:
                loss = training_step(model, inputs, *args, **kwargs)
            for number in waiting:
                tracker.free_storage(number)
        return loss

    trainer.training_step = watched_step
    with simulation, tracker, track_modules(tracker, model), _tagged(tracker, trainer), tracker.during("optimizer"):
        trainer.train()
    del trainer.training_step
    return load


def _evaluate_and_save(recipe: Recipe, trainer: Any, tracker: Tracker, simulation: Simulation) -> int:
    """The evaluations that the run makes, a batch of each, and saving between them. Returns the bytes that stay of a
    row."""
    row_bytes = 0
    with simulation, tracker, track_modules(tracker, trainer.model):
        with tracker.during("saving"):
            gather_state_dict(trainer.accelerator.unwrap_model(trainer.model))
        for dtype in list_evaluations(recipe):
            with tracker.during("evaluation"):
                row_bytes = evaluate_once(trainer, dtype)
    return row_bytes


@contextmanager
def _tagged(tracker: Tracker, trainer: Any) -> Iterator[None]:
    """Names gradients as they are made, and the optimizer's states after each of its steps."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    def name_gradient(param: torch.Tensor) -> None:
        if param.grad is not None:
            tracker.name(param.grad, "gradients")

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        own = {id(param) for param in trainer.model.parameters()}  # of now: FSDP2 puts its shards in their place
        for group in optimizer.param_groups:
            for param in group["params"]:
                tracker.name(param, "weights" if param.is_leaf and id(param) in own else "optimizer")
                name_gradient(param)

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        for state in optimizer.state.values():
            for value in state.values() if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor):
                    tracker.name(value, "optimizer")

    hooks = [p.register_post_accumulate_grad_hook(name_gradient) for p in trainer.model.parameters() if p.requires_grad]
    hooks += [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gather_state_dict(model: Any) -> None:
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        get_peft_model_state_dict(model)
    else:
        model.state_dict()


def _blocks(model: Any) -> int:
    """Modules of the kinds in the model's _no_split_modules."""
    kinds = getattr(model, "_no_split_modules", None) or ()
    return max(1, sum(type(part).__name__ in kinds for part in model.modules()))


def _result(
    recipe: Recipe,
    short: Recipe,
    trainer: Any,
    tracker: Tracker,
    simulation: Simulation,
    length: int,
    notes: list[str],
    seconds: float,
    capability: tuple[int, int] | None,
) -> Trace:
    model = trainer.accelerator.unwrap_model(trainer.model)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    logits = inner.config.get_text_config().vocab_size if TASKS[recipe.task].generates else inner.config.num_labels
    found = summarize_peak(
        tracker.events, tracker.storages, tracker.backward_begins, logits, int if capability is None else rounded
    )
    micro_batches = STEPS * trainer.args.gradient_accumulation_steps
    total, trainable = build.parameter_counts(model)
    if tracker.bounded:
        notes.append("labels: every position is counted as labelled, the most that a batch can have")
    return Trace(
        allocated=found.allocated,
        parts=found.parts,
        phase=found.phase,
        at=found.at,
        phases=found.phases,
        module_peaks=found.modules,
        largest=found.largest,
        events=tuple(tracker.events),
        work={
            "micro-batch": work_of(tracker.work, ("forward", "backward"), micro_batches),
            "optimizer": work_of(tracker.work, ("optimizer",), STEPS),
            "evaluation": work_of(tracker.work, ("evaluation",), 1),
        },
        parameters=total,
        trainable=trainable,
        trainable_bytes=sum(p.nbytes for p in model.parameters() if p.requires_grad),
        blocks=_blocks(inner),
        length=length,
        positions=longest_input(inner.config),
        micro_batch=trainer.args.train_batch_size,
        accumulation=accumulation_of(recipe),
        eval_batch=trainer.args.eval_batch_size,
        capability=capability,
        attention=dict(simulation.attention),
        notes=tuple(notes),
        estimate=(*estimate_reasons(recipe), *(f"{op}: {what}" for op, what in sorted(tracker.guessed.items()))),
        seconds=seconds,
        processes=trainer.args.world_size,
        streams=tuple(tracker.streams.items()),
    )
