"""Every optimizer step is checked before the weights change.

One read of the device per step (gradient norm, loss of the accumulation window, its number of labels), and the same
decision on every rank. Upstream 5.23 steps on a NaN, ruins the weights and logs a loss of 0.0 or an average instead.
An overflow that fp16's loss scaling skips is normal; a loss that is not finite is an error in any precision.

`StepGuard` needs no Trainer: training/overrides.py calls it, and a test gives it any object with the members of
`GuardedTrainer`. A trainer without a guard is upstream's: plan traces it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hf_recipes.checkpoints import folders, manifest, select
from hf_recipes.common.ranks import largest_of_ranks
from hf_recipes.data.row_checks import report_unless_disabled
from hf_recipes.errors import TrainingError
from hf_recipes.training.signals import Listener
from hf_recipes.training.trainable_parts import frozen_sums, gradients
from hf_recipes.training.window import StepSums, Window, read_random_state, restore_random_state

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

FIRST_STEPS = 2  # in which every adapter and head must have had a gradient, and the loss must have been something
ZERO_STEPS = 20  # in a row with a loss and a gradient of exactly 0
SKIPPED_STEPS = 10  # in a row that may be skipped
ROLLBACKS = 3  # to one checkpoint
SMALLEST_SCALE = 2.0**-7  # of the loss: below it fp16's scaler has skipped more than 20 steps

EMPTY = "raise max_length, or check the rows' labels"


class GuardedTrainer(Protocol):
    """What the guard reads of a trainer, and what it asks of it."""

    args: Any
    state: Any
    model: Any
    optimizer: Any

    @property
    def is_loss_scaled(self) -> bool: ...  # whether loss scaling skips overflowing gradients: GradScaler's or ours

    @property
    def loss_scale(self) -> float: ...  # GradScaler's; inf without one

    def plain_model(self) -> Any: ...  # the unwrapped model; None where its weights are spread over processes

    def run_forward(self, batch: Any) -> None: ...  # of one micro-batch, without labels and without gradients

    def read_other_batches(self) -> list[Any]: ...  # micro-batches of rows from all over the training data

    def load_weights_and_optimizer(self, checkpoint: str) -> None: ...  # settings and schedule stay

    def restore_sums(self, sums: StepSums) -> None: ...

    def write_checkpoint(self) -> bool: ...  # whether it was: not of a state that is not finite

    @property
    def run_id(self) -> str: ...  # as the manifests of this run have it


class StepGuard:
    """Stops a run, skips a step or rolls back (`policy`: the recipe's on_nonfinite) where training would fail silently.

    Raises TrainingError on every rank; the state before the step is saved first.
    """

    def __init__(
        self, *, recipe: Recipe, say: Callable[[str], None], listener: Listener | None = None, policy: str = "stop"
    ) -> None:
        self.recipe, self.say, self.listener, self.policy = recipe, say, listener, policy
        self.skipped: list[int] = []  # steps
        self.rolled_back: dict[str, int] = {}  # checkpoint -> times
        self.overflows: list[int] = []  # steps that loss scaling skipped
        self._earlier: dict[str, list[int]] = {}  # those of earlier sessions
        self.stop_signal = 0  # on which all ranks agreed
        self.checked = 0  # steps of this session
        self._frozen: dict[str, int] = {}  # checksums of the weights that must not change
        self._with_gradient: set[str] = set()  # adapters and heads
        self._last_good: Any = None  # a micro-batch of the step before; None in a session's first step
        self._rolled_back_to = ""  # the checkpoint whose weights these are, until a step changes them
        self._zeros = 0  # steps in a row with nothing to learn
        self._skipped_in_a_row = 0
        self._skip_marked = False  # in the optimizer, for upstream's schedule
        self._loss: torch.Tensor | None = None  # of the window, summed on the device

    # --- called in the order of a run --------------------------------------------------------------------------------

    def begin_training(self, model: Any) -> None:
        if not self._frozen:
            self._frozen = frozen_sums(model)

    def begin_window(self) -> None:
        self._loss = None

    def add_micro_batch(self, loss: torch.Tensor, trainer: GuardedTrainer, *, closes_window: bool) -> None:
        """After a micro-batch's backward."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        if self.checked < FIRST_STEPS and closes_window:
            self._with_gradient |= {part for part, there in gradients(trainer.plain_model()).items() if there}

    def check_step(self, trainer: GuardedTrainer, window: Window, norm: Any) -> None:
        """The last moment before optimizer.step(). `norm`: of the window's gradient, before clipping."""
        if self._loss is None:
            return
        loss, size, items = _read_step(self._loss, norm, window.items)
        overflow = trainer.is_loss_scaled and math.isfinite(loss)  # loss scaling skips that step itself
        bad: float = not math.isfinite(loss) or (not math.isfinite(size) and not overflow)
        signal = self.listener.received if self.listener else 0
        flags = (bad, items == 0, loss != 0.0 or size != 0.0, signal)
        bad, empty, learns, stop = largest_of_ranks(*flags, args=trainer.args)
        self.stop_signal = int(stop)
        self.checked += 1
        self._zeros = 0 if learns else self._zeros + 1
        if self._skip_marked and not trainer.is_loss_scaled:
            trainer.optimizer._is_overflow = self._skip_marked = False
        if empty:
            what = "every label of this step is masked (-100): there is nothing to learn"
            raise self._error("labels", what, EMPTY, trainer, window)
        if bad:
            self._handle_not_finite(trainer, window, loss, size)
            return
        self._skipped_in_a_row = 0
        self._rolled_back_to = ""
        self._last_good = window.batches[0] if window.batches else None
        if overflow and not math.isfinite(size):
            self.overflows.append(trainer.state.global_step + 1)
        self._refuse_zeros(trainer, window)
        if trainer.is_loss_scaled and not math.isfinite(size) and trainer.loss_scale < SMALLEST_SCALE:
            what = f"fp16's loss scale fell to {trainer.loss_scale:g}: every step is skipped"
            raise self._error("nonfinite", what, "set bf16: true, or lower learning_rate", trainer, window)
        if self.checked == FIRST_STEPS or trainer.state.global_step + 1 >= trainer.state.max_steps:
            self._refuse_parts_without_gradient(trainer)
        if self.checked == FIRST_STEPS:
            self.refuse_changed_weights(trainer.plain_model())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        own = {"skipped_steps": self.skipped, "overflow_steps": self.overflows}
        return {key: sorted({*self._earlier.get(key, ()), *steps}) for key, steps in own.items()}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        self._earlier = {key: [int(step) for step in found.get(key) or ()] for key in self.state_dict()}

    def count_without_effect(self, steps: int) -> int:
        """How many of the run's steps changed no weight. Those with which loss scaling finds its first scale do not
        count."""
        skipped, overflows = (set(found) for found in self.state_dict().values())
        first = next((step for step in range(1, steps + 1) if step not in overflows), steps + 1)
        counted = overflows if first > steps else {step for step in overflows if step > first}
        return len(skipped | counted)

    @property
    def has_old_weights(self) -> bool:
        """Whether the weights are those of a checkpoint that was rolled back to: another one would be a copy of it."""
        return bool(self._rolled_back_to)

    def refuse_changed_weights(self, model: Any) -> None:
        """Before a checkpoint, and when training ends."""
        if not self._frozen:
            return
        now = frozen_sums(model)
        changed = [name for name, before in self._frozen.items() if now.get(name, before) != before]
        if changed:
            self._frozen = {}
            what = f"frozen weights have changed: {_first_three(changed)}"
            fix = "find the callback or hook that writes to them; an adapter is worth nothing on other base weights"
            self._refuse("frozen", what, fix)

    def requested_signal(self, args: Any) -> int:
        """The signal that any rank has received; 0 for none. Every rank must call it."""
        return int(largest_of_ranks(self.listener.received if self.listener else 0, args=args)[0])

    # --- a loss or gradient that is not finite -----------------------------------------------------------------------

    def _handle_not_finite(self, trainer: GuardedTrainer, window: Window, loss: float, size: float) -> None:
        step = trainer.state.global_step + 1
        what = f"step {step}: the loss is {loss:g}, its gradient norm {size:g}"
        self._skipped_in_a_row += 1
        if self.policy == "stop":
            what += _first_not_finite(trainer, window)
            raise self._error("nonfinite", what, _fix_not_finite(trainer), trainer, window)
        if self.policy == "rollback":
            self._roll_back(trainer, window, what)
        elif self._skipped_in_a_row > SKIPPED_STEPS:
            what += f"; the {SKIPPED_STEPS} steps before were skipped too"
            raise self._error("nonfinite", what, _fix_not_finite(trainer), trainer, window)
        else:
            self.say(f"{what}: skipped (on_nonfinite: skip)")
        self.skipped.append(step)
        self._skip_step(trainer, size)

    def _skip_step(self, trainer: GuardedTrainer, size: float) -> None:
        """This step changes nothing: no gradient, and the learning rate waits, as after an fp16 overflow."""
        if trainer.is_loss_scaled and not math.isfinite(size):
            return  # the scaler does it
        trainer.model.zero_grad()
        if not trainer.is_loss_scaled:
            trainer.optimizer._is_overflow = self._skip_marked = True

    def _roll_back(self, trainer: GuardedTrainer, window: Window, what: str) -> None:
        """Weights and optimizer of the latest complete checkpoint; data and schedule continue behind this step."""
        folder = Path(str(trainer.args.output_dir))
        if self._are_weights_ruined(trainer, window):
            latest = folder / folders.checkpoint_name(trainer.state.global_step)
            _mark_ruined(trainer, Path(self._rolled_back_to) if self._rolled_back_to else latest)
            largest_of_ranks(0, args=trainer.args)  # the others wait for the mark
        used_up = [path for path, times in self.rolled_back.items() if times >= ROLLBACKS]
        chosen, unusable = select.choose_checkpoint(folder, run=trainer.run_id, leave_out=used_up)
        for line in unusable:
            self.say(f"skipped {line}")
        if chosen is None:
            what += "; there is no checkpoint to roll back to" if not used_up else ""
            what += f"; already rolled back to {used_up[-1]} {ROLLBACKS} times" if used_up else ""
            raise self._error("nonfinite", what, _fix_not_finite(trainer), trainer, window)
        self.rolled_back[chosen.path] = self.rolled_back.get(chosen.path, 0) + 1
        trainer.load_weights_and_optimizer(chosen.path)
        self._rolled_back_to = str(chosen.path)
        what += f": rolled back to the weights of {chosen.path} (on_nonfinite: rollback)"
        self.say(f"{what}; the rows since then are skipped")

    # --- nothing to learn --------------------------------------------------------------------------------------------

    def _refuse_zeros(self, trainer: GuardedTrainer, window: Window) -> None:
        if self._zeros >= (FIRST_STEPS if self._zeros == self.checked else ZERO_STEPS):
            what = f"the loss and its gradient are exactly 0.0, {self._zeros} steps in a row"
            fix = "check whether the data have one class only, or masked labels"
            self._refuse("zero_loss", what, fix, trainer, window)

    def _refuse_parts_without_gradient(self, trainer: GuardedTrainer) -> None:
        dead = sorted(set(gradients(trainer.plain_model())) - self._with_gradient)
        if dead:
            what = f"these parts had no gradient in {self.checked} steps: {_first_three(dead)}"
            fix = "check that the forward pass uses them, or name others in target_modules or modules_to_save"
            self._refuse("no_gradient", what, fix)

    # --- stopping ----------------------------------------------------------------------------------------------------

    def _refuse(
        self, name: str, what: str, fix: str, trainer: GuardedTrainer | None = None, window: Window | None = None
    ) -> None:
        """Raises TrainingError, or, where the recipe disables this guard, prints the line once."""
        for error in report_unless_disabled(self.recipe, name, self._location(name), what, fix, self.say):
            raise self._error(name, error.message, error.fix, trainer, window)
        self.checked += FIRST_STEPS

    def _error(
        self, name: str, what: str, fix: str, trainer: GuardedTrainer | None = None, window: Window | None = None
    ) -> TrainingError:
        """What ends the run; given a trainer, the state before the step is saved first."""
        if trainer is not None and window is not None:
            ruined = name == "nonfinite" and self._are_weights_ruined(trainer, window)
            what += _save_state_before(trainer, window, ruined=ruined)
        return TrainingError.at(self._location(name), what, fix)

    def _are_weights_ruined(self, trainer: GuardedTrainer, window: Window) -> bool:
        """Whether weights are not finite, or rows that are known to be good give no finite output now: it was an update
        that ruined the weights, not this step's rows. Good are those of the step before, whose loss was finite; in a
        session's first step, rows from all over the data, if all fail. Every rank must call it."""
        ruined = bool(_find_lost_parameter(trainer.plain_model()))
        if not ruined:
            batches = [self._last_good] if self._last_good is not None else _read_other_batches(trainer)
            before = read_random_state(trainer.args.device)
            ruined = bool(batches) and not any(_gives_finite_output(trainer, batch) for batch in batches)
            restore_random_state(before, trainer.args.device)
        return bool(largest_of_ranks(ruined, args=trainer.args)[0])

    def _location(self, name: str) -> str:
        adapter = "LoraConfig" if "LoraConfig" in self.recipe.sections else "model"
        keys = {"labels": "dataset", "zero_loss": "dataset", "no_gradient": adapter, "frozen": adapter}
        return self.recipe.location(keys.get(name, f"{self.recipe.trainer}.learning_rate"))


def _read_step(loss: torch.Tensor, norm: Any, items: Any) -> tuple[float, float, float]:
    """Loss of the window, norm of its gradient, its labels (-1 where nobody counts): one read of the device."""
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    dtype = torch.float64 if loss.device.type == "cpu" else torch.float32
    parts = [
        torch.as_tensor(part, device=loss.device, dtype=dtype)
        for part in (loss, norm, -1.0 if items is None else items)
    ]
    loss_, size, items_ = torch.stack([part.reshape(-1)[0] for part in parts]).tolist()
    return loss_, size, items_


def _save_state_before(trainer: GuardedTrainer, window: Window, *, ruined: bool) -> str:
    """Where the state before this step is, written if there is none yet and any are wanted; beside the others, whatever
    save_total_limit. A state that is not finite, or whose weights are ruined, is not kept: then the latest one of
    before."""
    step, strategy = trainer.state.global_step, trainer.args.save_strategy
    if not step or str(getattr(strategy, "value", "")) == "no" or not window.random_states:
        return ""
    folder = Path(str(trainer.args.output_dir))
    path = folder / folders.checkpoint_name(step)
    written = folders.is_complete(path) and folders.run_of(path) == trainer.run_id
    if written and ruined:
        _mark_ruined(trainer, path)
    if not written and not ruined:
        restore_random_state(window.random_states[0], trainer.args.device)
        if window.before is not None:
            trainer.restore_sums(window.before)
        written = trainer.write_checkpoint()
    if written and not ruined:
        return f" (the weights are unchanged and saved in {path.name})"
    earlier = (one for one in folders.list_checkpoints(folder) if folders.run_of(one) == trainer.run_id and one != path)
    good = [
        one.name
        for one in earlier
        if folders.is_complete(one) and not (manifest.read_manifest(one) or {}).get("ruined")
    ]
    if not good:
        return " (the weights were ruined before this step, and no checkpoint is from before: start without --resume)"
    return f" (the step before has ruined the weights; {good[0]} is from before)"


def _mark_ruined(trainer: GuardedTrainer, path: Path) -> None:
    """If it is a checkpoint of this run."""
    if trainer.args.process_index == 0 and folders.is_complete(path) and folders.run_of(path) == trainer.run_id:
        after = trainer.state.global_step + 1
        manifest.mark_ruined(path, f"the loss of step {after} is not finite, whatever the rows")


def _gives_finite_output(trainer: GuardedTrainer, batch: Any) -> bool:
    """True where it cannot be tried."""
    model = trainer.plain_model()
    if model is None:
        return True
    found: list[bool] = []

    def look(module: Any, given: Any, output: Any) -> None:
        logits = getattr(output, "logits", output[0] if isinstance(output, tuple) and output else output)
        if torch.is_tensor(logits) and logits.is_floating_point():
            found.append(bool(logits.isfinite().all()))

    hook = model.register_forward_hook(look)
    try:
        trainer.run_forward(batch)
    except (RuntimeError, TypeError, ValueError):
        return True
    finally:
        hook.remove()
    return all(found)


def _first_not_finite(trainer: GuardedTrainer, window: Window) -> str:
    """ "; first not finite: model.layers.3.mlp (micro-batch 2 of 4)": by repeating the window's forwards."""
    model = trainer.plain_model()
    if model is None or not window.random_states:
        return ""
    lost = _find_lost_parameter(model)
    if lost:
        return f"; the weights of {lost} were not finite before this step"
    found: list[str] = []

    def check_output(name: str) -> Callable[..., None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) and output else output
            if not found and torch.is_tensor(tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                found.append(name)

        return hook

    hooks = [part.register_forward_hook(check_output(name)) for name, part in model.named_modules() if name]
    try:
        for n, (batch, state) in enumerate(zip(window.batches, window.random_states, strict=False)):
            restore_random_state(state, trainer.args.device)
            trainer.run_forward(batch)
            if found:
                return f"; first not finite: {found[0]} (micro-batch {n + 1} of {len(window.batches)})"
    except (RuntimeError, TypeError, ValueError):
        return ""  # a help, not a need
    finally:
        for one in hooks:
            one.remove()
    return "; every layer's output is finite, the loss or its gradient is not"


def _read_other_batches(trainer: GuardedTrainer) -> list[Any]:
    """None in fp16, where it may be the precision that is too small for good weights, and not the weights."""
    model = trainer.plain_model()
    half = model is not None and any(weight.dtype == torch.float16 for weight in model.parameters())
    return [] if half or trainer.args.fp16 or trainer.is_loss_scaled else trainer.read_other_batches()


def _find_lost_parameter(model: Any) -> str | None:
    """The first one that is not finite."""
    parameters = model.named_parameters() if model is not None else ()
    return next((name for name, p in parameters if p.is_floating_point() and not p.isfinite().all()), None)


def _fix_not_finite(trainer: GuardedTrainer) -> str:
    if trainer.args.fp16 or trainer.is_loss_scaled:
        return "set bf16: true (fp16's largest number is 65504), or lower learning_rate"
    fix = "lower learning_rate, set max_grad_norm: 1.0, or check this step's rows"
    return f"{fix}; on_nonfinite: skip continues without the step"


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
