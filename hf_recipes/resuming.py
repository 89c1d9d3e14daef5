"""Going on from a checkpoint in upstream's sense: true is the newest in output_dir, a text is a path.

What stands in the way is looked for before anything is loaded; the weights' shapes when there is a model to hold
them against.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_recipes.errors import fault

if TYPE_CHECKING:
    from hf_recipes.recipe import Recipe

STATE = "trainer_state.json"
ANEW = "resume with the recipe that wrote it, or start anew in another output_dir"
OLDER = "resume from an older one with resume_from_checkpoint: PATH, or start without it"


def resume_checkpoint(recipe: Recipe, output_dir: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What to pass to train(resume_from_checkpoint=). Raises RecipeError if there is none, or if it is not whole."""
    asked = recipe.training.get("resume_from_checkpoint")
    if not asked:
        return None
    where = recipe.place(f"{recipe.trainer}.resume_from_checkpoint")
    if asked is True:
        from transformers.trainer_utils import get_last_checkpoint

        found = get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
        if found is None:
            raise fault(where, f"there is no checkpoint in {output_dir!r} to resume from", "start without it")
        asked = found
    asked = str(asked)
    if not os.path.isfile(os.path.join(asked, STATE)):
        raise fault(where, f"{asked!r} is no checkpoint of a Trainer (it has no {STATE})")
    try:
        state_of(asked)
    except (OSError, ValueError) as problem:
        what = f"{os.path.join(asked, STATE)!r} cannot be read ({problem}): it was cut off while it was written"
        raise fault(where, what, OLDER) from problem
    sharded = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    if not any(environment.get(name, "false").lower() == "true" for name in sharded):
        for name in ("optimizer.pt", "scheduler.pt"):
            path = os.path.join(asked, name)
            if not os.path.isfile(path):
                what = f"{asked!r} has no {name}: the run would go on with a fresh one, and upstream would not say so"
                raise fault(where, what, OLDER)
            if not zipfile.is_zipfile(path):  # torch.save's format
                raise fault(where, f"{path!r} is not whole", OLDER)
    return asked


def state_of(checkpoint: str) -> dict[str, Any]:
    """trainer_state.json. Raises OSError and ValueError."""
    with open(os.path.join(checkpoint, STATE), encoding="utf-8") as text:
        state = json.load(text)
    if not isinstance(state, dict):
        raise ValueError("it holds no mapping")
    return state


def earlier_session(checkpoint: str | None) -> tuple[int, int]:
    """Log entries and tokens that a checkpoint brings along: not this session's work."""
    if checkpoint is None:
        return 0, 0
    state = state_of(checkpoint)
    return len(state.get("log_history") or ()), int(state.get("num_input_tokens_seen") or 0)


def refuse_a_finished_one(recipe: Recipe, checkpoint: str, steps: int) -> None:
    """Trainer 5.23 makes one step more than max_steps when it resumes at the end. Raises RecipeError."""
    done = state_of(checkpoint).get("global_step")
    if isinstance(done, int) and done >= steps:
        where = recipe.place(f"{recipe.trainer}.resume_from_checkpoint")
        what = f"{checkpoint!r} has made {done} steps and the recipe says {steps}: nothing is left to train"
        key = "max_steps" if (recipe.training.get("max_steps") or 0) > 0 else "num_train_epochs"
        mend = f"raise {recipe.trainer}.{key}; to evaluate it, write do_train: false and "
        raise fault(where, what, f"{mend}model.pretrained_model_name_or_path: {checkpoint}")


def refuse_another_model(recipe: Recipe, checkpoint: str, model: Any) -> None:
    """Names and shapes of the checkpoint's tensors against the model's, from the files' headers only."""
    from safetensors import SafetensorError, safe_open

    where = recipe.place(f"{recipe.trainer}.resume_from_checkpoint")
    files = [name for name in sorted(os.listdir(checkpoint)) if name.endswith(".safetensors")]
    if not files:
        raise fault(where, f"{checkpoint!r} holds no weights (*.safetensors)")
    ours = {_plain(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in files:
        try:
            with safe_open(os.path.join(checkpoint, name), framework="pt") as weights:
                theirs = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
        except SafetensorError as problem:
            raise fault(where, f"{os.path.join(checkpoint, name)!r} cannot be read: {problem}", OLDER) from problem
        for key, shape in theirs.items():
            if ours.get(_plain(key), shape) != shape:
                what = f"{checkpoint!r} is a checkpoint of another model: {key} is {shape}, here {ours[_plain(key)]}"
                raise fault(where, what, ANEW)
        if not any(_plain(key) in ours for key in theirs):
            what = f"{checkpoint!r} is a checkpoint of another model: none of its tensors is known here"
            raise fault(where, what, ANEW)


def _plain(name: str) -> str:
    """peft saves an adapter's tensors without the adapter's name."""
    return name.replace(".default", "").replace(".modules_to_save", "").replace(".base_layer", "")
