"""Checkpoints that are complete or not there.

Upstream writes into checkpoint-N itself, trainer_state.json last (transformers 5.23; #35525, PR #40790): a run that is
killed meanwhile leaves a folder that the next one fails on. Here every rank writes into .staging-checkpoint-N; then
each file is flushed, a manifest lists them, and one rename puts the folder in place. Only then are older checkpoints
removed. All ranks agree on each of the three phases: where one fails, all raise, and the staging folder is removed.

A model that is spread over the processes is saved in the same way: checkpoints/sharded.py has what differs.

`CheckpointWriter` needs no Trainer: training/overrides.py calls it, and a test gives it any object with the members of
`SavingTrainer`.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers.trainer_callback import ExportableState

from hf_recipes.checkpoints import disk_space, folders, manifest
from hf_recipes.common import tensor_values
from hf_recipes.common.ranks import largest_of_ranks
from hf_recipes.common.run_lock import keep_folder
from hf_recipes.common.write_failures import WriteFailure, find_failure
from hf_recipes.errors import CheckpointError, OutputDirError, RecipeError

COUNTED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CONTINUES = "the same command with --resume then continues from "
RETRY = f"make room there; {CONTINUES}"


class SavingTrainer(Protocol):
    """What `CheckpointWriter` reads of a trainer, and upstream's own writers."""

    args: Any
    state: Any
    control: Any
    accelerator: Any
    model: Any
    optimizer: Any
    callback_handler: Any

    def store_flos(self) -> None: ...

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None: ...

    def save_training_state(
        self, folder: str
    ) -> None: ...  # optimizer, schedule, loss scaler, this rank's random state


