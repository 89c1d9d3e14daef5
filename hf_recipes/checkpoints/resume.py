"""Going on from a checkpoint: true is the newest whole one in output_dir, a text is a path.

What stands in the way is looked for before anything is loaded: the files by their manifest, the recipe by its keys;
the data and the weights' shapes when there are some to hold them against. Rank 0 looks, the others do as it found.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_recipes.checkpoints import compatibility, folders, select
from hf_recipes.checkpoints.select import Chosen, state_of
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.record import Resumption, RunRecord, Status, find_record

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

ANEW = "resume with the recipe that wrote it, or start anew in another output_dir"
OLDER = "resume from an older one with resume_from_checkpoint: PATH, or start without it"
DESPITE = "resume_despite"
SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def begin(
    recipe: Recipe, args: Any, say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> Chosen | None:
    """Cleans what a dead run left, and says what the run goes on from; None if it starts anew. Raises RecipeError."""
    output_dir = str(args.output_dir)
    chosen = _agreed(lambda: _begin(recipe, output_dir, say, environment))
    if chosen and "restore_callback_states_from_checkpoint" not in recipe.training:
        args.restore_callback_states_from_checkpoint = True  # early stopping counts on where it was
    if chosen:
        args.eval_on_start = False  # that evaluation is in the log already
    return chosen


def _begin(
    recipe: Recipe, output_dir: str, say: Callable[[str], None], environment: Mapping[str, str]
) -> Chosen | None:
    for line in folders.clean(Path(output_dir)):
        say(line)
    chosen = resume_checkpoint(recipe, output_dir, environment)
    if chosen is None:
        earlier = folders.checkpoints(Path(output_dir))
        if earlier:
            many = f"{len(earlier)} checkpoints of an earlier run lie" if len(earlier) > 1 else "a checkpoint lies"
            say(f"{many} in {output_dir}: this run starts anew, --resume would have gone on from there")
        return None
    for line in chosen.passed:
        say(f"passed over {line}")
    if chosen.manifest is None:
        say(f"{chosen.path}: {select.UNPROVEN}")
    return chosen


def _agreed(decide: Callable[[], Chosen | None]) -> Chosen | None:
    """Rank 0 decides; its refusal is everyone's."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decide()
    said: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            said = [decide()]
        except RecipeError as refusal:
            said = [refusal.errors]
    torch.distributed.broadcast_object_list(said)
    if isinstance(said[0], tuple):
        raise RecipeError(said[0])
    found: Chosen | None = said[0]
    return found


def resume_checkpoint(recipe: Recipe, output_dir: str, environment: Mapping[str, str] = os.environ) -> Chosen | None:
    """The checkpoint that the recipe asks for; None if it asks for none. Raises RecipeError if none is whole."""
    asked = recipe.training.get("resume_from_checkpoint")
    if not asked:
        return None
    where = _place(recipe)
    words = {
        "without_state": "state" in despite(recipe),
        "sharded": any(environment.get(name, "false").lower() == "true" for name in SHARDED),
    }
    if asked is True:
        chosen, passed = select.choose(Path(output_dir), **words)
        if chosen is None and passed:
            what = f"no checkpoint in {output_dir!r} is whole: " + "; ".join(passed)
            raise RecipeError.at(where, what, "start without it")
        if chosen is None:
            raise RecipeError.at(where, f"there is no checkpoint in {output_dir!r} to resume from", "start without it")
        return chosen
    path = Path(str(asked))
    if not (path / select.STATE).is_file() and not (path / "manifest.json").is_file():
        raise RecipeError.at(where, f"{str(asked)!r} is no checkpoint of a Trainer (it has no {select.STATE})")
    wrong = select.judge(path, **words)
    if wrong:
        raise RecipeError.at(where, f"{str(asked)!r} is not whole: {'; '.join(wrong)}", OLDER)
    from hf_recipes.checkpoints import manifest

    return Chosen(path=str(asked), manifest=manifest.read(path))


def despite(recipe: Recipe) -> tuple[str, ...]:
    """What may differ from the checkpoint although it matters: the recipe's word."""
    return tuple(recipe.get(DESPITE) or ())


def _place(recipe: Recipe) -> str:
    return recipe.location(f"{recipe.trainer}.resume_from_checkpoint")


def earlier_session(checkpoint: str | None) -> tuple[int, int]:
    """Log entries and tokens that a checkpoint brings along: not this session's work."""
    if checkpoint is None:
        return 0, 0
    state = state_of(checkpoint)
    return len(state.get("log_history") or ()), int(state.get("num_input_tokens_seen") or 0)


def introduce(recipe: Recipe, trainer: Any, record: RunRecord, device: Device, chosen: Chosen | None) -> RunRecord:
    """Tells the trainer what its manifests say of the run. Returns the record with what resuming it would equal."""
    import torch

    threads = torch.get_num_threads()
    facts = {
        "run": (chosen.run if chosen else None) or uuid.uuid4().hex,
        "recipe": compatibility.described(recipe.sections, recipe.trainer, trainer.args.to_dict()),
        "data": {split: part.fingerprint for split, part in record.data.items()},
        **compatibility.surroundings(device, record.versions, threads),
    }
    trainer.provenance = json.loads(json.dumps(facts, default=str))
    trainer.where = recipe.location(f"{recipe.trainer}.output_dir")
    why = compatibility.reasons(recipe.trainer, trainer.args, device)
    resumed = Resumption(from_=chosen.path, step=chosen.step, passed_over=chosen.passed) if chosen else None
    return replace(record, run=facts["run"], resumption=compatibility.opening_line(why, threads), resumed=resumed)


