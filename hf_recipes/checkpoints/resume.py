"""Resuming: `resume_from_checkpoint: true` takes the latest complete checkpoint in output_dir, a text is a path.

What prevents it is found before anything is loaded: the files by their manifest, the recipe by its keys; the data and
the weights' shapes once they are known. Rank 0 decides, the others do the same.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.checkpoints import compatibility, folders, manifest, select
from hf_recipes.checkpoints.select import ResumePoint, read_trainer_state
from hf_recipes.errors import CheckpointError, Diagnostic, RecipeError
from hf_recipes.record import Resumption, RunRecord, Status
from hf_recipes.record.file import find_record

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

RESTART = "resume with the recipe that wrote it, or start a new run in another output_dir"
MORE = {  # what becomes of a state that is of another kind
    "optimizer": " to start with a new optimizer",
    "scheduler": " to take the new schedule from the checkpoint's step on",
}
NEEDED = ("run", "recipe", "data", "world_size")  # of a manifest
BATCH = ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy")
OLDER = "resume from an older one with resume_from_checkpoint: PATH, or start without it"


def find_resume_point(
    recipe: Recipe, args: Any, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> ResumePoint | None:
    """Cleans up after a killed run; returns what this one resumes from, None if it starts from the beginning.
    May raise CheckpointError."""
    output_dir = str(args.output_dir)
    chosen = _decide_on_rank_0(lambda: _find_resume_point(recipe, output_dir, say, environment))
    if chosen and "restore_callback_states_from_checkpoint" not in recipe.training:
        args.restore_callback_states_from_checkpoint = True  # early stopping counts on from where it was
    if chosen:
        args.eval_on_start = False  # that evaluation is in the log already
    return chosen


def _find_resume_point(
    recipe: Recipe, output_dir: str, say: Callable[[str], None], environment: Mapping[str, str]
) -> ResumePoint | None:
    for line in folders.clean_leftovers(Path(output_dir)):
        say(line)
    chosen = resume_checkpoint(recipe, output_dir, environment)
    if chosen is None:
        if recipe.training.get("resume_from_checkpoint"):
            say(f"there is no checkpoint in {output_dir!r} yet: this run starts from the beginning")
        earlier = len(folders.list_checkpoints(Path(output_dir)))
        if earlier:
            many = f"{earlier} checkpoints" if earlier > 1 else "a checkpoint"
            line = f"{output_dir} has {many} of an earlier run: this run starts from the beginning; "
            say(line + "--resume would continue that one")
        return None
    for line in chosen.skipped:
        say(f"skipped {line}")
    lacks = [key for key in NEEDED if chosen.manifest is not None and key not in chosen.manifest]
    if lacks:
        what = f"{manifest.MANIFEST} of {chosen.path!r} has no {', '.join(lacks)}"
        raise CheckpointError.at(location_of(recipe), what, OLDER)
    if chosen.manifest is None:
        say(f"{chosen.path}: {select.NO_MANIFEST}")
    return chosen


def _decide_on_rank_0(decide: Callable[[], ResumePoint | None]) -> ResumePoint | None:
    """Rank 0's decision, or its error, on every rank."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decide()
    decision: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            decision = [decide()]
        except RecipeError as refusal:
            decision = [refusal.errors]
    torch.distributed.broadcast_object_list(decision)
    if isinstance(decision[0], tuple):
        raise CheckpointError(decision[0])
    found: ResumePoint | None = decision[0]
    return found


def resume_checkpoint(
    recipe: Recipe, output_dir: str, environment: Mapping[str, str] = os.environ
) -> ResumePoint | None:
    """The checkpoint that the recipe asks for; None if it asks for none, or `--resume` finds none yet. Raises
    CheckpointError if none is complete."""
    asked = recipe.training.get("resume_from_checkpoint")
    if not asked:
        return None
    location = location_of(recipe)
    without_state = "state" in allowed_differences(recipe)
    if asked is True:
        chosen, skipped = select.choose_checkpoint(Path(output_dir), without_state=without_state)
        if chosen is None and skipped:
            what = f"no checkpoint in {output_dir!r} is complete: " + "; ".join(skipped)
            raise CheckpointError.at(location, what, "start without it")
        if chosen is None and location != compatibility.FLAG:
            what = f"there is no checkpoint in {output_dir!r} to resume from"
            raise CheckpointError.at(location, what, "start without it")
        return chosen
    path = Path(str(asked))
    if not (path / folders.TRAINER_STATE).is_file() and not (path / manifest.MANIFEST).is_file():
        what = f"{str(asked)!r} is no checkpoint of a Trainer (it has no {folders.TRAINER_STATE})"
        raise CheckpointError.at(location, what)
    errors = select.find_errors(path, without_state=without_state)
    if errors:
        raise CheckpointError.at(location, f"{str(asked)!r} is not complete: {'; '.join(errors)}", OLDER)
    return ResumePoint(path=str(asked), manifest=manifest.read_manifest(path))


