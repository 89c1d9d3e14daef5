"""Checkpoints that are whole or not there, for Trainer and SFTTrainer: `class X(CheckpointMixin, Trainer)`.

Upstream writes into checkpoint-N itself, trainer_state.json last (transformers 5.23; #35525, PR #40790): a run that is
killed meanwhile leaves a folder that the next one trips over. Here every rank writes into .staging-checkpoint-N; then
each file is flushed, a manifest says what they are, and one rename puts the folder in place. Only then are older ones
rotated. All ranks agree on each of the three phases: where one fails, all raise, and the staging folder is removed.

Sharded training (FSDP, DeepSpeed) is saved upstream's way, in place and without a manifest, and says so once.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import ExportableState

from hf_recipes.checkpoints import disk_space, folders, manifest
from hf_recipes.errors import RecipeError

if TYPE_CHECKING:
    from transformers import Trainer

    _Trainer = Trainer
else:
    _Trainer = object

AGAIN = "make room there; the same command with --resume then goes on from "


class CheckpointMixin(_Trainer):
    """Replaces _save_checkpoint. `provenance`: the manifest's facts about the run (id, recipe, data, versions)."""

    provenance: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed
    where: str = "output_dir"  # of the recipe, for the message of a full disk
    tell: Callable[[str], None] = staticmethod(print)
    progress: Callable[[], dict[str, Any]]  # continuing.py's: what the trainer keeps in memory only
    _last_bytes = 0
    _said_sharded = False

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            if not self._said_sharded and self.args.process_index == 0:
                self.tell("checkpoints are sharded: written in place by upstream, without a manifest")
            self._said_sharded = True
            super()._save_checkpoint(model, trial)
            return
        self.store_flos()
        output_dir = Path(self._get_output_dir(trial=trial))
        final = output_dir / folders.checkpoint_name(self.state.global_step)
        staging = output_dir / f"{folders.STAGING}{final.name}"
        self._note_the_best(output_dir, final)
        progress = self.progress()
        self._together(staging, lambda: self._open(staging))
        self._together(staging, lambda: self._write(staging, progress))
        self._together(staging, lambda: self._finish(staging, final))
        if int(os.environ.get("LOCAL_WORLD_SIZE", self.args.world_size)) < self.args.world_size:
            self._together(staging, lambda: self._follow(staging, final))
        if self.args.should_save:
            folders.remove_old_checkpoints(output_dir, self.args.save_total_limit, self._to_keep(final))

    def _note_the_best(self, output_dir: Path, final: Path) -> None:
        """As upstream, by its final name: trainer_state.json must not point into the staging folder."""
        if self.state.best_global_step:
            best = output_dir / folders.checkpoint_name(self.state.best_global_step)
            if best == final or best.is_dir():
                self.state.best_model_checkpoint = str(best)

    def _to_keep(self, final: Path) -> set[str]:
        best = self.state.best_model_checkpoint
        return {final.name, *({Path(best).name} if best else ())}

    # --- the three phases --------------------------------------------------------------------------------------------

    def _open(self, staging: Path) -> None:
        """On the rank that writes: is there room, and an empty folder."""
        if not self.args.should_save:
            return
        shutil.rmtree(staging, ignore_errors=True)
        lacking = disk_space.find_shortage(staging.parent, max(self._last_bytes, self._expected_bytes()))
        if lacking:
            raise self._disk_full(staging, lacking)
        staging.mkdir()

    def _write(self, staging: Path, progress: dict[str, Any]) -> None:
        """Upstream's own writers, into the staging folder; each rank its own random state."""
        folder = str(staging)
        self.save_model(folder, _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(folder)
            self._save_scaler(folder)
            self._save_rng_state(folder)
        if self.args.should_save:
            self._update_stateful_callbacks()
            self.state.save_to_json(os.path.join(folder, folders.TRAINER_STATE))
            (staging / folders.PROGRESS).write_text(json.dumps(progress) + "\n", encoding="utf-8")
        elif self.args.local_process_index == 0:  # another node's own disk
            manifest.flush_files(staging)

    def _update_stateful_callbacks(self) -> None:
        """As in upstream's _save_checkpoint; a callback that an earlier session did not have is no KeyError."""
        state: dict[str, Any] = self.state.stateful_callbacks  # type: ignore[assignment]
        for callback in [*self.callback_handler.callbacks, self.control]:
            if not isinstance(callback, ExportableState):
                continue
            name, own = type(callback).__name__, callback.state()
            if isinstance(state.get(name), list):
                state[name].append(own)
            else:
                state[name] = own

    def _finish(self, staging: Path, final: Path) -> None:
        """On the rank that writes: flush, manifest, rename."""
        if self.args.should_save:
            files = manifest.flush_files(staging)
            facts = {
                "step": self.state.global_step,
                "saved": datetime.datetime.now(datetime.UTC).isoformat(),
                "world_size": self.args.world_size,
                "state": self._state_parts(),
                **{"run": "", **self.provenance},
            }
            body = manifest.write_manifest(staging, facts, files)
            folders.put_in_place(staging, final)
            self._last_bytes = manifest.total_bytes(body)

    def _follow(self, staging: Path, final: Path) -> None:
        """On another node that has its own disk: its random states, under the same name."""
        if not self.args.should_save and self.args.local_process_index == 0 and staging.is_dir():
            final.mkdir(exist_ok=True)
            for path in staging.iterdir():
                os.replace(path, final / path.name)
            staging.rmdir()

    def _state_parts(self) -> list[str]:
        """What a resumption must find beside the weights."""
        if self.args.save_only_model:
            return []
        scaler = getattr(self.accelerator, "scaler", None) is not None
        return ["optimizer", "scheduler", *(["scaler"] if scaler else []), "rng"]

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, which with save_total_limit: 1 removes the last checkpoint for the best: save_final does, when
        the model is in place."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    # --- agreement and failure ---------------------------------------------------------------------------------------

    def _together(self, staging: Path, phase: Callable[[], None]) -> None:
        """Runs a phase on every rank; where one rank fails, all raise, and nothing of the checkpoint stays."""
        problem: Exception | None = None
        try:
            phase()
        except Exception as caught:
            problem = caught
        if not self._anywhere(problem is not None):
            return
        full = (
            problem is not None
            and not isinstance(problem, RecipeError)
            and disk_space.is_disk_full(problem, staging.parent)
        )
        if self.args.local_process_index == 0:
            shutil.rmtree(staging, ignore_errors=True)
        if full:
            raise self._disk_full(staging, "it was full before the checkpoint was whole") from problem
        if problem is not None:
            raise problem
        raise RecipeError.at(
            self.where, "another process could not write its part of the checkpoint", "see its message"
        )

    def _anywhere(self, here: bool) -> bool:
        if self.args.world_size <= 1:
            return here
        flag = torch.tensor(float(here), device=self.args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _disk_full(self, staging: Path, lacking: str) -> RecipeError:
        last = next((path for path in folders.list_checkpoints(staging.parent) if folders.is_complete(path)), None)
        what = f"the disk of {str(staging.parent)!r} has no room for {staging.name.removeprefix(folders.STAGING)}: "
        what += f"{lacking}; {f'{last.name} is whole' if last else 'there is no earlier checkpoint'}"
        return RecipeError.at(self.where, what, AGAIN + (last.name if last else "the start"))

    def _expected_bytes(self) -> int:
        """Of the weights that are saved (an adapter's only, with peft), the optimizer's state, and the small files."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        adapter = hasattr(model, "get_base_model")
        tensors = [param for param in model.parameters() if param.requires_grad or not adapter]
        if not self.args.save_only_model and self.optimizer is not None:
            tensors += list(_tensors(dict(self.optimizer.state)))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors(value: Any) -> Any:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def save_final(trainer: Any) -> None:
    """The trained model into output_dir, file by file whole: through a staging folder, flushed, each file renamed.

    Raises RecipeError for a full disk; the checkpoints are not touched.
    """
    output_dir = Path(trainer.args.output_dir)
    staging = output_dir / f"{folders.STAGING}model"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        trainer.save_model()
        return

    def write() -> None:
        if trainer.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        trainer.save_model(str(staging), _internal_call=True)
        if trainer.args.should_save:
            for path in manifest.flush_files(staging):
                (output_dir / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / path, output_dir / path)
            manifest.flush_to_disk(output_dir)
            shutil.rmtree(staging, ignore_errors=True)

    trainer._together(staging, write)
    best = trainer.state.best_model_checkpoint
    if trainer.args.should_save and best and trainer.args.save_total_limit == 1:
        for path in folders.list_checkpoints(output_dir):
            if path.name != Path(best).name:
                folders.remove_checkpoint(path)