def refuse_another_run(recipe: Recipe, chosen: Chosen, trainer: Any, record: RunRecord, folder: Path) -> list[str]:
    """What to say of the resumption. Raises RecipeError for a checkpoint of another recipe, other data, another number
    of processes or another model, and for a run that is finished."""
    lines = [f"resuming from {chosen.path}, step {chosen.step} of {record.planned_steps}"]
    lines += _compared(recipe, chosen, trainer.provenance, trainer.args.world_size)
    refuse_another_model(recipe, chosen.path, trainer.accelerator.unwrap_model(trainer.model))
    if all_steps_are_made(recipe, chosen, record.planned_steps or 0, folder):
        lines.append("all its steps are made: what is left is saving and evaluation")
    return lines


def _compared(recipe: Recipe, chosen: Chosen, now: Mapping[str, Any], processes: int) -> list[str]:
    """Lines about what differs and may. Raises RecipeError with all that differs and may not."""
    then = chosen.manifest
    if then is None:
        return ["of which recipe and data it is, upstream's files do not tell"]
    where, told = _place(recipe), despite(recipe)
    lines: list[str] = []
    errors: list[Diagnostic] = []

    def refuse(word: str, what: str, fix: str) -> None:
        if word in told:
            lines.append(f"not the straight run: {what}")
        else:
            errors.append(Diagnostic(location=where, message=what, fix=f"{fix}, or say {DESPITE}: [{word}]"))

    found = compatibility.differences(then["recipe"], now["recipe"])
    matter = [difference for difference in found if difference.kind == "matters"]
    if matter:
        free = ", ".join(difference.key for difference in found if difference.kind == "free")
        what = f"{chosen.path!r} is of another recipe: {'; '.join(map(str, matter))}"
        refuse("recipe", what + (f" ({free} may differ)" if free else ""), ANEW)
    for difference in found:
        if difference.kind == "length":
            lines.append(f"{difference}: from here on this is not the run that was interrupted")
    if then["data"].get("train") != now["data"].get("train"):
        refuse("data", f"{chosen.path!r} was trained on other rows", ANEW)
    elif then["data"] != now["data"]:
        lines.append("the evaluation rows are not those of the interrupted run")
    if then["world_size"] != processes:
        what = f"{chosen.path!r} is of {then['world_size']} process(es), this run has {processes}: rows would come in "
        refuse("processes", f"{what}another order, random states are missing", f"start {then['world_size']}")
    if errors:
        raise RecipeError(errors)
    return lines + [f"not bit for bit: {line}" for line in compatibility.moved(then, now)]


def all_steps_are_made(recipe: Recipe, chosen: Chosen, steps: int, folder: Path) -> bool:
    """Whether nothing but saving and evaluation is left. Raises RecipeError if that has been done, too."""
    if chosen.step < steps:
        return False
    record = find_record(folder)
    if record is None or record.status != Status.FINISHED or (chosen.run and record.run != chosen.run):
        return True
    what = f"{chosen.path!r} has made {chosen.step} steps and the recipe says {steps}: nothing is left to train"
    key = "max_steps" if (recipe.training.get("max_steps") or 0) > 0 else "num_train_epochs"
    fix = f"raise {recipe.trainer}.{key}; to evaluate it, write do_train: false and "
    raise RecipeError.at(_place(recipe), what, f"{fix}model.pretrained_model_name_or_path: {chosen.path}")


def refuse_another_model(recipe: Recipe, checkpoint: str, model: Any) -> None:
    """Names and shapes of the checkpoint's tensors against the model's, from the files' headers only."""
    from safetensors import SafetensorError, safe_open

    where = _place(recipe)
    files = [name for name in sorted(os.listdir(checkpoint)) if name.endswith(".safetensors")]
    if not files:
        raise RecipeError.at(where, f"{checkpoint!r} holds no weights (*.safetensors)")
    ours = {_plain(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in files:
        try:
            with safe_open(os.path.join(checkpoint, name), framework="pt") as weights:
                theirs = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as problem:
            raise RecipeError.at(
                where, f"{os.path.join(checkpoint, name)!r} cannot be read: {problem}", OLDER
            ) from problem
        for key, shape in theirs.items():
            if ours.get(_plain(key), shape) != shape:
                what = f"{checkpoint!r} is a checkpoint of another model: {key} is {shape}, here {ours[_plain(key)]}"
                raise RecipeError.at(where, what, ANEW)
        if not any(_plain(key) in ours for key in theirs):
            what = f"{checkpoint!r} is a checkpoint of another model: none of its tensors is known here"
            raise RecipeError.at(where, what, ANEW)


def _plain(name: str) -> str:
    """peft saves an adapter's tensors without the adapter's name."""
    return name.replace(".default", "").replace(".modules_to_save", "").replace(".base_layer", "")
