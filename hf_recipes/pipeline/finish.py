"""The end of a run as a list of steps: what was not done, since the run was killed before it, is done by `--resume`.

Each step can be made again, and the record remembers those that are done. Imports neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.checkpoints import folders, manifest
from hf_recipes.checkpoints.compatibility import FLAG, is_free
from hf_recipes.common.environment import timestamp
from hf_recipes.common.files import put
from hf_recipes.common.typed_json import to_json
from hf_recipes.errors import CheckpointError, DivergedError
from hf_recipes.pipeline import summary
from hf_recipes.record import (
    COMPLETE,
    EndStep,
    RunRecord,
    Session,
    Stage,
)
from hf_recipes.record.file import find_record, write_record

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

AGAIN = "train again with a lower learning_rate, more warmup_steps or max_grad_norm: 1.0"
FILES = {EndStep.CARD: "README.md", EndStep.REPORT: "report.html"}


def steps_of_end(training: Mapping[str, Any], *, diverged: bool = False) -> tuple[EndStep, ...]:
    """What the end of a run consists of, in order. `training`: the trainer's section of its recipe."""
    trained = training.get("do_train") is not False
    found = [EndStep.WEIGHTS] if trained else []
    found += [EndStep.EVALUATION, *([EndStep.CARD] if trained else []), EndStep.REPORT]
    return (*found, EndStep.PUSH) if training.get("push_to_hub") and not diverged else tuple(found)


def list_left(folder: Path | None, record: RunRecord, training: Mapping[str, Any] | None = None) -> tuple[EndStep, ...]:
    """The steps of the end that are not done, or whose file is not in `folder` (None: by the record alone)."""
    section = record.recipe.training if training is None else training
    return tuple(
        step
        for step in steps_of_end(section, diverged=record.status == record.status.DIVERGED)
        if not _is_done(folder, record, step)
    )


def _is_done(folder: Path | None, record: RunRecord, step: EndStep) -> bool:
    file = FILES.get(step)
    if file is not None and folder is not None and not (folder / file).is_file():
        return False
    before_steps = record.schema < 3 and file is not None  # an older version did not write down which it made
    return step in record.done or before_steps


def describe_left(left: tuple[EndStep, ...]) -> str:
    """ "left to do: model card, report"."""
    return f"left to do: {', '.join(left)}"


def find_earlier_end(recipe: Recipe, folder: Path) -> RunRecord | None:
    """The record of this recipe's run in `folder` if its last step is made and its weights are saved, and its
    checkpoints are as it left them."""
    record = find_record(folder)
    if record is None or not _has_weights(record) or not _has_latest_checkpoint(folder, record):
        return None
    length = recipe.max_length_key  # chosen when the data are read, if none is stated
    unstated = length if recipe.get(length) is None else ""
    return record if _settings(recipe.sections, unstated) == _settings(record.recipe.sections, unstated) else None


def _has_weights(record: RunRecord) -> bool:
    return record.status in COMPLETE or EndStep.WEIGHTS in record.done


def _has_latest_checkpoint(folder: Path, record: RunRecord) -> bool:
    """Whether no other run has saved since, and the run's last checkpoint was not removed or damaged."""
    latest = next(iter(folders.list_checkpoints(folder)), None)
    if latest is None:
        return record.last_checkpoint is None and record.recipe.training.get("save_strategy") == "no"
    if not folders.is_complete(latest):
        return False
    body = manifest.read_manifest(latest) or {}
    if body.get("run") != record.run:
        return False
    if record.last_checkpoint is not None:
        return latest.name == record.last_checkpoint
    return record.status not in COMPLETE or folders.step_of(latest) >= (record.steps or 0)


def _settings(sections: Mapping[str, Any], unstated: str) -> dict[str, Any]:
    """What decides how far a run trains and to what; not where it writes, nor how it is resumed."""
    kept = {
        name: {
            key: value
            for key, value in part.items()
            if not (name in ("TrainingArguments", "SFTConfig") and (is_free(key) or key == "resume_from_checkpoint"))
            and f"{name}.{key}" != unstated
        }
        if isinstance(part, Mapping)
        else part
        for name, part in sections.items()
        if name not in ("resume_allow", "disable_guards")
    }
    found: dict[str, Any] = to_json(kept)
    return found


