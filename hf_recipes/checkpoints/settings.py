"""The recipe's settings, where a checkpoint would bring its own back.

Upstream loads optimizer.pt, scheduler.pt and trainer_state.json over what the recipe asks for: the learning rate, the
weight decay, the schedule, the logging steps of the run that wrote them. Here the states (moments, counters, the best
metric) are the checkpoint's, and the settings are the recipe's, from the first resumed step. Where no setting changed,
nothing is done.

`RecipeSettings` needs no Trainer: training/overrides.py calls it, and a test gives it any object with the members of
`SettingsTrainer`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, TrainerState

from hf_recipes.checkpoints import compatibility, manifest, sharded
from hf_recipes.checkpoints.folders import OPTIMIZER_SHARDS, TRAINER_STATE
from hf_recipes.common.text import first_line
from hf_recipes.errors import CheckpointError, RecipeError

OPTIMIZER, SCHEDULER, SCALER = "optimizer.pt", "scheduler.pt", "scaler.pt"
OF_A_PARAMETERS_SHAPE = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "state1",
)
NEED_STATE = ("centered", "momentum")  # of RMSprop: at their first step it makes what they need, and never later
# Of schedules that follow a metric: what their arguments set, and not what they count.
OF_METRIC_SCHEDULES = (
    *("mode", "mode_worse", "factor", "patience", "threshold", "threshold_mode", "cooldown", "eps", "min_lrs"),
    *("default_min_lr", "max_lrs", "warmup", "smooth", "window_size", "reset_start_original", "verbose", "_init_lrs"),
)
BEST_METRIC = ("metric_for_best_model", "greater_is_better")


class SettingsTrainer(Protocol):
    """What `RecipeSettings` reads and sets of a trainer."""

    args: Any
    state: Any
    callback_handler: Any
    optimizer: Any
    lr_scheduler: Any


class RecipeSettings:
    """The recipe's settings in one call of train(). `location`: of resume_from_checkpoint in the recipe. `allowed`: its
    resume_allow."""

    def __init__(self, *, location: str = "resume_from_checkpoint", allowed: Sequence[str] = ()) -> None:
        self.location, self.allowed = location, tuple(allowed)
        self.then: Mapping[str, Any] = {}  # the arguments of the run that wrote the checkpoint
        self.changed: frozenset[str] | None = frozenset()  # keys without their section; None: not known
        self.other_processes = False  # another number of them wrote the checkpoint
        self._patience: dict[type, tuple[Any, Any]] = {}

    def begin_training(self, checkpoint: str | None, now: Mapping[str, Any], processes: int = 1) -> None:
        """`now`: `compatibility.describe_recipe` of this run."""
        self.changed, self.then, self.other_processes = frozenset(), {}, False
        if checkpoint is None:
            return
        body = manifest.read_manifest(Path(checkpoint))
        if body is None or not now:
            self.changed = None
            return
        self.then = body.get("recipe", {}).get("arguments") or {}
        self.other_processes = body.get("world_size", processes) != processes
        found = compatibility.compare_recipes(body["recipe"], now) if self.then else []
        self.changed = frozenset(one.key.rpartition(".")[2] for one in found)

    def has_changed(self, *keys: str) -> bool:
        """Whether one of these is known to be another than the checkpoint's."""
        return any(key in (self.changed or ()) for key in keys)

    # --- the optimizer and the schedule ------------------------------------------------------------------------------

    def load_states(self, trainer: SettingsTrainer, checkpoint: str) -> None:
        """As upstream's _load_optimizer_and_scheduler, of any launch but DeepSpeed's. Raises CheckpointError."""
        folder = Path(checkpoint)
        has_optimizer = (folder / OPTIMIZER).is_file() or (folder / OPTIMIZER_SHARDS).is_dir()
        if not has_optimizer or not (folder / SCHEDULER).is_file():
            return  # weights alone (resume_allow: [state])
        with self.kept(trainer):
            if not ("optimizer" in self.allowed and self.has_changed(*compatibility.OPTIMIZER_KEYS)):
                self._load_optimizer(trainer, folder)
            if not ("scheduler" in self.allowed and self.has_changed(*compatibility.SCHEDULER_KEYS)):
                self._load(folder / SCHEDULER, trainer.lr_scheduler.load_state_dict)

    def check_trainer_state(self, checkpoint: str | None) -> None:
        """Whether upstream can read trainer_state.json. Raises CheckpointError."""
        path = os.path.join(checkpoint or "", TRAINER_STATE)
        if checkpoint is not None and os.path.isfile(path):
            with self.naming_checkpoint(checkpoint, TRAINER_STATE):
                TrainerState.load_from_json(path)

    def load_scaler(self, scaler: Any, checkpoint: str) -> None:
        """The loss scale; a checkpoint of a run without loss scaling has none. Raises CheckpointError."""
        path = Path(checkpoint) / SCALER
        if path.is_file():
            self._load(path, scaler.load_state_dict)

    @contextmanager
    def kept(self, trainer: SettingsTrainer) -> Iterator[None]:
        """While states are loaded: the settings that changed are the recipe's afterwards."""
        given = {key: copy(value) for key, value in vars(trainer.lr_scheduler).items()}
        fresh = FreshSettings(groups=_settings_of(trainer.optimizer), schedule=given)
        yield
        if self.changed is None or self.changed:
            for group, own in zip(trainer.optimizer.param_groups, fresh.groups, strict=True):
                group.update({key: value for key, value in own.items() if key != "lr"})
            self._set_rates(trainer, fresh)

    @contextmanager
    def held(self, trainer: SettingsTrainer) -> Iterator[None]:
        """While a run rolls back to a checkpoint's states: settings, rates and schedule stay as they are."""
        groups, schedule = _settings_of(trainer.optimizer), trainer.lr_scheduler.state_dict()
        yield
        trainer.lr_scheduler.load_state_dict(schedule)
        for group, own in zip(trainer.optimizer.param_groups, groups, strict=True):
            group.update(own)

    def _set_rates(self, trainer: SettingsTrainer, fresh: FreshSettings) -> None:
        """At the step that the checkpoint has: what the recipe's schedule has there."""
        scheduler = trainer.lr_scheduler
        afresh = self.has_changed(*compatibility.SCHEDULER_KEYS)
        if isinstance(scheduler, LambdaLR):
            at = trainer.state.global_step if afresh else scheduler.last_epoch
            rates = _continue_schedule(scheduler, fresh, at=at)
        elif afresh:
            rates = fresh.rates
        elif hasattr(scheduler, "patience"):
            before = self.then.get("learning_rate")
            factor = trainer.args.learning_rate / before if before and self.has_changed("learning_rate") else 1.0
            best = self.has_changed(*BEST_METRIC)
            rates = _continue_metric_schedule(scheduler, fresh, factor=factor, afresh=best)
        else:
            return
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    def _load_optimizer(self, trainer: SettingsTrainer, folder: Path) -> None:
        """Of whichever launch: a process takes its part of what one process or several have written."""
        fresh = _settings_of(trainer.optimizer)
        params = [param for group in trainer.optimizer.param_groups for param in group["params"]]

        def take(state: Any) -> None:
            if _trains_other_weights(trainer.optimizer, state):  # of an adapter on other modules, for one
                if "optimizer" in self.allowed:
                    return
                more = compatibility.format_allowed(self.allowed, "optimizer")
                raise ValueError(f"it is of other trained weights ({more} starts a new optimizer)")
            lacks = _find_missing(fresh, state) if self.changed is None or self.changed else []
            if not lacks:
                trainer.optimizer.load_state_dict(state)
                _refuse_other_shapes(_innermost(trainer.optimizer))
            elif "optimizer" not in self.allowed:
                raise ValueError(f"it is of another optimizer, without {', '.join(lacks)}")

        if (folder / OPTIMIZER_SHARDS).is_dir():
            with self.naming_checkpoint(str(folder), OPTIMIZER_SHARDS):
                take(sharded.read_optimizer(folder, params))
        elif any(isinstance(param, DTensor) for param in params):
            complete = folder / OPTIMIZER
            self._load(complete, lambda state: take(sharded.spread_optimizer(state, params)), mmap=True)
        else:  # as upstream: one GPU loads through the CPU, several each onto their own
            several = trainer.args.world_size > 1 and trainer.args.device.type != "cpu"
            self._load(folder / OPTIMIZER, take, map_location=trainer.args.device if several else "cpu")

    def _load(self, path: Path, take: Callable[[Any], Any], **arguments: Any) -> None:
        """Raises CheckpointError for a file that is not what `take` needs; code in it is not run."""
        with self.naming_checkpoint(str(path.parent), path.name):
            take(torch.load(path, weights_only=True, **arguments))

    @contextmanager
    def naming_checkpoint(self, checkpoint: Any, part: str) -> Iterator[None]:
        """What goes wrong with a checkpoint's part, as one message with its name; without a checkpoint as it is."""
        try:
            yield
        except (RecipeError, torch.OutOfMemoryError):
            raise
        except Exception as problem:
            if not isinstance(checkpoint, str):
                raise
            what = f"{part} of {checkpoint!r} cannot be used: {_in_short(problem)}"
            fix = "resume from an older one with resume_from_checkpoint: PATH, or start without it"
            raise CheckpointError.at(self.location, what, fix) from problem

    # --- what trainer_state.json brings back -------------------------------------------------------------------------

    def note_patience(self, trainer: SettingsTrainer) -> None:
        """Before the state is loaded: upstream makes new callbacks with the arguments that the checkpoint has."""
        self._patience = {
            type(one): (one.early_stopping_patience, one.early_stopping_threshold)
            for one in trainer.callback_handler.callbacks
            if isinstance(one, EarlyStoppingCallback)
        }

    def restore_state(self, trainer: SettingsTrainer, batch_size: int) -> None:
        """After it: logging, evaluation and saving are as often as the recipe says, patience is its own, and a best
        value of another metric is no best value."""
        state = trainer.state
        state.compute_steps(trainer.args, state.max_steps)
        state.train_batch_size = batch_size
        for one in trainer.callback_handler.callbacks:
            if type(one) in self._patience:
                one.early_stopping_patience, one.early_stopping_threshold = self._patience[type(one)]
        if self.has_changed(*BEST_METRIC):
            state.best_metric = state.best_model_checkpoint = state.best_global_step = None
            for one in trainer.callback_handler.callbacks:
                if isinstance(one, EarlyStoppingCallback):
                    one.early_stopping_patience_counter = 0


