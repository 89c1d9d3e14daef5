"""The main path, top to bottom: `accelerate launch -m hf_recipes.run recipes/X.yaml [overrides]`."""

from __future__ import annotations

import logging
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes import record as records
from hf_recipes.catalog.tasks import TASKS
from hf_recipes.common.device import is_sharded, rank, say
from hf_recipes.common.files import put
from hf_recipes.data.splits import file_errors, load_splits
from hf_recipes.errors import OutOfMemoryError, RecipeError
from hf_recipes.models.config import build_config, longest_input
from hf_recipes.models.tokenizer import build_tokenizer
from hf_recipes.pipeline import launch_checks
from hf_recipes.pipeline.output_dir import foreign_files, writable
from hf_recipes.recipe.defaults import choose, choose_length
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe, dump_recipe
from hf_recipes.recipe.rules import all_rules
from hf_recipes.recipe.rules.device import missing_packages
from hf_recipes.training.signals import Listener, Stopped

if TYPE_CHECKING:
    from hf_recipes.common.device import Device


def run(
    path: str,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
    resume: bool = False,
    planned: bool = True,
    until: int | None = None,
) -> Path:
    """Trains what the recipe says and returns the path of the record. Raises RecipeError for what the user can mend.

    `until`: a replay (commands/verify.py) ends with a checkpoint after this step and is not evaluated.
    """
    recipe = read_recipe(path, overrides)
    refused = () if smoke else tuple(missing_packages(recipe))  # doubts for `check`, faults further down
    warned = [f"warning: {each}" for each in recipe.warnings if each not in refused]
    for line in (*recipe.translations, *warned):
        say(line)
    if resume:
        recipe = recipe.with_values({f"{recipe.trainer}.resume_from_checkpoint": True}, "argument '--resume'")
    if smoke:
        from hf_recipes.recipe.smoke import shrink

        recipe, replaced = shrink(recipe)
        say("smoke run; replaced: " + "; ".join(replaced))
    _refuse(launch_checks.environment_errors(recipe) + ([] if smoke else file_errors(recipe)))

    _without_noise()
    from hf_recipes.common.device import this_device  # torch is imported from here on

    device = this_device(use_cpu=bool(recipe.training.get("use_cpu")))
    recipe, choices = choose(recipe, device)
    _refuse(launch_checks.device_errors(recipe, device) + all_rules.device_errors(recipe, device))
    for line in choices:
        say(line)
    from hf_recipes.training.trainer import build_arguments

    args = build_arguments(recipe)
    launch_checks.assert_world(args)
    folder = writable(str(args.output_dir), recipe.location(f"{recipe.trainer}.output_dir"))
    _refuse([] if smoke else list(foreign_files(recipe, folder)))
    record = records.opening(recipe, device, choices)
    if planned and device.kind == "cuda":
        with args.main_process_first(desc="plan"):
            record["plan"] = _ask_plan(recipe, device)
    again = shlex.join([*launch_checks.command(path, overrides), *(["--smoke"] if smoke else []), "--resume"])
    with _recorded(record, folder, device, again, until is None), Listener(say).listening() as listener:
        recipe = _train(recipe, args, device, folder, record, listener, until)
    if rank() == 0 and until is None:
        _publish(recipe, folder, record)
    return folder / records.NAME


def _ask_plan(recipe: Recipe, device: Device) -> dict[str, Any] | None:
    """On rank 0, by a child process, before anything is loaded. Raises RecipeError for what cannot fit."""
    if rank() != 0 or is_sharded():
        return None
    import torch

    from hf_recipes.plan.preflight import ask_plan
    from hf_recipes.plan.trace import worker

    try:
        return ask_plan(recipe, device, torch.cuda.mem_get_info()[0], say)
    finally:
        worker.close()


