"""The main path, top to bottom: `accelerate launch -m hf_recipes.run recipes/X.yaml [overrides]`."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.catalog.tasks import TASKS, split_metrics, task_of
from hf_recipes.checkpoints.compatibility import FLAG
from hf_recipes.common.device import rank, say
from hf_recipes.common.files import put
from hf_recipes.common.rank_watch import watching_ranks
from hf_recipes.common.ranks import explain_lost_rank
from hf_recipes.common.worker_signals import workers_ended
from hf_recipes.data.splits import file_errors, load_splits
from hf_recipes.errors import RecipeError
from hf_recipes.inference.added_metrics import Added, check_answers
from hf_recipes.models.config import build_config, longest_input
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.pipeline import final_metrics, finish, launch_checks
from hf_recipes.pipeline.output_dir import find_foreign_files, hold_output_dir
from hf_recipes.recipe.defaults import choose, choose_length, shown_choices
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe, dump_recipe
from hf_recipes.recipe.rules import all_rules
from hf_recipes.recipe.rules.device import missing_packages
from hf_recipes.record import (
    NAME,
    EndStep,
    Metrics,
    Stage,
    describe_machine,
)
from hf_recipes.record.file import parse_forecast
from hf_recipes.training.hooks import NONE as NO_HOOKS
from hf_recipes.training.hooks import Hooks
from hf_recipes.training.signals import Listener, Stopped

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.data.splits import Splits
    from hf_recipes.pipeline.recorder import RunRecorder


def run(
    path: str,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    resume: bool = False,
    planned: bool = True,
    until: int | None = None,
    hooks: Hooks = NO_HOOKS,
    trusted: bool = False,
) -> Path:
    """Trains what the recipe says and returns the path of the record. Raises RecipeError for what the user can fix.

    `hooks`: the caller's own code (hf_recipes.api). `until`: a replay (commands/verify.py) ends with a checkpoint after
    this step and is not evaluated. `trusted`: metrics that are programs of the Hub may run.
    """
    recipe = read_recipe(path, overrides)
    refused = () if smoke else tuple(missing_packages(recipe))  # warnings for `check`, errors further down
    found = [each for each in recipe.warnings if each not in refused]
    warnings_of_recipe = [f"warning: {each}" for each in [*found, *launch_checks.find_environment_warnings(recipe)]]
    for line in (*recipe.translations, *warnings_of_recipe):
        say(line)
    if resume:
        recipe = recipe.with_values({f"{recipe.trainer}.resume_from_checkpoint": True}, FLAG)
    if smoke:
        from hf_recipes.recipe.smoke import shrink

        recipe, replaced = shrink(recipe)
        say("smoke run; replaced: " + "; ".join(replaced))
    _refuse(launch_checks.find_environment_errors(recipe) + ([] if smoke else file_errors(recipe)))
    flags = [*(["--smoke"] if smoke else []), *(["--trust-remote-code"] if trusted else []), "--resume"]
    resume_command = shlex.join([*launch_checks.resume_command(path, overrides), *flags])
    with hold_output_dir(recipe, say) as folder:
        finish.refuse_no_checkpoint(recipe, folder)  # a run that is in the folder may not have saved one yet
        return _run_in(
            folder, recipe, warnings_of_recipe, resume_command, smoke=smoke, planned=planned, until=until, hooks=hooks,
            trusted=trusted,
        )  # fmt: skip


def _run_in(
    folder: Path, recipe: Recipe, warnings_of_recipe: list[str], resume_command: str, *, smoke: bool, planned: bool,
    until: int | None, hooks: Hooks, trusted: bool,
) -> Path:  # fmt: skip
    """The run, in a folder that no other run is in."""
    _silence_upstream()
    from hf_recipes.common.device import this_device  # torch is imported from here on

    device = this_device(use_cpu=bool(recipe.training.get("use_cpu")))
    _choose_deepspeeds_device(device)
    given = recipe
    recipe, choices = choose(recipe, device)
    _refuse(launch_checks.find_device_errors(recipe, device) + all_rules.device_errors(recipe, device))
    for line in shown_choices(given, choices):
        say(line)
    earlier = finish.find_earlier_end(recipe, folder) if recipe.training.get("resume_from_checkpoint") is True else None
    if earlier is not None and EndStep.EVALUATION in earlier.done:
        _refuse(list(find_foreign_files(recipe, folder)))
        if rank() == 0:
            from hf_recipes.pipeline.facts import describe_device

            machine = describe_machine(describe_device(device))
            with Listener(say).listening():
                finish.finish_earlier_run(recipe, folder, earlier, machine, say)
        finish.refuse_diverged(recipe, earlier)
        return folder / NAME
    from hf_recipes.pipeline.recorder import RunRecorder, refuse_newer_record
    from hf_recipes.training.trainer import build_arguments

    args = build_arguments(recipe)
    if "disable_tqdm" not in recipe.training:
        args.disable_tqdm = not sys.stderr.isatty()
    launch_checks.assert_world(args)
    _refuse([] if smoke else list(find_foreign_files(recipe, folder)))
    if recipe.training.get("resume_from_checkpoint"):
        refuse_newer_record(folder)
    recorder = RunRecorder(recipe, device, folder)
    recorder.choose(choices)
    recorder.record = replace(recorder.record, notes=tuple(warnings_of_recipe))
    if planned and device.kind == "cuda":
        with args.main_process_first(desc="plan"):
            recorder.record = replace(recorder.record, plan=_ask_plan(recipe, device, recorder))
    if earlier is not None:
        recorder.continue_end(earlier)
    with Listener(say).listening() as listener, recorder.recording(resume_command, until is None):
        watching = watching_ranks(args.process_index, args.world_size)
        with explain_lost_rank(), workers_ended(), listener.errors_first(), watching:
            added = final_metrics.choose(recipe, trusted=trusted)
            recipe = _train(recipe, args, recorder, listener, added, until, hooks)
        recorder.finish()
        if rank() == 0 and until is None:
            finish.finish_run(recipe, folder, lambda: recorder.record, recorder.mark_done, say)
    finish.refuse_diverged(recipe, recorder.record)
    return folder / NAME


def _ask_plan(recipe: Recipe, device: Device, recorder: RunRecorder) -> dict[str, Any] | None:
    """On rank 0, by a child process, before anything is loaded. Raises RecipeError for what cannot fit."""
    if rank() != 0:
        return None
    import torch

    from hf_recipes.plan.fit.parallel import launched_layout, offloads
    from hf_recipes.plan.preflight import ask_plan
    from hf_recipes.plan.trace import worker

    try:
        free, layout = torch.cuda.mem_get_info()[0], launched_layout()
        return ask_plan(recipe, device, free, recorder.note, layout=layout, offloads=offloads())
    finally:
        worker.close()


def _choose_deepspeeds_device(device: Device) -> None:
    """Where DeepSpeed is installed, accelerate imports it in every run. It would take a GPU although the recipe has
    use_cpu, and warn where there is none."""
    if device.kind == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _silence_upstream() -> None:
    """Lines of other packages about themselves, in every run on a CPU or with LoRA, that no recipe can fix."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # "Failed to load CPU gemm_4bit_forward"
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's call
    if not sys.stderr.isatty():  # a bar would be one long line of carriage returns in a log file
        import datasets
        import transformers

        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