@dataclass(frozen=True, kw_only=True)
class FreshSettings:
    """What a new optimizer and a new schedule were given by the recipe."""

    groups: list[dict[str, Any]]
    schedule: dict[str, Any]

    @property
    def rates(self) -> list[Any]:
        return [group["lr"] for group in self.groups]


def _continue_schedule(scheduler: LambdaLR, fresh: FreshSettings, *, at: int) -> list[Any]:
    """The rates that the recipe's schedule has at a step."""
    scheduler.last_epoch, scheduler.base_lrs = at, fresh.schedule["base_lrs"]
    return [base * factor(at) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]


def _continue_metric_schedule(scheduler: Any, fresh: FreshSettings, *, factor: float, afresh: bool) -> list[Any]:
    """The rates of a schedule that follows a metric: how often it has moved them stays, its arguments are the recipe's.
    `factor`: of the recipe's rate to the checkpoint's. `afresh`: what it counted was another metric's."""
    before, given = vars(scheduler).copy(), fresh.schedule
    for name in OF_METRIC_SCHEDULES:
        if name in given:
            setattr(scheduler, name, given[name])
    if afresh or scheduler.mode != before["mode"]:
        scheduler.best, scheduler.num_bad_epochs = given["best"], 0
    if any(before.get(name) != given.get(name) for name in ("smooth", "window_size")):
        scheduler._streaming_avg = given["_streaming_avg"]
    rates = zip(before["_last_lr"], scheduler.min_lrs, strict=True)
    return [max(rate * factor, least) for rate, least in rates] if factor != 1.0 else list(before["_last_lr"])