def allowed_differences(recipe: Recipe) -> tuple[str, ...]:
    """What may differ from the checkpoint although it matters: the recipe's `resume_allow`."""
    return tuple(recipe.get(compatibility.ALLOW) or ())


def location_of(recipe: Recipe) -> str:
    """Of resume_from_checkpoint, for messages."""
    return recipe.location(f"{recipe.trainer}.resume_from_checkpoint")


def earlier_session(checkpoint: str | None) -> tuple[int, int]:
    """Log entries and tokens that a checkpoint brings along: not this session's work."""
    if checkpoint is None:
        return 0, 0
    state = read_trainer_state(checkpoint)
    return len(state.get("log_history") or ()), int(state.get("num_input_tokens_seen") or 0)


def describe_run(recipe: Recipe, args: Any, record: RunRecord, device: Device) -> dict[str, Any]:
    """What every manifest of the run says of it: one id through all its resumptions, recipe, data, versions, device.

    `args`: as the trainer left them. `record`: for its id, data and versions.
    """
    import torch

    facts = {
        "run": record.run or uuid.uuid4().hex,
        "session": folders.next_session(Path(str(args.output_dir))),
        "recipe": compatibility.describe_recipe(recipe.sections, recipe.trainer, args.to_dict()),
        "data": {split: part.fingerprint for split, part in record.data.items()},
        **compatibility.describe_environment(device, record.versions, torch.get_num_threads()),
    }
    found: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return found


def add_resumption(
    record: RunRecord,
    facts: Mapping[str, Any],
    recipe: Recipe,
    args: Any,
    device: Device,
    chosen: ResumePoint | None,
) -> RunRecord:
    """The record with the run's id, what it resumed from, and whether that equals a run that was not interrupted."""
    reasons = compatibility.list_inexact_reasons(recipe.trainer, args, device)
    record = replace(record, run=facts["run"])
    if chosen is not None:
        if chosen.manifest is None:
            differences = [compatibility.UNKNOWN]
        else:
            differences = compatibility.list_differences(chosen.manifest, facts, args.world_size)
        last = replace(record.sessions[-1], resumed_at=chosen.step, differences=tuple(differences))
        resumed = Resumption(from_=chosen.path, step=chosen.step, passed_over=chosen.skipped)
        record = replace(record, resumed=resumed, sessions=(*record.sessions[:-1], last))
    reasons = list(dict.fromkeys([*(line for one in record.sessions for line in one.differences), *reasons]))
    return replace(record, resumption=compatibility.describe_exactness(reasons, facts["threads"], record.resumed_at))


def check_same_run(
    recipe: Recipe,
    chosen: ResumePoint,
    facts: Mapping[str, Any],
    args: Any,
    model: Any,
    record: RunRecord,
    folder: Path,
) -> list[str]:
    """Lines about the resumption. Raises CheckpointError for a checkpoint of another recipe, other data, another number
    of processes or another model, and for a run that is finished."""
    lines = [f"resuming from {chosen.path}, step {chosen.step} of {record.planned_steps}"]
    lines += _compare(recipe, chosen, facts, args.world_size)
    check_same_model(recipe, chosen.path, model)
    if is_training_done(recipe, chosen, record.planned_steps or 0, folder):
        lines.append("all its steps are made: its end is left to do")
    return lines


