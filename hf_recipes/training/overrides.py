"""Every override of upstream's Trainer and SFTTrainer, in the order of a run; each calls plain objects.

    StepGuard         training/step_guard.py       stops, skips or rolls back a step that would fail silently
    OutOfMemoryRetry  training/out_of_memory.py    retries a step with a smaller micro-batch
    MasterWeightsStep training/master_weights.py   fp16 weights with fp32 masters (optional)
    ExactEvaluation   evaluation/exact.py          two numbers a row instead of logits
    EvaluationOrder   evaluation/length_order.py   rows of like length together, results in the data's order
    CheckpointWriter  checkpoints/saving.py        checkpoints that are complete or not there
    LoopState         checkpoints/loop_state.py    a resumed run equals an uninterrupted one
    StepWork          training/step_work.py        what follows a step is done once, also where a signal comes between
    RecipeSettings    checkpoints/settings.py      a resumed run has the recipe's settings, not its checkpoint's

What is nested in what, outermost first:

    training_step     guard  <  out-of-memory retry  <  loss scaling  <  upstream
    compute_loss               out-of-memory retry  <  loss scaling  <  upstream
    prediction_step            out-of-memory retry  <  exact evaluation  <  upstream

The objects never import Trainer: each names the members that it needs in a Protocol, and training/trainer_members.py
has them. Every private point of upstream is listed in tests/support/upstream_private_points.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_recipes.checkpoints import zero
from hf_recipes.checkpoints.loop_state import average_running_loss, restore_counters
from hf_recipes.checkpoints.sharded import find_missing, gather_weights, load_weights
from hf_recipes.common.text import first_line
from hf_recipes.errors import RecipeError
from hf_recipes.training.even_ranks import build_train_loader
from hf_recipes.training.fsdp_blocks import choose_blocks, give_addresses
from hf_recipes.training.master_weights import FollowModel, check_master_weights
from hf_recipes.training.trackers import continue_trackers
from hf_recipes.training.trainer_members import TrainerMembers, TrainerParts
from hf_recipes.training.window import Window, restore_random_state

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_recipes.recipe.recipe import Recipe


class Overrides(TrainerMembers):
    """`class X(Overrides, Trainer)` or `(Overrides, SFTTrainer)`: upstream's class with `parts`."""

    def __init__(self, *args: Any, parts: TrainerParts | None = None, stream: Any = None, **kwargs: Any) -> None:
        """`stream`: the training rows, where upstream's constructor takes a table only, and looks at its first row."""
        self.parts = parts or TrainerParts()
        self.window = Window()
        super().__init__(*args, **kwargs)
        if stream is not None:
            self.train_dataset = stream
        if self.is_fsdp_enabled:
            choose_blocks(self.accelerator.state.fsdp_plugin, self.model)
            give_addresses(self.model)
        if self.parts.masters is not None:
            self.add_callback(FollowModel())

    # --- before the loop ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        parts = self.parts
        with parts.settings.naming_checkpoint(resume_from_checkpoint, "progress.json"):
            parts.loop.begin_training(resume_from_checkpoint)
        parts.settings.check_trainer_state(parts.loop.resumed)
        now = parts.writer.facts(self.args).get("recipe") or {}
        parts.settings.begin_training(parts.loop.resumed, now, self.args.world_size)
        if parts.guard is not None:
            parts.guard.begin_training(self.plain_model())
        with parts.retry.training(self):
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        if parts.guard is not None:
            parts.guard.refuse_changed_weights(self.plain_model())
        return result

    def create_optimizer(self, model: Any = None) -> Any:
        masters = self.parts.masters
        with _errors_name(self.parts.recipe, "optim_args", "optim"):
            if masters is None:
                return super().create_optimizer(model)
            if self.optimizer is not None:
                masters.refuse_given_optimizer()
                return self.optimizer
            trained: Any = self.model if model is None else model
            precision, sharded = self.accelerator.mixed_precision, self.is_sharded
            check_master_weights(trained, self.args.optim, precision, sharded=sharded)
            inner = super().create_optimizer(model)
            self.optimizer = masters.wrap(inner, trained, str(getattr(self.args.optim, "value", self.args.optim)))
            return self.optimizer

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with _errors_name(self.parts.recipe, "lr_scheduler_kwargs", "lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)

    def get_train_dataloader(self) -> Any:
        loader = build_train_loader(self, super().get_train_dataloader)
        return self.parts.loop.seed_loader(loader, self.args)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.parts.loop.seed_sampler(super()._get_train_sampler(train_dataset), self.args)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        loop, settings = self.parts.loop, self.parts.settings
        settings.note_patience(self)
        with settings.naming_checkpoint(loop.resumed, "trainer_state.json"):
            found = super()._init_training_state(*args, **kwargs)
        loop.find_best_checkpoint(self)
        if loop.resumed:
            settings.restore_state(self, self._train_batch_size)
            folder, trackers = Path(str(self.args.output_dir)), self.callback_handler.callbacks
            continue_trackers(trackers, loop.tracker_folders, folder, self.state.global_step)
        return found

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """DeepSpeed's own reader of a checkpoint is not called: it would run what is in a pickle."""
        checkpoint = None if self.is_deepspeed_enabled else resume_from_checkpoint
        found = super()._prepare_for_training(max_steps, train_dataloader, checkpoint)
        if self.is_deepspeed_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.parts.settings.load_states(self.settings_view(), checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.parts.settings.load_scaler(self.accelerator.scaler, checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        settings, work = self.parts.settings, self.parts.work
        if work.random_state is not None:  # the last step's work came after the checkpoint's
            restore_random_state(work.random_state, self.args.device)
        elif settings.other_processes:  # no random state is of this process
            set_seed(self.args.seed + self.state.global_step)
        elif not settings.has_changed("seed"):
            with settings.naming_checkpoint(checkpoint, "rng_state"):
                super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with self.parts.settings.naming_checkpoint(resume_from_checkpoint, "its weights"):
            if self.is_deepspeed_enabled and self.deepspeed is not None:
                zero.load_weights(self.model_wrapped, self.saved_model(), resume_from_checkpoint)
            elif self._reads_weights_here(resume_from_checkpoint):
                load_weights(self.saved_model(), resume_from_checkpoint)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if self.is_deepspeed_enabled or self._reads_weights_here(best):
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()

    def _reads_weights_here(self, checkpoint: str) -> bool:
        """Upstream reads by names alone: experts, which are written one by one, would stay as they are; and under
        FSDP it reads its own shards."""
        model = self.saved_model()
        if self.is_sharded or hasattr(model, "get_base_model"):
            return self.is_sharded
        return bool(find_missing(model, checkpoint))

    def _finish_last_step(self, trial: Any, start_time: Any, *, epoch_is_over: bool) -> None:
        """Once per call of train(), after upstream has set its counters to 0: they are restored, and what an
        interrupted run had not done after its last step is done."""
        loop = self.parts.loop
        progress = loop.take_progress()
        if not progress:
            if progress is not None:
                loop.restore_logged_losses(self)
            return
        with self.parts.settings.naming_checkpoint(loop.resumed, "progress.json"):
            self.parts.retry.load_state_dict(progress)
            if self.parts.guard is not None:
                self.parts.guard.load_state_dict(progress)
            restore_counters(self, progress)

        def work(grad_norm: Any, learning_rate: Any) -> None:
            rest = (self.model_wrapped, trial, self.state.epoch, None, start_time)
            self._maybe_log_save_evaluate(self._tr_loss, grad_norm, *rest, learning_rate)

        self.parts.work.finish(
            self,
            progress,
            work,
            lambda: self._load_rng_state(loop.resumed),
            epoch_is_over=lambda: epoch_is_over or loop.is_finished(self),
        )

    # --- a step ------------------------------------------------------------------------------------------------------

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        loop, steps = self.parts.loop, kwargs["num_update_steps_per_epoch"]
        epoch_is_over = self.state.global_step % steps == 0
        self._finish_last_step(kwargs["trial"], kwargs["start_time"], epoch_is_over=epoch_is_over)
        if loop.is_finished(self) or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        self.parts.loop.seed_epoch(kwargs["train_dataloader"], self.args, int(kwargs["epoch"]))
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(self.parts.wait.measure(epoch_iterator), *args, **kwargs)
        guard = self.parts.guard
        self.parts.work.begin_step()
        if guard is not None:
            guard.begin_window()
        self.window = Window(batches=batches, items=items, before=self._read_sums() if guard is not None else None)
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        parts, step = self.parts, super().training_step
        if parts.masters is not None:
            step = parts.masters.around_step(step)
        loss = parts.retry.training_step(self, self.window, step, model, inputs, num_items_in_batch)
        if parts.guard is not None:
            parts.guard.add_micro_batch(loss, self, closes_window=self.accelerator.sync_gradients)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        parts, compute = self.parts, super().compute_loss
        if parts.masters is not None:
            compute = parts.masters.around_loss(compute)
        return parts.retry.compute_loss(self, self.window, compute, model, inputs, return_outputs, num_items_in_batch)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.parts.masters is None:
            return super()._clip_grad_norm(model)
        return self._clip_masters(self.args.max_grad_norm)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last moment before optimizer.step()."""
        parts = self.parts
        if parts.masters is None:
            norm = super()._get_grad_norm(model, grad_norm)
        else:
            norm = self._clip_masters(math.inf) if grad_norm is None else grad_norm
        if parts.guard is not None:
            parts.guard.check_step(self, self.window, norm)
        return norm

    def _clip_masters(self, max_norm: float) -> Any:
        assert self.parts.masters is not None
        step, report = self.state.global_step + 1, self.is_world_process_zero()
        return self.parts.masters.clip(max_norm, self.optimizer, step=step, report=report)

    def _maybe_log_save_evaluate(
        self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, epoch: Any, ignore_keys_for_eval: Any,
        start_time: Any, learning_rate: float | None = None,
    ) -> None:  # fmt: skip
        upstream, rest = super()._maybe_log_save_evaluate, (model, trial, epoch, ignore_keys_for_eval, start_time)
        self.parts.work.run(self, lambda: upstream(tr_loss, grad_norm, *rest, learning_rate), grad_norm, learning_rate)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        parts = self.parts
        if "loss" in logs:
            logs.update(_gpu_facts(self.args.device))
            if not math.isfinite(logs["loss"]):
                # Upstream clears its sum by `tr_loss -= tr_loss`, which leaves NaN: every later loss would log as NaN.
                self._tr_loss.zero_()
        if "train_loss" in logs and parts.loop.resumed:
            logs["train_loss"] = parts.loop.mean_loss(self)
        if "loss" in logs and parts.masters is not None:
            logs.update(parts.masters.logs())
        super().log(logs, start_time)

    # --- evaluation --------------------------------------------------------------------------------------------------

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        with self.parts.evaluation.all_rows_in_order(self):
            loader = self.parts.order.remember(super().get_eval_dataloader(eval_dataset))
        return self.parts.loop.seed_loader(loader, self.args)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        with self.parts.evaluation.all_rows_in_order(self):
            loader = self.parts.order.remember(super().get_test_dataloader(test_dataset))
        return self.parts.loop.seed_loader(loader, self.args)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return self.parts.order.choose(self, eval_dataset) or super()._get_eval_sampler(eval_dataset)

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        with self.parts.order.kept(self, dataloader) as put_back:
            return put_back(self._evaluate_batches(dataloader, *args, **kwargs))

    def _evaluate_batches(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_fsdp_enabled and not self.accelerator._models:  # no training came before
            whole: Any = self.model
            unused = torch.optim.SGD(list(whole.parameters()), lr=0.0)  # accelerate (1.15) asks for one with FSDP2
            self.model, _ = self.accelerator.prepare(whole, unused)
            self.model_wrapped = self.model
        if self.is_deepspeed_enabled and self.deepspeed is None and not is_deepspeed_zero3_enabled():
            self.is_deepspeed_enabled = False  # ZeRO-2 spreads no weights, and upstream refuses it without training
            try:
                return super().evaluation_loop(*args, **kwargs)
            finally:
                self.is_deepspeed_enabled = True
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        step = super().prediction_step

        def upstream(model: Any, part: Any) -> Any:
            return step(model, part, prediction_loss_only, ignore_keys)

        def predict(part: Any) -> Any:
            return self.parts.evaluation.predict(self, upstream, model, part)

        return self.parts.retry.prediction_step(self, predict, inputs)

    # --- saving ------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any = None, *, extra: bool = False) -> None:
        if self.parts.guard is not None:
            if self.parts.guard.has_old_weights:
                return
            self.parts.guard.refuse_changed_weights(self.plain_model())
        self.write_checkpoint(trial, extra=extra)

    def save_extra_checkpoint(self) -> None:
        self._save_checkpoint(self.model, extra=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.is_deepspeed_enabled:
            self._save(output_dir, state_dict=zero.gather_weights(self.model_wrapped, self.saved_model()))
        elif self.is_fsdp_enabled:
            self._save(output_dir, state_dict=gather_weights(self.saved_model()))
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As upstream's, without training_args.bin: a pickle that holds hub_token in clear text."""
        folder = str(output_dir if output_dir is not None else self.args.output_dir)
        if not self.args.should_save:
            return
        self.saved_model().save_pretrained(folder, state_dict=state_dict)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the model card is made from the record at the end (SFTTrainer writes one per checkpoint)."""

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: Any) -> Any:
        with self.parts.writer.keep_last_checkpoint(self.args):
            self._finish_last_step(trial, start_time, epoch_is_over=True)
            average_running_loss(self)
            return super()._finalize_training(trial, num_train_samples, start_time)


def trainer_class(upstream: type[Trainer]) -> type[Any]:
    """RecipeTrainer of Trainer, RecipeSFTTrainer of SFTTrainer."""
    return type(f"Recipe{upstream.__name__}", (Overrides, upstream), {})


@contextmanager
def _errors_name(recipe: Recipe | None, *keys: str) -> Iterator[None]:
    """What upstream refuses only when training begins, as one message at the first of `keys` that the recipe has."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as problem:
        if recipe is None:
            raise
        key = next((key for key in keys if key in recipe.training), keys[-1])
        what = f"{key} is refused by the trainer: {first_line(problem)}"
        raise RecipeError.at(recipe.location(f"{recipe.trainer}.{key}"), what) from problem


def _gpu_facts(device: Any) -> dict[str, float]:
    """Peak memory of the GPU so far in GiB, and its utilisation in percent where NVML answers."""
    if device.type != "cuda":
        return {}
    facts = {
        "gpu_peak_allocated_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 3),
        "gpu_peak_reserved_gib": round(torch.cuda.max_memory_reserved(device) / 2**30, 3),
    }
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # no pynvml, or a driver without NVML
        facts["gpu_utilization_percent"] = float(torch.cuda.utilization(device))
    return facts