def _refuse(errors: Sequence[Any]) -> None:
    if errors:
        raise RecipeError(errors)


def _train(
    recipe: Recipe, args: Any, recorder: RunRecorder, listener: Listener, added: Added, until: int | None = None,
    hooks: Hooks = NO_HOOKS,
) -> Recipe:  # fmt: skip
    """From the data to the scores; the recorder gets each fact as soon as it is known."""
    from hf_recipes.checkpoints import resume as resuming
    from hf_recipes.data.row_checks import check_rows
    from hf_recipes.data.row_origins import naming_rows_of_files
    from hf_recipes.evaluation.scoring import Scoring
    from hf_recipes.models import build
    from hf_recipes.pipeline import facts, summary
    from hf_recipes.training import trainer as training
    from hf_recipes.training.step_timer import StepTimer

    folder, device = recorder.folder, recorder.device
    trained = EndStep.WEIGHTS in recorder.record.done  # by an earlier session: what is left is its evaluation
    chosen = None if trained else resuming.find_resume_point(recipe, args, recorder.note)
    if chosen:
        recorder.continue_run(chosen)
    recipe = recipe.without_key(f"{recipe.trainer}.resume_from_checkpoint")  # what is written can be run again
    recorder.enter(Stage.DATA)
    config = build_config(recipe)
    if hooks.describe():
        hooks.check_names(task_of(recipe).metrics)
        recorder.note(hooks.describe())
    splits = hooks.format_splits(_smoke_splits(recipe) or load_splits(recipe))
    for line in splits.notes:
        recorder.note(line)
    with naming_rows_of_files(splits.origins):
        tokenizer = build_tokenizer(recipe, splits.train, recorder.note)
    recipe, length, lines = choose_length(recipe, longest_input(config), tokenizer.model_max_length)
    _refuse_length(recipe, length, longest_input(config))
    if recipe.trainer == "SFTConfig" and recipe.training.get("max_length") is not None:
        args.max_length = length
    recorder.record = replace(recorder.record, recipe=facts.describe_recipe(recipe))
    recorder.choose(lines)
    # causal-lm's rows are made under a lock instead: a barrier ends after ddp_timeout, and they may take hours.
    alone = contextlib.nullcontext() if recipe.task == "causal-lm" else args.main_process_first(desc="rows")
    with alone, naming_rows_of_files(splits.origins):
        prepared = import_module(TASKS[recipe.task].module).prepare(splits, tokenizer, recipe, length, config)
    for line in prepared.notes:
        recorder.note(line)
    check_rows(recipe, prepared, tokenizer, recorder.note)
    check_answers(added, recipe.task, prepared.evals.values())

    recorder.enter(Stage.MODEL)
    model = build.build_model(recipe, config, tokenizer, prepared.config, recorder.note)
    if recipe.get("master_weights"):
        from hf_recipes.models.half_precision import prepare_model

        model = prepare_model(model)
    metrics, threshold = split_metrics(recipe)[0], float(recipe.get("threshold") or 0.5)
    location = recipe.location("metrics")
    scoring = Scoring(task_of(recipe), prepared, metrics, location, threshold, add=hooks.add_metrics)
    forecast = parse_forecast((recorder.record.plan or {}).get("forecast") or {})

    def write_recipe() -> None:
        if rank() == 0:
            put(folder / "recipe.yaml", dump_recipe(recipe))

    def record_first_step() -> None:
        recorder.record_running()
        write_recipe()

    session = training.Session(
        listener=listener,
        run_facts=lambda args: resuming.describe_run(recipe, args, recorder.record, device),
        timer=StepTimer(say, forecast.seconds, bar=not args.disable_tqdm),
        say=say,
        sessions=recorder.sessions_for_manifest,
        after_first_step=record_first_step,
        after_evaluation=recorder.report_running,
        until=until,
        hooks=hooks,
    )
    compute_metrics, preprocess_logits = scoring.compute_metrics, scoring.preprocess_logits
    trainer = training.build_trainer(
        recipe, args, model, tokenizer, prepared, compute_metrics, preprocess_logits, recorder.note, session
    )
    launch_checks.assert_sharding(trainer.accelerator.state)
    recorder.record = facts.add_facts(recorder.record, recipe, args, trainer, model, tokenizer, prepared)
    _refuse_no_batch(recipe, args, trainer.train_dataset)
    provenance = trainer.parts.writer.facts(args)
    recorder.record = resuming.add_resumption(recorder.record, provenance, recipe, args, device, chosen)
    notes = []
    if chosen:
        own_model = trainer.accelerator.unwrap_model(trainer.model)
        notes = resuming.check_same_run(recipe, chosen, provenance, args, own_model, recorder.record, folder)
    for line in summary.describe_start(recipe, args, recorder.record):
        say(line)
    _warn_of_full_disk(recipe, args, trainer, recorder)
    if chosen is None or trained:  # else when a step is made with it: until then the resumption may be refused
        write_recipe()

    recorder.record = replace(recorder.record, forecast=forecast)
    for line in notes:
        recorder.note(line)
    if trained:
        trainer.load_final_model(recorder.record.steps or 0, recorder.record.epochs)
    elif recipe.training.get("do_train") is not False:
        recorder.enter(Stage.TRAINING)
        before = {"logged": len(recorder.record.log_history), "tokens": recorder.record.tokens or 0}
        first_step = chosen.step + 1 if chosen else 1
        recorder.begin_training(first_step, lambda record: facts.add_progress(record, trainer, session.timer, **before))
        listener.training = True
        try:
            result = trainer.train(resume_from_checkpoint=chosen.path if chosen else None)
            if trainer.parts.guard.stop_signal:
                raise Stopped(trainer.parts.guard.stop_signal)
        finally:
            listener.training = False
            recorder.end_training()
        write_recipe()
        recorder.record = replace(recorder.record, train_loss=result.metrics["train_loss"])
        recorder.record = facts.add_outcome(recorder.record, trainer)
        for line in summary.describe_outcome(recorder.record):
            recorder.note(line)
        if until is not None:
            return recipe
        recorder.enter(Stage.SAVING)
        trainer.save_final_model()
        recorder.mark_done(EndStep.WEIGHTS)
        trainer.remove_all_but_best()
        signal = trainer.parts.guard.requested_signal(args)
        if signal:
            raise Stopped(signal)
    else:
        recorder.record = replace(recorder.record, steps=0)
    _evaluate(trainer, scoring, recorder, added)
    return recipe


