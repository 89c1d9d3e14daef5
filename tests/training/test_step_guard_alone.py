"""StepGuard without a Trainer: what each reading of a step leads to."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_recipes.checkpoints import folders, manifest
from hf_recipes.errors import TrainingError
from hf_recipes.recipe.recipe import Recipe
from hf_recipes.training.signals import Listener
from hf_recipes.training.step_guard import FIRST_STEPS, ROLLBACKS, SKIPPED_STEPS, ZERO_STEPS, StepGuard
from hf_recipes.training.window import StepSums, Window, read_random_state

CPU = torch.device("cpu")
FIX = (
    "lower learning_rate, set max_grad_norm: 1.0, or check this step's rows; on_nonfinite: skip continues without the "
    "step"
)


class FakeTrainer:
    """The members of GuardedTrainer, with a note of what the guard asked for."""

    def __init__(self, model: Any = None, *, scaled: bool = False, output_dir: str | Path = "out") -> None:
        save = SimpleNamespace(value="steps")
        self.args = SimpleNamespace(
            world_size=1, process_index=0, device=CPU, output_dir=output_dir, save_strategy=save, fp16=False
        )
        self.state = SimpleNamespace(global_step=0, max_steps=1000)
        self.model: Any = torch.nn.Linear(2, 2) if model is None else model
        self.optimizer = SimpleNamespace(_is_overflow=False)
        self.is_loss_scaled, self.loss_scale = scaled, math.inf
        self.run_id = "r"
        self.asked: list[tuple[str, Any]] = []
        self.load_weights_and_optimizer = self._note("load")
        self.restore_sums = self._note("sums")

    def _note(self, name: str) -> Any:
        return lambda value: self.asked.append((name, value))

    def plain_model(self) -> Any:
        return self.model

    def run_forward(self, batch: Any) -> None:
        self.model(batch)

    def read_other_batches(self) -> list[Any]:
        return [torch.ones(1, 2), torch.zeros(1, 2)]

    def write_checkpoint(self) -> bool:
        self.asked.append(("checkpoint", random.random()))
        return True


def guard_of(policy: str = "stop", lines: list[str] | None = None, **sections: Any) -> StepGuard:
    recipe = Recipe(path="a.yaml", sections={"task": "causal-lm", "TrainingArguments": {}, **sections}, locations={})
    return StepGuard(recipe=recipe, say=[].append if lines is None else lines.append, policy=policy)


def step(
    guard: StepGuard, trainer: FakeTrainer, loss: float, norm: float, *, items: int = 4, window: Window | None = None
) -> None:
    """One optimizer step of two micro-batches whose losses add up to `loss`."""
    guard.begin_window()
    for closes in (False, True):
        guard.add_micro_batch(torch.tensor(loss / 2), trainer, closes_window=closes)
    window = window or Window()
    window.items = torch.tensor(items)
    guard.check_step(trainer, window, torch.tensor(norm))
    trainer.state.global_step += 1


def error_of(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        step(*args, **kwargs)
    return str(caught.value)


# --- not finite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_loss_or_a_gradient_that_is_not_finite_stops_the_run(loss: float, norm: float) -> None:
    assert error_of(guard_of(), FakeTrainer(), loss, norm) == (
        f"a.yaml: step 1: the loss is {loss:g}, its gradient norm {norm:g}; {FIX}"
    )


def test_with_loss_scaling_an_overflowing_gradient_is_normal_and_a_loss_that_is_not_finite_is_an_error() -> None:
    guard, trainer = guard_of(), FakeTrainer(scaled=True)
    step(guard, trainer, 1.0, math.inf)
    step(guard, trainer, 1.0, math.nan)
    assert guard.skipped == []
    assert error_of(guard, trainer, math.nan, 1.0) == (
        "a.yaml: step 3: the loss is nan, its gradient norm 1; set bf16: true (fp16's largest number is 65504), or "
        "lower learning_rate"
    )


def test_a_loss_scale_that_only_falls_stops_the_run() -> None:
    guard, trainer = guard_of(), FakeTrainer(scaled=True)
    trainer.loss_scale = 2.0**-7
    step(guard, trainer, 1.0, math.inf)
    trainer.loss_scale = 2.0**-8
    step(guard, trainer, 1.0, 1.0)  # a step that is not skipped is no reason
    assert error_of(guard, trainer, 1.0, math.inf) == (
        "a.yaml: fp16's loss scale fell to 0.00390625: every step is skipped; set bf16: true, or lower learning_rate"
    )


def test_skip_drops_the_gradient_holds_the_schedule_back_once_and_stops_after_ten_in_a_row() -> None:
    lines: list[str] = []
    guard, trainer = guard_of("skip", lines), FakeTrainer()
    trainer.model.weight.grad = torch.ones(2, 2)
    step(guard, trainer, math.nan, 1.0)
    assert trainer.model.weight.grad is None and trainer.optimizer._is_overflow
    assert lines == ["step 1: the loss is nan, its gradient norm 1: skipped (on_nonfinite: skip)"]
    step(guard, trainer, 1.0, 1.0)
    assert not trainer.optimizer._is_overflow and guard.skipped == [1]
    for _ in range(SKIPPED_STEPS):
        step(guard, trainer, 1.0, math.nan)
    assert error_of(guard, trainer, 1.0, math.nan) == (
        f"a.yaml: step 13: the loss is 1, its gradient norm nan; the 10 steps before were skipped too; {FIX}"
    )


def test_skipping_with_loss_scaling_leaves_the_overflow_to_the_scaler() -> None:
    guard, trainer = guard_of("skip"), FakeTrainer(scaled=True)
    trainer.model.weight.grad = torch.ones(2, 2)
    step(guard, trainer, math.nan, math.nan)
    assert trainer.model.weight.grad is not None and not trainer.optimizer._is_overflow
    step(guard, trainer, math.nan, 1.0)  # the scaler would step
    assert trainer.model.weight.grad is None and not trainer.optimizer._is_overflow


def test_rollback_loads_the_latest_complete_checkpoint_and_ends_after_three_times(tmp_path: Path) -> None:
    guard, trainer = guard_of("rollback"), FakeTrainer(output_dir=tmp_path)
    assert error_of(guard, trainer, math.nan, 1.0) == (
        f"a.yaml: step 1: the loss is nan, its gradient norm 1; there is no checkpoint to roll back to; {FIX}"
    )
    saved = tmp_path / "checkpoint-1"
    saved.mkdir()
    manifest.write_manifest(saved, {"run": "r", "saved": "2026", "state": ["optimizer"]}, {})
    lines: list[str] = []
    guard = guard_of("rollback", lines)
    for _ in range(ROLLBACKS):
        step(guard, trainer, math.nan, 1.0)
    assert trainer.asked == [("load", str(saved))] * ROLLBACKS
    assert lines[0] == (
        f"step 1: the loss is nan, its gradient norm 1: rolled back to the weights of {saved} "
        "(on_nonfinite: rollback); the rows since then are skipped"
    )
    assert guard.rolled_back == {str(saved): 3} and guard.skipped == [1, 2, 3]
    assert f"; already rolled back to {saved} 3 times; " in error_of(guard, trainer, math.nan, 1.0)


# --- what the error adds ---------------------------------------------------------------------------------------------


def test_the_first_layer_that_is_not_finite_is_named_with_its_micro_batch() -> None:
    class Overflows(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * (math.inf if inputs.sum() > 10 else 1.0)

    model = torch.nn.Sequential(torch.nn.Identity(), Overflows(2, 2), torch.nn.Identity())
    states = [read_random_state(CPU), read_random_state(CPU)]
    window = Window(batches=[torch.ones(1, 2), torch.full((1, 2), 9.0)], random_states=states)
    message = error_of(guard_of(), FakeTrainer(model), math.nan, 1.0, window=window)
    assert "; first not finite: 1 (micro-batch 2 of 2); " in message
    window.batches[1] = torch.ones(1, 2)
    message = error_of(guard_of(), FakeTrainer(model), math.nan, 1.0, window=window)
    assert "; every layer's output is finite, the loss or its gradient is not; " in message
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    message = error_of(guard_of(), FakeTrainer(model), math.nan, 1.0, window=window)
    assert "; the weights of 1.weight were not finite before this step; " in message
    assert not any(part._forward_hooks for part in model.modules())


def test_the_state_before_the_step_is_saved_once_with_its_random_state_and_its_sums(tmp_path: Path) -> None:
    before = StepSums(loss=torch.tensor(1.0), tokens_seen=3, flos=4)
    state = read_random_state(CPU)
    drawn = random.random()
    window = Window(batches=[torch.ones(1, 2)], random_states=[state], before=before)
    trainer = FakeTrainer(output_dir=tmp_path)
    trainer.state.global_step = 5
    message = error_of(guard_of(), trainer, math.nan, 1.0, window=window)
    assert message.startswith("a.yaml: step 6: the loss is nan, its gradient norm 1; every layer's output is finite")
    assert " (the weights are unchanged and saved in checkpoint-5); lower learning_rate" in message
    assert trainer.asked == [("sums", before), ("checkpoint", drawn)]

    (tmp_path / "checkpoint-5").mkdir()
    manifest.write_manifest(tmp_path / "checkpoint-5", {"run": "r", "saved": "2026", "state": []}, {})
    assert folders.is_complete(tmp_path / "checkpoint-5")
    error_of(guard_of(), trainer, math.nan, 1.0, window=window)
    assert len(trainer.asked) == 2  # it is there already

    trainer.args.save_strategy = SimpleNamespace(value="no")
    assert "saved in" not in error_of(guard_of(), trainer, math.nan, 1.0, window=window)


# --- nothing to learn ------------------------------------------------------------------------------------------------


def test_weights_that_the_step_before_ruined_are_not_kept_and_their_checkpoint_is_marked(tmp_path: Path) -> None:
    rows = torch.ones(1, 2)
    window = Window(batches=[rows], random_states=[read_random_state(CPU)])
    guard, trainer = guard_of(), FakeTrainer(output_dir=tmp_path)
    step(guard, trainer, 1.0, 1.0, window=window)
    for number in (1, 2):
        path = tmp_path / f"checkpoint-{number}"
        path.mkdir()
        manifest.write_manifest(path, {"run": "r", "session": 1, "saved": "", "state": ["optimizer"]}, {})
    step(guard, trainer, 1.0, 1.0, window=window)
    with torch.no_grad():
        trainer.model.weight.fill_(math.inf)
    assert "(the step before has ruined the weights; checkpoint-1 is from before)" in error_of(
        guard, trainer, math.nan, math.nan, window=window
    )
    assert trainer.asked == []
    body = manifest.read_manifest(tmp_path / "checkpoint-2")
    assert body is not None and body["ruined"].startswith("the loss of step 3 is not finite")


def test_ruined_weights_are_known_in_a_sessions_first_step_too_and_without_an_older_checkpoint_the_run_starts_anew(
    tmp_path: Path,
) -> None:
    window = Window(batches=[torch.ones(1, 2)], random_states=[read_random_state(CPU)])
    guard, trainer = guard_of(), FakeTrainer(output_dir=tmp_path)
    trainer.state.global_step = 1  # resumed
    path = tmp_path / "checkpoint-1"
    path.mkdir()
    manifest.write_manifest(path, {"run": "r", "session": 1, "saved": "", "state": ["optimizer"]}, {})
    with torch.no_grad():
        trainer.model.weight.fill_(3e38)  # finite: the rows of zeros give a finite output
    assert "(the weights are unchanged and saved in checkpoint-1)" in error_of(
        guard, trainer, math.nan, math.nan, window=window
    )
    trainer.read_other_batches = lambda: [torch.ones(1, 2), 2 * torch.ones(1, 2)]  # type: ignore[method-assign]
    trainer.args.fp16, trainer.state.global_step = True, 1  # good weights may overflow in it
    assert "saved in checkpoint-1)" in error_of(guard_of(), trainer, math.nan, math.nan, window=window)
    trainer.args.fp16, trainer.state.global_step = False, 1
    new = "(the weights were ruined before this step, and no checkpoint is from before: start without --resume)"
    assert new in error_of(guard_of(), trainer, math.nan, math.nan, window=window)
    assert (manifest.read_manifest(path) or {})["ruined"].startswith("the loss of step 2 is not finite")


def test_after_a_rollback_nothing_is_saved_until_a_step_has_changed_the_weights(tmp_path: Path) -> None:
    guard, trainer = guard_of("rollback"), FakeTrainer(output_dir=tmp_path)
    path = tmp_path / "checkpoint-1"
    path.mkdir()
    facts = {"run": "r", "session": 1, "saved": "", "state": ["optimizer"], "finite": True}
    (path / "trainer_state.json").write_text('{"global_step": 1}')
    manifest.write_manifest(path, facts, manifest.flush_files(path))
    step(guard, trainer, 1.0, 1.0)
    assert not guard.has_old_weights
    step(guard, trainer, math.nan, 1.0)
    assert guard.has_old_weights and trainer.asked == [("load", str(path))]
    step(guard, trainer, 1.0, 1.0)
    assert not guard.has_old_weights


def test_a_rollback_takes_an_older_checkpoint_after_three_times_and_none_of_another_run(tmp_path: Path) -> None:
    for number, run in ((100, "other"), (1, "r"), (2, "r")):
        path = tmp_path / f"checkpoint-{number}"
        path.mkdir()
        facts = {"run": run, "session": 9 if run == "other" else 1, "saved": "", "state": ["optimizer"], "finite": True}
        (path / "trainer_state.json").write_text('{"global_step": 1}')
        manifest.write_manifest(path, facts, manifest.flush_files(path))
    guard, trainer = guard_of("rollback"), FakeTrainer(output_dir=tmp_path)
    for _ in range(2 * ROLLBACKS):
        step(guard, trainer, math.nan, 1.0)
    names = [Path(path).name for _, path in trainer.asked]
    assert names == ["checkpoint-2"] * ROLLBACKS + ["checkpoint-1"] * ROLLBACKS
    assert "already rolled back to " in error_of(guard, trainer, math.nan, 1.0)


def test_a_step_without_labels_stops_the_run() -> None:
    assert error_of(guard_of(), FakeTrainer(), 0.0, 0.0, items=0) == (
        "a.yaml: every label of this step is masked (-100): there is nothing to learn; raise max_length, or check the "
        "rows' labels"
    )


def test_zeros_stop_the_run_at_its_second_step_or_after_twenty_in_a_row() -> None:
    guard, trainer = guard_of(), FakeTrainer()
    step(guard, trainer, 0.0, 0.0)
    assert error_of(guard, trainer, 0.0, 0.0) == (
        "a.yaml: the loss and its gradient are exactly 0.0, 2 steps in a row; check whether the data have one class "
        "only, or masked labels; if it is intended, write disable_guards: [zero_loss]"
    )
    guard = guard_of()
    step(guard, trainer, 0.0, 1e-30)  # a gradient: it learns
    for _ in range(ZERO_STEPS - 1):
        step(guard, trainer, 0.0, 0.0)
    assert "exactly 0.0, 20 steps in a row" in error_of(guard, trainer, 0.0, 0.0)


class Parts(torch.nn.Module):
    """Two heads, of which `score` gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier, self.score = (torch.nn.Linear(2, 2) for _ in range(3))
        self.classifier.weight.grad = torch.ones(2, 2)


