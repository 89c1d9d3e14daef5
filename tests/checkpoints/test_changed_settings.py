"""A setting that is changed on resume is in force from the first resumed step, whatever the checkpoint's files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerState, TrainingArguments
from transformers.optimization import get_scheduler

from hf_recipes.checkpoints import manifest
from hf_recipes.checkpoints.compatibility import describe_recipe
from hf_recipes.checkpoints.settings import RecipeSettings
from hf_recipes.errors import CheckpointError, RecipeError
from hf_recipes.pipeline.run import run

STEPS = 6  # that the checkpoint has
THEN = {"learning_rate": 1e-3, "max_steps": 40, "warmup_steps": 4, "weight_decay": 0.0, "eval_strategy": "steps"}
NOW = {**THEN, "learning_rate": 4e-3, "max_steps": 20, "warmup_steps": 10, "weight_decay": 0.1}


def trainer_of(arguments: dict[str, Any], folder: str = "out") -> Any:
    """What `RecipeSettings` needs of a trainer, with upstream's optimizer and schedule of these arguments."""
    args = TrainingArguments(output_dir=folder, use_cpu=True, **arguments)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
    kind, given = Trainer.get_optimizer_cls_and_kwargs(args)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, **given)
    warmup = args.get_warmup_steps(args.max_steps)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, args.max_steps, args.lr_scheduler_kwargs)
    state = TrainerState(global_step=0, max_steps=args.max_steps)
    handler = SimpleNamespace(callbacks=[])
    return SimpleNamespace(
        args=args, model=model, optimizer=optimizer, lr_scheduler=scheduler, state=state, callback_handler=handler
    )


def described(arguments: dict[str, Any]) -> dict[str, Any]:
    found = describe_recipe({}, "TrainingArguments", trainer_of(arguments).args.to_dict())
    return json.loads(json.dumps(found, default=str))


def make_step(trainer: Any, metric: float = 1.0) -> None:
    trainer.model(torch.ones(2, 64)).square().mean().backward()
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    follows = hasattr(trainer.lr_scheduler, "patience")
    trainer.lr_scheduler.step(metric) if follows else trainer.lr_scheduler.step()
    trainer.state.global_step += 1


def checkpoint_of(arguments: dict[str, Any], folder: Path, *, named: bool = True) -> Path:
    """A checkpoint after six steps. `named`: with the recipe in a manifest, else as upstream writes it."""
    trainer = trainer_of(arguments)
    for _ in range(STEPS):
        make_step(trainer)
    folder.mkdir()
    torch.save(trainer.optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(trainer.lr_scheduler.state_dict(), folder / "scheduler.pt")
    if named:
        manifest.write_manifest(folder, {"recipe": described(arguments)}, {})
    return folder


def resumed(checkpoint: Path, arguments: dict[str, Any], allowed: tuple[str, ...] = ("recipe",)) -> Any:
    trainer = trainer_of(arguments)
    settings = RecipeSettings(allowed=allowed)
    settings.begin_training(str(checkpoint), described(arguments))
    trainer.state.global_step = STEPS
    settings.load_states(trainer, str(checkpoint))
    return trainer


def settings_of(trainer: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]


@pytest.mark.parametrize("named", [True, False], ids=["ours", "upstreams"])
@pytest.mark.parametrize(
    "more",
    [
        {"lr_scheduler_type": "linear"},
        {"lr_scheduler_type": "constant"},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 3}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "inverse_sqrt"},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 5}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        {"optim": "sgd", "optim_args": "momentum=0.5"},
        {"optim": "adafactor"},
        {"optim": "rmsprop"},
        {"optim": "adamw_bnb_8bit"},
        {"optim": "lion_8bit"},
        {"optim": "paged_adamw_32bit"},
    ],
    ids=str,
)
def test_rate_schedule_and_weight_decay_are_the_recipes_from_the_first_resumed_step(
    tmp_path: Path, more: dict[str, Any], named: bool
) -> None:
    trainer = resumed(checkpoint_of({**THEN, **more}, tmp_path / "checkpoint", named=named), {**NOW, **more})
    straight = trainer_of({**NOW, **more})
    for _ in range(STEPS):
        make_step(straight)
    for _ in range(3):
        assert settings_of(trainer) == settings_of(straight)
        assert trainer.lr_scheduler.get_last_lr() == straight.lr_scheduler.get_last_lr()
        make_step(trainer)
        make_step(straight)
    assert trainer.optimizer.state_dict()["state"]