def _evaluate(trainer: Any, scoring: Any, recorder: RunRecorder, added: Added) -> None:
    """Metrics, per-example scores and their intervals."""
    from hf_recipes.compare.intervals import intervals_of_run

    recorder.enter(Stage.EVALUATION)
    recorder.record = replace(recorder.record, metrics=Metrics(**scoring.evaluate(trainer)))
    loss = recorder.record.metrics.of("eval").get("eval_loss", 0.0)
    if not math.isfinite(loss) and recorder.record.steps and not recorder.record.diverged:
        recorder.record = replace(recorder.record, diverged=f"the loss on the validation split is {loss:g}")
    scored = time.perf_counter()
    recorder.record = replace(recorder.record, scores=scoring.write(trainer, recorder.folder))
    more = final_metrics.add(added, trainer, scoring, recorder)
    intervals = intervals_of_run(recorder.folder, recorder.record)
    recorder.record = replace(
        recorder.record, intervals={split: {**found, **more.get(split, {})} for split, found in intervals.items()}
    )
    recorder.record_scores(time.perf_counter() - scored)
    recorder.enter(Stage.END)


def _warn_of_full_disk(recipe: Recipe, args: Any, trainer: Any, recorder: RunRecorder) -> None:
    from hf_recipes.checkpoints.disk_space import find_shortage_of_run
    from hf_recipes.checkpoints.saving import model_sizes

    model = trainer.plain_model()
    if model is None or not args.should_save:
        return
    shortage = find_shortage_of_run(recorder.folder, args, recorder.record.planned_steps or 0, *model_sizes(model))
    if shortage:
        recorder.note(f"warning: {recipe.location(f'{recipe.trainer}.output_dir')}: {shortage}")


def _smoke_splits(recipe: Recipe) -> Splits | None:
    if not recipe.is_generated:
        return None
    from hf_recipes.data.generated import generate_splits

    return generate_splits(recipe)


def _refuse_length(recipe: Recipe, length: int, positions: int | None) -> None:
    if positions is not None and length > positions:
        dotted = recipe.max_length_key
        what = f"{length} tokens are more than the model's {positions} positions"
        raise RecipeError.at(recipe.location(dotted), what, f"set {dotted}: {positions} or less")


def _refuse_no_batch(recipe: Recipe, args: Any, train: Any) -> None:
    batch = args.per_device_train_batch_size * args.world_size
    if args.dataloader_drop_last and hasattr(train, "__len__") and len(train) < batch:
        what = f"dataloader_drop_last: true leaves nothing to train on: {len(train)} rows make no batch of {batch}"
        where = recipe.location(f"{recipe.trainer}.dataloader_drop_last")
        raise RecipeError.at(where, what, "leave it out, or take a smaller per_device_train_batch_size")