def _innermost(optimizer: Any) -> Any:
    """Under accelerate's wrapper and master_weights'."""
    for name in ("optimizer", "inner"):
        optimizer = getattr(optimizer, name, optimizer)
    return optimizer


def _settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """Of each group: what the optimizer's constructor takes, and the rate that a schedule begins at. (Some optimizers
    keep counters there, too.)"""
    names = {*inspect.signature(type(_innermost(optimizer)).__init__).parameters, "initial_lr"} - {"params"}
    return [{key: copy(value) for key, value in group.items() if key in names} for group in optimizer.param_groups]


def _refuse_other_shapes(optimizer: Any) -> None:
    """A fused kernel would read behind the end of a state that is too small. Raises ValueError."""
    for param, state in optimizer.state.items():
        for name in OF_A_PARAMETERS_SHAPE:
            own = state.get(name) if isinstance(state, dict) else None
            if torch.is_tensor(own) and torch.is_tensor(param) and own.shape != param.shape:
                raise ValueError(f"{name} is {tuple(own.shape)} for a weight of {tuple(param.shape)}")


def _trains_other_weights(optimizer: Any, state: Any) -> bool:
    """Whether a state has another number of parameters in its groups."""
    saved = state.get("inner", state)["param_groups"]
    return [len(one["params"]) for one in saved] != [len(one["params"]) for one in optimizer.param_groups]


def _find_missing(fresh: list[dict[str, Any]], state: Any) -> list[str]:
    """Settings of the optimizer of which a state has nothing: it is another one's."""
    saved = state.get("inner", state)["param_groups"]
    chosen_by_device = ("initial_lr", "fused", "foreach", "capturable")
    found = [
        key
        for own, group in zip(fresh, saved, strict=False)  # torch finds another number of groups
        for key, value in own.items()
        if (key not in group and key not in chosen_by_device)
        or (key in NEED_STATE and "alpha" in own and value and not group.get(key))
    ]
    return list(dict.fromkeys(found))


def _in_short(problem: Exception) -> str:
    if "weights_only" in str(problem) or "Weights only" in str(problem):
        return "it holds something else than tensors and numbers, which is not loaded"
    if isinstance(problem, KeyError | AttributeError):
        return f"it is no state of this kind ({type(problem).__name__}: {first_line(problem)})"
    return first_line(problem)