def _without_noise() -> None:
    """Lines of other packages about themselves, in every run on a CPU or with LoRA, that no recipe can mend."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # "Failed to load CPU gemm_4bit_forward"
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's call


def _refuse(errors: Sequence[Any]) -> None:
    if errors:
        raise RecipeError(errors)


def _train(
    recipe: Recipe,
    args: Any,
    device: Device,
    folder: Path,
    record: dict[str, Any],
    listener: Listener,
    until: int | None = None,
) -> Recipe:
    """From the data to the scores; `record` is filled on the way, so that a failure leaves what is known."""
    from hf_recipes.checkpoints import resume as resuming
    from hf_recipes.compare import intervals
    from hf_recipes.data.row_checks import check_rows
    from hf_recipes.evaluation.scoring import Scoring
    from hf_recipes.models import build
    from hf_recipes.pipeline import summary
    from hf_recipes.training import trainer as training
    from hf_recipes.training.step_timer import StepTimer

    began = time.perf_counter()
    chosen = resuming.find_resume_point(recipe, args, say)
    checkpoint = chosen.path if chosen else None
    record["where"] = "data"
    config = build_config(recipe)
    splits = _smoke_splits(recipe) or load_splits(recipe)
    for line in splits.notes:
        say(line)
    tokenizer = build_tokenizer(recipe, splits.train, say)
    recipe, length, lines = choose_length(recipe, longest_input(config), tokenizer.model_max_length)
    _refuse_length(recipe, length, longest_input(config))
    if recipe.trainer == "SFTConfig" and recipe.training.get("max_length") is not None:
        args.max_length = length
    record["recipe"], record["choices"] = records.described(recipe), [*record["choices"], *lines]
    with args.main_process_first(desc="rows"):
        prepared = import_module(TASKS[recipe.task].module).prepare(splits, tokenizer, recipe, length)
    for line in (*lines, *prepared.notes):
        say(line)
    check_rows(recipe, prepared, tokenizer, say)

    record["where"] = "model"
    model = build.build_model(recipe, config, tokenizer, prepared.config, say)
    if recipe.get("master_weights"):
        from hf_recipes.models.half_precision import prepare_model

        model = prepare_model(model)
    scoring = Scoring(recipe.task, prepared, tuple(recipe.get("metrics")), recipe.location("metrics"))
    told = (record.get("plan") or {}).get("forecast") or {}
    session = training.Session(
        listener=listener,
        run_facts=lambda args: resuming.describe_run(recipe, args, record, device, chosen),
        timer=StepTimer(say, tuple(told["seconds"]) if told.get("seconds") else None),
        until=until,
    )
    trainer = training.build_trainer(
        recipe, args, model, tokenizer, prepared, scoring.compute_metrics, scoring.preprocess_logits, say, session
    )
    record.update(summary.facts(recipe, args, trainer, model, tokenizer, prepared))
    _refuse_no_batch(recipe, args, trainer.train_dataset)
    facts = trainer.parts.writer.facts(args)
    resuming.record_resumption(record, facts, recipe, args, device, chosen)
    notes = []
    if chosen:
        notes = resuming.check_same_run(
            recipe, chosen, facts, args, trainer.accelerator.unwrap_model(trainer.model), record, folder
        )
    for line in summary.opening(recipe, args, device, record):
        say(line)
    if trainer.is_world_process_zero():
        put(folder / "recipe.yaml", dump_recipe(recipe))

    record["forecast"] = {**told, "measured_step_seconds": None}
    record["where"] = "training"
    earlier = resuming.earlier_session(checkpoint)  # read now: rotation may remove the checkpoint
    for line in notes:
        say(line)
    if recipe.training.get("do_train") is not False:
        listener.training = True
        try:
            result = trainer.train(resume_from_checkpoint=checkpoint)
            if trainer.parts.guard.stop_signal:
                raise Stopped(trainer.parts.guard.stop_signal)
        except BaseException:
            record.update(summary.so_far(trainer))
            raise
        finally:
            listener.training = False
            record.update(summary.survived(trainer))
        record["forecast"]["measured_step_seconds"] = session.timer.step_seconds
        record.update(summary.trained(trainer, result, *earlier))
        if until is not None:
            return recipe
        record["where"] = "saving"
        trainer.save_final_model()
        signal = trainer.parts.guard.requested_signal(args)
        if signal:
            raise Stopped(signal)
    else:
        record["steps"] = 0

    record["where"] = "evaluation"
    record["metrics"] = scoring.evaluate(trainer)
    scored = time.perf_counter()
    record["scores"] = scoring.write(trainer, folder)
    record["intervals"] = intervals.of_run(folder, record)
    ended = time.perf_counter()
    record["time"] = {**record.get("time", {}), "scores_seconds": ended - scored, "total_seconds": ended - began}
    record["where"] = "end"
    return recipe


def _publish(recipe: Recipe, folder: Path, record: dict[str, Any]) -> None:
    """The card, the result in words, and the Hub if the recipe says so: a Hub that is down never costs the run."""
    from hf_recipes.hub import push
    from hf_recipes.hub.model_card import model_card
    from hf_recipes.pipeline import summary

    if recipe.training.get("do_train") is not False:  # else there is no model here that a card could describe
        put(folder / "README.md", model_card(record))
    for line in summary.closing(recipe, folder, record):
        say(line)
    if recipe.training.get("push_to_hub"):
        outcome = push.push_after_training(
            folder,
            repo_id=recipe.training.get("hub_model_id"),
            private=recipe.training.get("hub_private_repo"),
            revision=recipe.training.get("hub_revision"),
        )
        say(str(outcome))


def _smoke_splits(recipe: Recipe) -> Any:
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
    if args.dataloader_drop_last and len(train) < batch:
        what = f"dataloader_drop_last: true leaves nothing to train on: {len(train)} rows make no batch of {batch}"
        where = recipe.location(f"{recipe.trainer}.dataloader_drop_last")
        raise RecipeError.at(where, what, "leave it out, or take a smaller per_device_train_batch_size")


@contextmanager
def _recorded(record: dict[str, Any], folder: Path, device: Device, again: str, report: bool = True) -> Iterator[None]:
    """Writes the record and the report however the run ends. `again`: the command that goes on."""
    import torch

    began = time.time()
    try:
        yield
        record["status"] = "finished"
    except KeyboardInterrupt:
        record["status"] = "stopped"
        raise
    except OutOfMemoryError as problem:
        record["status"], record["error"] = "out of memory", problem.errors[0].message
        _say_what_would_fit(record, device)
        raise
    except torch.OutOfMemoryError as problem:
        record["status"], record["error"] = "out of memory", str(problem).splitlines()[0]
        what = f"out of memory in {record['where']}: {record['error']}"
        raise RecipeError.at(record["recipe"]["path"], what, "`hf-recipes plan` says what fits") from problem
    except BaseException as problem:
        record["status"], record["error"] = "failed", f"{type(problem).__name__}: {problem}"
        raise
    finally:
        record["ended"] = records.now()
        record["memory"] = records.memory(device)
        ran_out_alone = record["status"] == "out of memory" and rank() != 0  # rank 0 waits for this one
        if ran_out_alone or (rank() == 0 and not records.tells_of_another_rank(folder, began)):
            path = records.write(folder, record, records.name_for(folder, record))
            if report and rank() == 0 and record["where"] not in records.BEGINNING:
                from hf_recipes.report.of_run import write_report

                write_report(folder, record, say)
            if record["status"] == "stopped":
                _say_stopped(record, folder, path, again)


def _say_what_would_fit(record: dict[str, Any], device: Device) -> None:
    """By plan, in a child process, for the card that was too small. It never fails."""
    if device.kind != "cuda" or rank() != 0 or is_sharded():
        return
    from hf_recipes.plan.preflight import what_would_fit
    from hf_recipes.plan.trace import worker

    try:
        what_would_fit(
            Recipe(path=record["recipe"]["path"], sections=record["recipe"]["sections"], locations={}), device, say
        )
    except Exception as problem:  # a help beside the message, which comes in any case
        say(f"plan: cannot tell what would fit ({problem})")
    finally:
        worker.close()


def _say_stopped(record: dict[str, Any], folder: Path, path: Path, again: str) -> None:
    """How far it came, and how it goes on."""
    from hf_recipes.checkpoints import select

    steps = f" after {record['steps']} steps" if record.get("steps") else ""
    say(f"\nstopped in {record['where']}{steps}; record {path}")
    checkpoint, _ = select.choose_checkpoint(folder) if steps else (None, [])
    if checkpoint:
        say(f"{checkpoint.path} is whole; to go on from it:\n  {again}")