def refuse_no_checkpoint(recipe: Recipe, folder: Path) -> None:
    """Before anything heavy is imported. Raises CheckpointError where there is nothing that could be resumed."""
    where = recipe.location(f"{recipe.trainer}.resume_from_checkpoint")
    if recipe.training.get("resume_from_checkpoint") is not True or where == FLAG:
        return
    record = find_record(folder)
    done = record is not None and _has_weights(record)
    if not (done or folders.list_checkpoints(folder) or folders.list_leftovers(folder)):
        what = f"there is no checkpoint in {str(recipe.training['output_dir'])!r} to resume from"
        raise CheckpointError.at(where, what, "start without it")


def refuse_nothing_left(recipe: Recipe, folder: Path, record: RunRecord) -> None:
    """Raises CheckpointError, with what a user of a finished run may want."""
    steps, planned, training = record.steps or 0, record.planned_steps or 0, recipe.training
    where = recipe.location(f"{recipe.trainer}.resume_from_checkpoint")
    if training.get("do_train") is False:
        what = f"{str(folder)!r} has the evaluation that the recipe asks for: nothing is left to do"
        raise CheckpointError.at(where, what, "start without it to evaluate again")
    if record.diverged:
        what = f"the run in {str(folder)!r} diverged: {record.diverged}; nothing is left to do"
        raise CheckpointError.at(where, what, AGAIN)
    name = next((str(path) for path in folders.list_checkpoints(folder)), str(folder))
    what = f"{name!r} has {steps} steps and the recipe asks for {planned}: nothing is left to train"
    if steps < planned:
        what = f"the run in {str(folder)!r} stopped early, at step {steps} of {planned}: nothing is left to train"
    key = "max_steps" if (training.get("max_steps") or 0) > 0 else "num_train_epochs"
    fix = f"raise {recipe.trainer}.{key}; to evaluate it, set do_train: false and "
    raise CheckpointError.at(where, what, f"{fix}model.pretrained_model_name_or_path: {name}")


def refuse_diverged(recipe: Recipe, record: RunRecord) -> None:
    """After all is written. Raises DivergedError (exit status 3): the result is worth nothing."""
    if record.diverged:
        where = recipe.location(f"{recipe.trainer}.learning_rate")
        raise DivergedError.at(where, f"the run diverged: {record.diverged}; nothing is pushed", AGAIN)


def finish_run(
    recipe: Recipe,
    folder: Path,
    read: Callable[[], RunRecord],
    mark: Callable[[EndStep], None],
    say: Callable[..., None],
) -> None:
    """Model card, report, the result, and the Hub if the recipe says so: what of it is left. A Hub that is down never
    costs the run. `read`: the record as it is; `mark`: writes into it that a step is done."""
    left = list_left(folder, read(), recipe.training)
    if EndStep.CARD in left:
        from hf_recipes.hub.model_card import model_card

        put(folder / FILES[EndStep.CARD], model_card(read()))
        mark(EndStep.CARD)
    if EndStep.REPORT in left:
        from hf_recipes.report.of_run import write_report

        if write_report(folder, read(), say):
            mark(EndStep.REPORT)
    for line in summary.describe_end(recipe, folder, read()):
        say(line)
    if EndStep.PUSH in left:
        from hf_recipes.hub import push

        outcome = push.push_after_training(
            folder,
            repo_id=recipe.training.get("hub_model_id"),
            private=recipe.training.get("hub_private_repo"),
            revision=recipe.training.get("hub_revision"),
        )
        say(str(outcome))
        if outcome.pushed:
            mark(EndStep.PUSH)


def finish_earlier_run(recipe: Recipe, folder: Path, record: RunRecord, machine: str, say: Callable[..., None]) -> None:
    """What is left of a run that came to its end and was killed before all was written. `machine`: this one's device.
    Raises CheckpointError where nothing is left."""
    left = list_left(folder, record, recipe.training)
    if not left:
        refuse_nothing_left(recipe, folder, record)
    say(f"all {record.steps} steps are made; {describe_left(left)}" if record.steps else describe_left(left))
    session = Session(started=timestamp(), resumed_at=record.steps, machine=machine, stage=Stage.END)
    earlier = record.sessions

    def mark(step: EndStep) -> None:
        nonlocal record
        so_far = replace(session, ended=timestamp(), status=record.status)
        record = replace(record, done=(*record.done, step), sessions=(*earlier, so_far))
        write_record(folder, record)

    finish_run(recipe, folder, lambda: record, mark, say)