def test_betas_epsilon_and_optimizer_arguments_are_the_recipes(tmp_path: Path) -> None:
    path = checkpoint_of({**THEN, "optim": "adamw_torch"}, tmp_path / "checkpoint")
    now = {**THEN, "optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}
    trainer = resumed(path, now)
    group = settings_of(trainer)[0]
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)
    moments = torch.load(path / "optimizer.pt")["state"][0]["exp_avg"]
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], moments)


def test_without_a_change_every_state_and_setting_is_the_checkpoints(tmp_path: Path) -> None:
    path = checkpoint_of(THEN, tmp_path / "checkpoint")
    trainer = resumed(path, THEN)
    saved = torch.load(path / "optimizer.pt")
    assert trainer.optimizer.state_dict()["param_groups"] == saved["param_groups"]
    assert trainer.lr_scheduler.state_dict() == torch.load(path / "scheduler.pt")


@pytest.mark.parametrize("kind", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_a_metric_keeps_what_it_counted_and_takes_the_recipes_arguments(
    tmp_path: Path, kind: str
) -> None:
    own = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": {"factor": 0.5, "patience": 2, "min_lr": 1e-6}}
    path = checkpoint_of({**THEN, **own}, tmp_path / "checkpoint")
    saved = torch.load(path / "scheduler.pt")
    assert saved["_last_lr"] == [5e-4, 5e-4]  # halved once
    trainer = resumed(
        path, {**NOW, **own, "lr_scheduler_kwargs": {"factor": 0.25, "patience": 7, "min_lr": 1e-6, "threshold": 0.1}}
    )
    scheduler = trainer.lr_scheduler
    assert [group["lr"] for group in settings_of(trainer)] == [2e-3, 2e-3]
    assert (scheduler.factor, scheduler.patience, scheduler.threshold) == (0.25, 7, 0.1)
    assert (scheduler.best, scheduler.num_bad_epochs) == (saved["best"], saved["num_bad_epochs"])
    same_rate = resumed(path, {**THEN, **own, "lr_scheduler_kwargs": {"factor": 0.25}})
    assert [group["lr"] for group in settings_of(same_rate)] == [5e-4, 5e-4]


def test_a_new_optimizer_or_schedule_is_started_where_the_recipe_allows_it(tmp_path: Path) -> None:
    path = checkpoint_of(THEN, tmp_path / "checkpoint")
    trainer = resumed(path, {**NOW, "optim": "sgd"}, ("recipe", "optimizer"))
    straight = trainer_of({**NOW, "optim": "sgd"})
    for _ in range(STEPS):
        straight.lr_scheduler.step()
    assert not trainer.optimizer.state_dict()["state"]
    assert settings_of(trainer) == settings_of(straight)
    trainer = resumed(path, {**NOW, "lr_scheduler_type": "cosine"}, ("scheduler",))
    straight = trainer_of({**NOW, "lr_scheduler_type": "cosine"})
    for _ in range(STEPS):
        straight.lr_scheduler.step()
    assert settings_of(trainer) == settings_of(straight)
    assert trainer.optimizer.state_dict()["state"]
    trainer = resumed(path, {**NOW, "lr_scheduler_type": "reduce_lr_on_plateau"}, ("scheduler",))
    assert [group["lr"] for group in settings_of(trainer)] == [4e-3, 4e-3]


def test_a_rollback_keeps_settings_and_schedule(tmp_path: Path) -> None:
    path = checkpoint_of(THEN, tmp_path / "checkpoint")
    trainer, settings = trainer_of(NOW), RecipeSettings()
    for _ in range(9):
        make_step(trainer)
    before, schedule = settings_of(trainer), dict(trainer.lr_scheduler.state_dict())
    with settings.held(trainer):
        settings.load_states(trainer, str(path))
    assert settings_of(trainer) == before
    assert trainer.lr_scheduler.state_dict() == schedule
    saved = torch.load(path / "optimizer.pt")["state"][0]["exp_avg"]
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], saved)


def test_upstreams_checkpoint_of_another_optimizer_is_one_message(tmp_path: Path) -> None:
    path = checkpoint_of({**THEN, "optim": "sgd"}, tmp_path / "checkpoint", named=False)
    with pytest.raises(CheckpointError) as caught:
        resumed(path, {**THEN, "optim": "adamw_torch"})
    assert str(caught.value) == (
        f"resume_from_checkpoint: optimizer.pt of {str(path)!r} cannot be used: it is of another optimizer, without "
        "betas, eps, amsgrad; resume from an older one with resume_from_checkpoint: PATH, or start without it"
    )
    assert not resumed(path, {**THEN, "optim": "adamw_torch"}, ("optimizer",)).optimizer.state_dict()["state"]
    path = checkpoint_of({**THEN, "optim": "rmsprop"}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="without momentum, centered; "):
        resumed(path, {**THEN, "optim": "rmsprop", "optim_args": "momentum=0.9,centered=true"})