def test_a_head_without_a_gradient_stops_the_run_after_two_steps_and_is_only_reported_if_the_guard_is_disabled() -> (
    None
):
    guard, trainer = guard_of(), FakeTrainer(Parts())
    step(guard, trainer, 1.0, 1.0)
    message = "these parts had no gradient in 2 steps: score"
    assert error_of(guard, trainer, 1.0, 1.0) == (
        f"a.yaml: {message}; check that the forward pass uses them, or name others in target_modules or "
        "modules_to_save; if it is intended, write disable_guards: [no_gradient]"
    )
    lines: list[str] = []
    guard = guard_of(lines=lines, disable_guards=["no_gradient"])
    for _ in range(5):
        step(guard, trainer, 1.0, 1.0)
    assert lines == [f"disable_guards no_gradient: {message}"]


def test_a_head_with_a_gradient_in_any_of_the_first_steps_is_alive() -> None:
    guard, trainer = guard_of(), FakeTrainer(Parts())
    step(guard, trainer, 1.0, 1.0)
    trainer.model.score.weight.grad = torch.ones(2, 2)
    step(guard, trainer, 1.0, 1.0)
    assert guard.checked == FIRST_STEPS


def test_the_last_step_of_a_short_run_checks_the_heads_too() -> None:
    guard, trainer = guard_of(), FakeTrainer(Parts())
    trainer.state.max_steps = 1
    assert "no gradient in 1 steps: score" in error_of(guard, trainer, 1.0, 1.0)