class CheckpointWriter:
    """Writes checkpoints and the final model.

    `facts`: what each manifest says of the run (id, recipe, data, versions), made of the trainer's arguments as the
    first checkpoint finds them. `sessions`: what it says of the run's sessions so far. `location`: of output_dir in the
    recipe, for the message of a full disk.
    """

    def __init__(
        self,
        *,
        facts: Callable[[Any], Mapping[str, Any]] = lambda args: {},
        sessions: Callable[[], Mapping[str, Any]] = dict,
        location: str = "output_dir",
        say: Callable[[str], None] = print,
    ) -> None:
        self.location, self.say = location, say
        self._make_facts, self._describe_sessions = facts, sessions
        self._facts: Mapping[str, Any] | None = None
        self._last_bytes = 0

    def facts(self, args: Any) -> Mapping[str, Any]:
        if self._facts is None:
            self._facts = self._make_facts(args)
        return self._facts

    def save(self, trainer: SavingTrainer, output_dir: Path, progress: Mapping[str, Any]) -> bool:
        """checkpoint-N of the trainer's step; whether it was written: a state that is not finite is not, since nothing
        can be resumed from it. `progress`: what progress.json keeps (checkpoints/loop_state.py). Older ones may go
        (save_total_limit), but not for one that the straight run would not write.

        Raises OutputDirError for a full disk, CheckpointError where another process failed.
        """
        trainer.store_flos()
        final = output_dir / folders.checkpoint_name(trainer.state.global_step)
        staging = output_dir / f"{folders.STAGING}{final.name}"
        lost = describe_not_finite(trainer)
        if lost:
            if trainer.args.process_index == 0:
                self.say(f"warning: {final.name} is not written, since {lost}")
            return False
        if not folders.is_extra(progress):
            _note_best(trainer.state, output_dir, final)
        self._on_all_ranks(trainer.args, staging, lambda: self._open(trainer, staging))
        self._on_all_ranks(trainer.args, staging, lambda: self._write(trainer, staging, progress))
        self._on_all_ranks(trainer.args, staging, lambda: self._finish(trainer, staging, final))
        if int(os.environ.get("LOCAL_WORLD_SIZE", trainer.args.world_size)) < trainer.args.world_size:
            self._on_all_ranks(trainer.args, staging, lambda: _move_other_nodes_files(trainer.args, staging, final))
        if trainer.args.should_save and not folders.is_extra(progress):
            best = trainer.state.best_model_checkpoint
            keep = {final.name, *({Path(best).name} if best else ())}
            run = str(self.facts(trainer.args).get("run", ""))
            folders.remove_old_checkpoints(output_dir, trainer.args.save_total_limit, keep, run)
        return True

    # --- the three phases --------------------------------------------------------------------------------------------

    def _open(self, trainer: SavingTrainer, staging: Path) -> None:
        """On the rank that writes: checks the free space, makes an empty folder."""
        if not trainer.args.should_save:
            return
        keep_folder(staging.parent, self.location, self.say)
        shutil.rmtree(staging, ignore_errors=True)
        missing = disk_space.find_shortage(staging.parent, max(self._last_bytes, _expected_bytes(trainer)))
        if missing:
            raise self._disk_full(staging, missing)
        staging.mkdir()

    def _write(self, trainer: SavingTrainer, staging: Path, progress: Mapping[str, Any]) -> None:
        """Upstream's own writers, into the staging folder; each rank its own random state."""
        folder = str(staging)
        trainer.save_model(folder, _internal_call=True)
        if not trainer.args.save_only_model:
            trainer.save_training_state(folder)
        if trainer.args.should_save:
            _update_callback_states(trainer)
            trainer.state.save_to_json(os.path.join(folder, folders.TRAINER_STATE))
            (staging / folders.PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")
        elif trainer.args.local_process_index == 0:  # another node's own disk
            manifest.flush_files(staging)

    def _finish(self, trainer: SavingTrainer, staging: Path, final: Path) -> None:
        """On the rank that writes: flush, manifest, rename."""
        if trainer.args.should_save:
            files = manifest.flush_files(staging)
            facts = {
                "step": trainer.state.global_step,
                "saved": datetime.datetime.now(datetime.UTC).isoformat(),
                "world_size": trainer.args.world_size,
                "state": _state_parts(trainer),
                "finite": True,
                **{"run": "", **self.facts(trainer.args), **self._describe_sessions()},
            }
            body = manifest.write_manifest(staging, facts, files)
            folders.put_in_place(staging, final)
            self._last_bytes = manifest.total_bytes(body)

    # --- agreement and failure ---------------------------------------------------------------------------------------

    def _on_all_ranks(self, args: Any, staging: Path, phase: Callable[[], None]) -> None:
        """Runs a phase on every rank; where one rank fails, all raise, and nothing of the checkpoint stays."""
        problem: Exception | None = None
        try:
            phase()
        except Exception as caught:
            problem = caught
        if not any(largest_of_ranks(problem is not None, args=args)):
            return
        unexplained = problem is not None and not isinstance(problem, RecipeError)
        failure = find_failure(problem, staging.parent) if problem is not None and unexplained else None
        if args.local_process_index == 0:
            shutil.rmtree(staging, ignore_errors=True)
        if failure is not None:
            raise self._lost(staging, failure) from problem
        if problem is not None:
            raise problem
        what = "another process could not write its part of the checkpoint"
        raise CheckpointError.at(self.location, what, "see its message")

    def _lost(self, staging: Path, failure: WriteFailure) -> OutputDirError:
        last = folders.latest_complete(staging.parent)
        name = staging.name.removeprefix(folders.STAGING)
        what = f"{str(staging.parent / name)!r} cannot be written: {failure.what}"
        if staging.parent.is_dir():
            what += f"; {f'{last.name} is complete' if last else 'there is no earlier checkpoint'}"
        start = last.name if last else "the start" if staging.parent.is_dir() else "its latest checkpoint"
        return OutputDirError.at(self.location, what, f"{failure.fix}; {CONTINUES}{start}")

    def _disk_full(self, staging: Path, missing: str) -> OutputDirError:
        last = folders.latest_complete(staging.parent)
        what = f"the disk of {str(staging.parent)!r} has no room for {staging.name.removeprefix(folders.STAGING)}: "
        what += f"{missing}; {f'{last.name} is complete' if last else 'there is no earlier checkpoint'}"
        return OutputDirError.at(self.location, what, RETRY + (last.name if last else "the start"))

    # --- the end of training -----------------------------------------------------------------------------------------

    @contextmanager
    def keep_last_checkpoint(self, args: Any) -> Iterator[None]:
        """With save_total_limit: 1 upstream's _finalize_training removes the last checkpoint for the best;
        `remove_all_but_best` does, when the model is in place."""
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            yield
        finally:
            args.save_total_limit = limit

    def save_final(self, trainer: SavingTrainer) -> None:
        """The trained model into output_dir, each file complete: through a staging folder, flushed, renamed.

        Raises OutputDirError for a full disk; the checkpoints are not touched.
        """
        output_dir = Path(trainer.args.output_dir)
        staging = output_dir / f"{folders.STAGING}model"

        def write() -> None:
            if trainer.args.should_save:
                keep_folder(output_dir, self.location, self.say)
                shutil.rmtree(staging, ignore_errors=True)
            trainer.save_model(str(staging), _internal_call=True)
            if trainer.args.should_save:
                for path in manifest.flush_files(staging):
                    (output_dir / path).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(staging / path, output_dir / path)
                manifest.flush_to_disk(output_dir)
                shutil.rmtree(staging, ignore_errors=True)

        self._on_all_ranks(trainer.args, staging, write)

    def remove_all_but_best(self, trainer: SavingTrainer) -> None:
        """What upstream does at the end with save_total_limit: 1, once the model is in place and recorded."""
        output_dir = Path(trainer.args.output_dir)
        best = trainer.state.best_model_checkpoint
        if trainer.args.should_save and best and trainer.args.save_total_limit == 1:
            run = str(self.facts(trainer.args).get("run", ""))
            for path in folders.list_checkpoints(output_dir):
                if path.name != Path(best).name and folders.run_of(path) == run:
                    folders.remove_checkpoint(path)


def _note_best(state: Any, output_dir: Path, final: Path) -> None:
    """As upstream, by its final name: trainer_state.json must not point into the staging folder."""
    if state.best_global_step:
        best = output_dir / folders.checkpoint_name(state.best_global_step)
        if best == final or (best.is_dir() and not folders.is_extra(folders.read_progress(best))):
            state.best_model_checkpoint = str(best)


def _update_callback_states(trainer: SavingTrainer) -> None:
    """As in upstream's _save_checkpoint; a callback that an earlier session did not have is no KeyError."""
    states: dict[str, Any] = trainer.state.stateful_callbacks
    for callback in [*trainer.callback_handler.callbacks, trainer.control]:
        if not isinstance(callback, ExportableState):
            continue
        name, own = type(callback).__name__, callback.state()
        if isinstance(states.get(name), list):
            states[name].append(own)
        else:
            states[name] = own


def _move_other_nodes_files(args: Any, staging: Path, final: Path) -> None:
    """On another node that has its own disk: its random states, under the same name."""
    if not args.should_save and args.local_process_index == 0 and staging.is_dir():
        final.mkdir(exist_ok=True)
        for path in staging.iterdir():
            os.replace(path, final / path.name)
        staging.rmdir()


def _state_parts(trainer: SavingTrainer) -> list[str]:
    """What a resumption must find beside the weights."""
    if trainer.args.save_only_model:
        return []
    scaler = getattr(trainer.accelerator, "scaler", None) is not None
    return ["optimizer", "scheduler", *(["scaler"] if scaler else []), "rng"]


def model_sizes(model: Any) -> tuple[int, int]:
    """Bytes of the weights that a checkpoint has, and parameters that are trained."""
    weights = sum(param.numel() * param.element_size() for param in _saved_parameters(model))
    return weights, sum(param.numel() for param in model.parameters() if param.requires_grad)


def _saved_parameters(model: Any) -> list[torch.Tensor]:
    adapter = hasattr(model, "get_base_model")
    return [param for param in model.parameters() if param.requires_grad or not adapter]


def _expected_bytes(trainer: SavingTrainer) -> int:
    tensors = [*_saved_weights(trainer), *_saved_state(trainer)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def describe_lost_weights(trainer: SavingTrainer) -> str:
    """ "80,579 weights are not finite"; "" where all are usable. Every rank must call it."""
    weights = _saved_weights(trainer)
    counts = (_count_lost(weights), _count_lost(weights, tensor_values.LARGEST_WEIGHT))
    return tensor_values.describe_lost(*(int(count) for count in largest_of_ranks(*counts, args=trainer.args)))


def describe_not_finite(trainer: SavingTrainer) -> str:
    """The same, and of the optimizer."""
    numbers = int(largest_of_ranks(_count_lost(_saved_state(trainer)), args=trainer.args)[0])
    lost = f"{numbers:,} numbers of the optimizer are not finite" if numbers else ""
    return describe_lost_weights(trainer) or lost


@torch.no_grad()
def _count_lost(tensors: Iterable[torch.Tensor], largest: float = math.inf) -> int:
    """Numbers that are not finite, or above `largest`."""
    found = 0
    for tensor in tensors:
        own: Any = getattr(tensor, "to_local", lambda tensor=tensor: tensor)()  # a shard's part
        if own.dtype in COUNTED and own.numel():
            good = own.abs() < largest  # false for NaN
            found += 0 if good.all() else own.numel() - int(good.sum())
    return found


def _saved_weights(trainer: SavingTrainer) -> list[Any]:
    """An adapter's only, with peft."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return _saved_parameters(model)


def _saved_state(trainer: SavingTrainer) -> list[Any]:
    if trainer.args.save_only_model or trainer.optimizer is None:
        return []
    return list(_tensors(dict(trainer.optimizer.state)))


def _tensors(value: Any) -> Any:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