def test_a_state_of_other_shapes_is_one_message_and_not_a_crash(tmp_path: Path) -> None:
    path = checkpoint_of(THEN, tmp_path / "checkpoint")
    state = torch.load(path / "optimizer.pt")
    state["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"exp_avg is \(3,\) for a weight of \(128, 64\)"):
        resumed(path, THEN)


def test_logging_saving_patience_and_the_best_value_are_the_recipes() -> None:
    trainer = trainer_of({**THEN, "logging_steps": 2, "eval_steps": 3, "save_steps": 0.5})
    trainer.state = TrainerState(max_steps=20, logging_steps=500, eval_steps=500, save_steps=500, train_batch_size=1)
    trainer.state.best_metric, trainer.state.best_global_step = 0.5, 4
    trainer.callback_handler.callbacks = [EarlyStoppingCallback(5)]
    settings = RecipeSettings()
    settings.note_patience(trainer)
    trainer.callback_handler.callbacks = [EarlyStoppingCallback(1, 0.5)]
    settings.restore_state(trainer, 8)
    state, callback = trainer.state, trainer.callback_handler.callbacks[0]
    assert (state.logging_steps, state.eval_steps, state.save_steps, state.train_batch_size) == (2, 3, 10, 8)
    assert (callback.early_stopping_patience, callback.early_stopping_threshold) == (5, 0.0)
    assert state.best_metric == 0.5
    settings.changed = frozenset({"metric_for_best_model"})
    settings.restore_state(trainer, 8)
    assert (state.best_metric, state.best_global_step, state.best_model_checkpoint) == (None, None, None)


RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 4, save_steps: 2, logging_steps: 2}}
"""


def test_a_changed_run_logs_what_its_record_its_card_and_its_recipe_say(
    root: Path, write_recipe: Callable[..., str]
) -> None:
    recipe = write_recipe(RECIPE.format(root=root))
    run(recipe)
    section = "TrainingArguments."
    words = [f"{section}learning_rate=0.01", f"{section}max_steps=6", f"{section}logging_steps=1"]
    run(recipe, [*words, "resume_allow=[recipe]"], resume=True)
    record = json.loads(Path("out/record.json").read_text())
    rates = {entry["step"]: entry["learning_rate"] for entry in record["log_history"] if "learning_rate" in entry}
    assert (rates[2], rates[4]) == (5e-5 * 3 / 4, 5e-5 / 4)
    assert (rates[5], rates[6]) == pytest.approx((0.01 * 2 / 6, 0.01 / 6))
    assert "learning_rate was 5e-05, is 0.01 (" in "\n".join(record["notes"])
    for name in ("README.md", "recipe.yaml"):
        assert "learning_rate: 0.01" in Path("out", name).read_text()
    with pytest.raises(RecipeError) as caught:
        run(recipe, [f"{section}max_steps=8", f"{section}optim=sgd", f"{section}lr_scheduler_type=cosine"], resume=True)
    kinds = [error.message.partition(" of another ")[2].partition(":")[0] for error in caught.value.errors]
    assert kinds == ["recipe", "optimizer", "scheduler"]
    assert caught.value.errors[1].fix == (
        "resume with the recipe that wrote it, or start a new run in another output_dir, or write resume_allow: "
        "[optimizer] to start with a new optimizer"
    )


@pytest.mark.parametrize(("allowed", "refused"), [(("recipe",), True), (("recipe", "optimizer"), False)])
def test_an_optimizer_of_other_trained_weights_is_refused_or_started_anew(
    tmp_path: Path, allowed: tuple[str, ...], refused: bool
) -> None:
    """As where an adapter gets more target_modules on resumption."""

    def trainer_of(weights: int) -> Any:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2)) for _ in range(weights)], lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        args = SimpleNamespace(world_size=1, device=torch.device("cpu"))
        return SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule, args=args, state=SimpleNamespace())

    before = trainer_of(2)
    torch.save(before.optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save(before.lr_scheduler.state_dict(), tmp_path / "scheduler.pt")
    settings = RecipeSettings(allowed=allowed)
    if refused:
        with pytest.raises(CheckpointError, match=r"resume_allow: \[recipe, optimizer\] starts a new optimizer"):
            settings.load_states(trainer_of(3), str(tmp_path))
    else:
        settings.load_states(trainer_of(3), str(tmp_path))