def _compare(recipe: Recipe, chosen: ResumePoint, now: Mapping[str, Any], processes: int) -> list[str]:
    """Lines about what differs and may. Raises CheckpointError with all that differs and may not."""
    then = chosen.manifest
    if then is None:
        return ["upstream's files do not name the recipe and the data that wrote this checkpoint"]
    location, allowed = location_of(recipe), allowed_differences(recipe)
    lines: list[str] = []
    errors: list[Diagnostic] = []

    def refuse(difference: str, what: str, fix: str) -> None:
        if difference in allowed:
            since = f"; from step {chosen.step + 1} on the recipe's holds" if difference in ("recipe", *MORE) else ""
            lines.append(f"not an exact resumption: {what}{since}")
        else:
            fix = f"{fix}, or write {compatibility.format_allowed(allowed, difference)}"
            errors.append(Diagnostic(location=location, message=what, fix=fix + MORE.get(difference, "")))

    same_steps = compatibility.has_same_steps(then, now, processes)
    division = compatibility.DIVISION if same_steps else ()
    found = [
        difference
        for difference in compatibility.compare_recipes(then["recipe"], now["recipe"])
        if difference.key.rpartition(".")[2] not in division
    ]
    scratch = "LoraConfig" in recipe.sections and recipe.get("model.pretrained_model_name_or_path") is None
    for difference in found:
        if scratch and difference.key == f"{recipe.trainer}.seed":  # no checkpoint of an adapter has its base model
            what = f"{difference}: the random weights below the adapter are made from it and would be others"
            errors.append(Diagnostic(location=location, message=what, fix="keep the seed, or start a new run"))
    matter = [difference for difference in found if difference.kind == "matters"]
    if matter:
        free = ", ".join(difference.key for difference in found if difference.kind == "free")
        what = f"{chosen.path!r} is of another recipe: {'; '.join(map(str, matter))}"
        refuse("recipe", what + (f" ({free} may differ)" if free else ""), RESTART)
        if any(difference.key.rpartition(".")[2] in BATCH for difference in matter):
            lines.append(
                f"the rows continue behind {chosen.step} steps of the new batch: some are skipped or come again"
            )
    for difference in found:
        if difference.kind in MORE:
            refuse(
                difference.kind, f"{chosen.path!r} has the state of another {difference.kind}: {difference}", RESTART
            )
        if difference.kind == "length":
            lines.append(f"{difference}: from here on this is not the run that was interrupted")
    if then["data"].get("train") != now["data"].get("train"):
        refuse("data", f"{chosen.path!r} was trained on other rows", RESTART)
    elif then["data"] != now["data"]:
        lines.append("the evaluation rows are not those of the interrupted run")
    if then["world_size"] != processes and same_steps:
        lines.append(
            f"{chosen.path} is of {then['world_size']} process(es), this run has {processes}: weights, optimizer and "
            "place in the data are exact, the order of sums and random streams (dropout) are not"
        )
    elif then["world_size"] != processes:
        what = f"{chosen.path!r} is of {then['world_size']} process(es), this run has {processes}: a step would have "
        rows = compatibility.rows_of_step(now["recipe"]["arguments"], processes)
        before = compatibility.rows_of_step(then["recipe"]["arguments"], then["world_size"])
        what += f"{rows} rows instead of {before}" if rows != before else "rows in another order"
        refuse("processes", what, f"start {then['world_size']}, or change gradient_accumulation_steps with them")
    if errors:
        raise CheckpointError(errors)
    return lines + [f"not bit for bit: {line}" for line in compatibility.list_environment_changes(then, now)]


def is_training_done(recipe: Recipe, chosen: ResumePoint, steps: int, folder: Path) -> bool:
    """Whether only saving and evaluation are left. Raises CheckpointError if they have been done, too."""
    if chosen.step < steps:
        return False
    record = find_record(folder)
    if record is None or record.status != Status.FINISHED or (chosen.run and record.run != chosen.run):
        return True
    what = f"{chosen.path!r} has {chosen.step} steps and the recipe asks for {steps}: nothing is left to train"
    key = "max_steps" if (recipe.training.get("max_steps") or 0) > 0 else "num_train_epochs"
    fix = f"raise {recipe.trainer}.{key}; to evaluate it, set do_train: false and "
    raise CheckpointError.at(location_of(recipe), what, f"{fix}model.pretrained_model_name_or_path: {chosen.path}")


def check_same_model(recipe: Recipe, checkpoint: str, model: Any) -> None:
    """Compares names and shapes of the checkpoint's tensors with the model's, from the files' headers only."""
    from safetensors import SafetensorError, safe_open

    location = location_of(recipe)
    files = [name for name in sorted(os.listdir(checkpoint)) if name.endswith(".safetensors")]
    if not files:
        raise CheckpointError.at(location, f"{checkpoint!r} has no weights (*.safetensors)")
    ours = {_plain(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in files:
        try:
            with safe_open(os.path.join(checkpoint, name), framework="pt") as weights:
                theirs = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as problem:
            what = f"{os.path.join(checkpoint, name)!r} cannot be read: {problem}"
            raise CheckpointError.at(location, what, OLDER) from problem
        for key, shape in theirs.items():
            if ours.get(_plain(key), shape) != shape:
                what = f"{checkpoint!r} is a checkpoint of another model: {key} is {shape}, here {ours[_plain(key)]}"
                raise CheckpointError.at(location, what, RESTART)
        if not any(_plain(key) in ours for key in theirs):
            what = f"{checkpoint!r} is a checkpoint of another model: it shares no tensor with this one"
            raise CheckpointError.at(location, what, RESTART)


def _plain(name: str) -> str:
    """peft saves an adapter's tensors without the adapter's name."""
    return name.replace(".default", "").replace(".modules_to_save", "").replace(".base_layer", "")