def test_frozen_weights_that_change_are_reported_once() -> None:
    model = Parts()
    for param in (model.body.weight, model.body.bias):
        param.requires_grad_(False)
    guard = guard_of(LoraConfig={})
    guard.begin_training(model)
    guard.refuse_changed_weights(model)
    with torch.no_grad():
        model.body.weight += 1
        model.classifier.weight += 1  # is trained
    with pytest.raises(TrainingError) as caught:
        guard.refuse_changed_weights(model)
    assert str(caught.value) == (
        "a.yaml: frozen weights have changed: body.weight; find the callback or hook that writes to them; an adapter "
        "is worth nothing on other base weights; if it is intended, write disable_guards: [frozen]"
    )
    guard.refuse_changed_weights(model)


# --- signals ---------------------------------------------------------------------------------------------------------


def test_the_signal_that_a_step_finds_is_the_one_that_ends_the_run() -> None:
    guard, trainer = guard_of(), FakeTrainer()
    guard.listener = Listener(print, launched=False)
    step(guard, trainer, 1.0, 1.0)
    assert (guard.stop_signal, guard.requested_signal(trainer.args)) == (0, 0)
    guard.listener.received = 15
    assert guard.requested_signal(trainer.args) == 15 and guard.stop_signal == 0
    step(guard, trainer, 1.0, 1.0)
    assert guard.stop_signal == 15
