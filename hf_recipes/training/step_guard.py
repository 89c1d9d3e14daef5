"""Every optimizer step is looked at before the weights are touched: `class X(GuardMixin, MemoryMixin, Trainer)`.

One reading of the device a step (the gradient's norm, the window's loss, its number of labels), the same decision on
every rank. Upstream 5.23 steps on a NaN, ruins the weights and logs a loss of 0.0 or an average instead. An overflow
that fp16's loss scaling skips is no fault; a loss that is not finite is one in any precision.

Without `guards` (pipeline/run.py sets them) this is upstream's trainer: plan traces it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.checkpoints import folders, select
from hf_recipes.data.row_checks import report_unless_disabled
from hf_recipes.errors import Diagnostic, RecipeError
from hf_recipes.training.out_of_memory import restore
from hf_recipes.training.signals import Listener
from hf_recipes.training.trainable_parts import frozen_sums, gradients

if TYPE_CHECKING:
    from transformers import Trainer

    from hf_recipes.recipe.recipe import Recipe

    _Trainer = Trainer
else:
    _Trainer = object

FIRST = 2  # steps in which every adapter and head must have had a gradient, and the loss must have been something
STUCK = 20  # steps in a row with a loss and a gradient of exactly 0
SKIPPED = 10  # steps in a row that may be skipped
ROLLED_BACK = 3  # times that one checkpoint may be gone back to
SMALLEST_SCALE = 2.0**-7  # of the loss: below it fp16's scaler has skipped more than 20 steps


@dataclass
class Guards:
    """What the guards know of a run."""

    recipe: Recipe
    say: Callable[[str], None]
    listener: Listener | None = None
    policy: str = "stop"  # on_nonfinite
    frozen: dict[str, int] = field(default_factory=dict)  # checksums of the weights that must not change
    alive: set[str] = field(default_factory=set)  # adapters and heads that had a gradient
    begun: int = 0  # steps looked at in this session
    zeros: int = 0  # steps in a row with nothing to learn
    skipped: list[int] = field(default_factory=list)  # steps
    in_a_row: int = 0
    rolled_back: dict[str, int] = field(default_factory=dict)  # checkpoint -> times
    stop: int = 0  # the signal on which all ranks agreed


class GuardMixin(_Trainer):
    """Overrides get_batch_samples, training_step, _get_grad_norm, _save_checkpoint and train."""

    model: Any
    lr_scheduler: Any
    guards: Guards | None = None
    _losses: torch.Tensor | None = None  # of the window, summed on the device
    _items: Any = None
    _before: tuple[Any, Any, Any] | None = None  # sums, and SFTTrainer's counters, when the window began
    _skip_noted = False
    _random: list[Any]
    _window: list[Any]
    _metrics: Any
    _total_train_tokens: int

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.guards is not None and not self.guards.frozen:
            self.guards.frozen = frozen_sums(self._plain())
        result = super().train(*args, **kwargs)
        self._refuse_changes()
        return result

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._losses, self._items = None, items
        if self.guards is not None:
            counters = {k: len(v) for k, v in self._metrics["train"].items()} if hasattr(self, "_metrics") else None
            sums = (self._tr_loss.clone(), self.state.num_input_tokens_seen, self.current_flos)
            self._before = sums, counters, getattr(self, "_total_train_tokens", None)
        return batches, items

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.guards is not None:
            self._losses = loss.detach() if self._losses is None else self._losses + loss.detach()
            if self.guards.begun < FIRST and self.accelerator.sync_gradients:
                self.guards.alive |= {part for part, there in gradients(self._plain()).items() if there}
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The last moment before optimizer.step()."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.guards is not None and self._losses is not None:
            self._judge(model, norm)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        self._refuse_changes()
        super()._save_checkpoint(model, trial)

    def asked_to_end(self) -> int:
        """The signal that any rank has received; 0 for none. Every rank asks."""
        listener = self.guards.listener if self.guards else None
        return int(self._agreed(listener.received if listener else 0)[0])

    def _plain(self) -> Any:
        """The model itself; None where its weights are spread over processes, and cannot be looked at here."""
        return None if self.is_fsdp_enabled or self.is_deepspeed_enabled else self.accelerator.unwrap_model(self.model)

    # --- one step ----------------------------------------------------------------------------------------------------

    def _judge(self, model: Any, norm: Any) -> None:
        guards = self.guards
        assert guards is not None and self._losses is not None
        loss, size, items = self._read(norm)
        overflow = self._is_scaled() and math.isfinite(loss)  # the scaler's matter
        bad = not math.isfinite(loss) or (not math.isfinite(size) and not overflow)
        empty = items == 0
        signal = guards.listener.received if guards.listener else 0
        *told, stop = self._agreed(bad, empty, loss != 0.0 or size != 0.0, signal)
        bad, empty, learns = (bool(flag) for flag in told)
        guards.stop = int(stop)
        guards.begun += 1
        guards.zeros = 0 if learns else guards.zeros + 1
        if self._skip_noted and not self._is_scaled():
            self.optimizer._is_overflow = self._skip_noted = False  # type: ignore[union-attr]
        if empty:
            self._stop("labels", "every label of this step is masked (-100): there is nothing to learn", EMPTY)
        if bad:
            self._not_finite(model, loss, size)
            return
        guards.in_a_row = 0
        if guards.zeros >= (FIRST if guards.zeros == guards.begun else STUCK):
            what = f"the loss and its gradient are exactly 0.0, {guards.zeros} steps in a row"
            self._stop("zero_loss", what, "is there one class only, or are the labels masked?")
        if self._is_scaled() and not math.isfinite(size) and self._scale() < SMALLEST_SCALE:
            what = f"fp16's loss scale fell to {self._scale():g}: no step is made any more"
            self._stop("nonfinite", what, "bf16: true, or a lower learning_rate")
        if guards.begun == FIRST or self.state.global_step + 1 >= self.state.max_steps:
            self._refuse_dead_parts()
        if guards.begun == FIRST:
            self._refuse_changes()

    def _read(self, norm: Any) -> tuple[float, float, float]:
        """Loss of the window, norm of its gradient, its labels (-1 where nobody counts): one reading of the device."""
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        parts = [self._losses, norm, -1.0 if self._items is None else self._items]
        device = self._losses.device  # type: ignore[union-attr]
        parts = [
            torch.as_tensor(part, device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
            for part in parts
        ]
        loss, size, items = torch.stack([part.reshape(-1)[0] for part in parts]).tolist()
        return loss, size, items

    def _agreed(self, *flags: float) -> list[float]:
        """The largest of every rank's."""
        if self.args.world_size <= 1:
            return list(flags)
        told = torch.tensor([float(flag) for flag in flags], device=self.args.device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return list(told.tolist())

    def _is_scaled(self) -> bool:
        """Whether overflowing gradients are skipped by loss scaling: GradScaler's or master_weights'."""
        return self.accelerator.scaler is not None or getattr(self, "master_weights", None) is not None

    def _scale(self) -> float:
        scaler = self.accelerator.scaler
        return float(scaler.get_scale()) if scaler is not None else math.inf

    # --- not finite --------------------------------------------------------------------------------------------------

    def _not_finite(self, model: Any, loss: float, size: float) -> None:
        guards = self.guards
        assert guards is not None
        step = self.state.global_step + 1
        what = f"step {step}: the loss is {loss:g}, its gradient's norm {size:g}"
        guards.in_a_row += 1
        if guards.policy == "stop":
            self._stop("nonfinite", what + self._culprit(), self._finite_again())
        if guards.policy == "rollback":
            self._roll_back(what)
        elif guards.in_a_row > SKIPPED:
            self._stop("nonfinite", f"{what}; the {SKIPPED} steps before were skipped, too", self._finite_again())
        else:
            guards.say(f"{what}: skipped (on_nonfinite: skip)")
        guards.skipped.append(step)
        self._let_pass(size)

    def _let_pass(self, size: float) -> None:
        """This step changes nothing: no gradient, and the learning rate waits, as after an fp16 overflow."""
        if self._is_scaled() and not math.isfinite(size):
            return  # the scaler does it
        self.model.zero_grad()
        if not self._is_scaled():
            self.optimizer._is_overflow = self._skip_noted = True  # type: ignore[union-attr]

    def _roll_back(self, what: str) -> None:
        """Weights and optimizer of the newest whole checkpoint; data and schedule go on behind this step."""
        guards = self.guards
        assert guards is not None
        chosen, _ = select.choose_checkpoint(Path(str(self.args.output_dir)))
        if chosen is None:
            self._stop("nonfinite", f"{what}; there is no checkpoint to roll back to", self._finite_again())
        assert chosen is not None
        times = guards.rolled_back[chosen.path] = guards.rolled_back.get(chosen.path, 0) + 1
        if times > ROLLED_BACK:
            what += f"; {chosen.path} was gone back to {ROLLED_BACK} times"
            self._stop("nonfinite", what, self._finite_again())
        schedule = self.lr_scheduler.state_dict()
        self._load_from_checkpoint(chosen.path)
        self._load_optimizer_and_scheduler(chosen.path)
        self.lr_scheduler.load_state_dict(schedule)
        guards.say(
            f"{what}: back to the weights of {chosen.path} (on_nonfinite: rollback); the rows since are left out"
        )

    def _culprit(self) -> str:
        """ "; first not finite: model.layers.3.mlp (micro-batch 2 of 4)": by running the window's forwards again."""
        model = self._plain()
        if model is None or not self._random:
            return ""
        broken = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
        if broken:
            return f"; the weights {broken[0]} were not finite before"
        found: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def hook(module: Any, given: Any, output: Any) -> None:
                tensor = output[0] if isinstance(output, tuple) and output else output
                if not found and torch.is_tensor(tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                    found.append(name)

            return hook

        hooks = [part.register_forward_hook(look(name)) for name, part in model.named_modules() if name]
        try:
            for n, (batch, state) in enumerate(zip(self._window, self._random, strict=False)):
                restore(state, self.args.device)
                inputs = {k: v for k, v in self._prepare_inputs(dict(batch)).items() if k != "labels"}
                with torch.no_grad(), self.compute_loss_context_manager():
                    model(**inputs)
                if found:
                    return f"; first not finite: {found[0]} (micro-batch {n + 1} of {len(self._window)})"
        except (RuntimeError, TypeError, ValueError):
            return ""  # a help, not a need
        finally:
            for one in hooks:
                one.remove()
        return "; every layer's output is finite: it is the loss or its gradient"

    def _finite_again(self) -> str:
        if self.args.fp16 or getattr(self, "master_weights", None) is not None:
            return "bf16: true (fp16 ends at 65504), or a lower learning_rate"
        return "lower learning_rate, set max_grad_norm: 1.0, or look at this step's rows; on_nonfinite: skip goes on"

    # --- parts -------------------------------------------------------------------------------------------------------

    def _refuse_dead_parts(self) -> None:
        guards = self.guards
        assert guards is not None
        dead = sorted(set(gradients(self._plain())) - guards.alive)
        if not dead:
            return
        more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
        what = f"in {guards.begun} steps these had no gradient: {', '.join(dead[:3])}{more}"
        self._stop(
            "no_gradient", what, "are they part of the forward? name others in target_modules or modules_to_save"
        )

    def _refuse_changes(self) -> None:
        guards = self.guards
        if guards is None or not guards.frozen:
            return
        now = frozen_sums(self._plain())
        changed = [name for name, before in guards.frozen.items() if now.get(name, before) != before]
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            guards.frozen = {}
            what = f"weights that are frozen have changed: {', '.join(changed[:3])}{more}"
            self._stop(
                "frozen", what, "a callback or a hook writes to them; an adapter over changed weights is worth nothing"
            )

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _stop(self, word: str, what: str, fix: str) -> None:
        """Raises RecipeError on every rank; the state before this step is saved first. What the recipe says is meant
        is only said."""
        guards = self.guards
        assert guards is not None
        adapter = "LoraConfig" if "LoraConfig" in guards.recipe.sections else "model"
        locations = {"labels": "dataset", "zero_loss": "dataset", "no_gradient": adapter, "frozen": adapter}
        where = guards.recipe.location(locations.get(word, f"{guards.recipe.trainer}.learning_rate"))
        if word in ("nonfinite", "labels"):
            errors = [Diagnostic(location=where, message=what, fix=fix)]
        else:
            errors = list(report_unless_disabled(guards.recipe, word, where, what, fix, guards.say))
        if not errors:
            guards.begun += FIRST  # said once
            return
        kept = self._keep() if word in ("nonfinite", "labels", "zero_loss") else None
        if kept:
            errors = [
                Diagnostic(location=f.location, message=f"{f.message} (the weights are untouched: {kept})", fix=f.fix)
                for f in errors
            ]
        raise RecipeError(errors)

    def _keep(self) -> str | None:
        """The checkpoint of the state before this step, made if there is none and any are wanted."""
        if not self.state.global_step or str(getattr(self.args.save_strategy, "value", "")) == "no" or not self._random:
            return None
        path = Path(str(self.args.output_dir)) / folders.checkpoint_name(self.state.global_step)
        if not folders.is_complete(path):
            restore(self._random[0], self.args.device)
            sums, counters, tokens = self._before or (None, None, None)
            if sums is not None:
                self._tr_loss.copy_(sums[0])
                self.state.num_input_tokens_seen, self.current_flos = sums[1:]
            if counters is not None and tokens is not None:
                for name, values in self._metrics["train"].items():
                    del values[counters.get(name, 0) :]
                self._total_train_tokens = tokens
            super()._save_checkpoint(self.model, None)
        return path.name


EMPTY = "raise max_length, or look at the rows' labels"
