"""Half-precision weights and gradients with fp32 master weights: what apex called O2, on today's Trainer.

    model = prepare_model(model)                       # fp16 parameters; norms compute in fp32; heads return fp32
    parts = TrainerParts(masters=MasterWeightsStep())  # of training/overrides.py
    trainer_class(Trainer)(model=model, parts=parts, args=TrainingArguments(..., optim="adamw_torch_fused"))

One training step: the loss (fp32) is multiplied by the loss scale; backward leaves scaled fp16 gradients in the model,
summed over the accumulated micro-batches and averaged over the ranks by DDP; they move, one tensor at a time, into fp32
gradients of the masters and are divided by the scale there; the norm of those is what is clipped and logged; the inner
optimizer steps the masters; the masters are rounded into the model. If the norm is not finite on any rank, every rank
skips the step: weights, masters, optimizer state and learning rate stay as they are, the scale is halved. After 2,000
good steps in a row it doubles. These are apex's and torch.amp.GradScaler's rules and numbers.

Why not `fp16: true` with fp16 weights: torch's scaler refuses that ("Attempting to unscale FP16 gradients.",
torch/amp/grad_scaler.py), and on a CPU accelerate drops `fp16: true` silently. This code asks nothing of either,
so that it is the same on CPU, CUDA and MPS; Trainer must run with fp16=False and bf16=False.

What is saved: the fp16 weights, which are the function that was trained and evaluated (`save_pretrained`, dtype
float16); they reload to the same outputs, bit for bit, after `prepare_model`, and within fp16 rounding without it. The
masters, the inner state, the scale and the counters are in the checkpoint's optimizer.pt, from which a run resumes
exactly. An optimizer.pt written without master weights is refused.

Limits: plain processes and DDP; no LoRA, no quantized base, no sharding, no Gemma (activations above 65504). A
callback that reads `param.grad` in `on_pre_optimizer_step` finds None: the gradients are at the masters by then. As
with upstream's own scaler, a skipped step counts in `global_step`; the learning rate waits.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from hf_recipes.errors import RecipeError
from hf_recipes.models.half_precision import HEADS, prepare_model

logger = logging.getLogger(__name__)

__all__ = ["OPTIMIZERS", "LossScaling", "MasterWeights", "MasterWeightsStep", "prepare_model"]

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_bnb_8bit")  # those that the tests hold to fp32's loss


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """Dynamic loss scaling; the defaults are GradScaler's, `minimum` is ours."""

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    growth_interval: int = 2000  # good steps in a row before the scale grows
    minimum: float = 1.0  # an overflow here cannot be solved by scaling: RecipeError


# --- the optimizer ---------------------------------------------------------------------------------------------------


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over fp32 masters of fp16 parameters, with dynamic loss scaling.

    Takes a fresh optimizer over the model's fp16 parameters and puts an fp32 master in the place of each, so that the
    parameter groups (weight decay, learning rates) are the ones that upstream built. A tied parameter has one master.
    `param_groups`, `state` and `defaults` are the inner optimizer's own, for the learning rate scheduler to act upon.
    """

    def __init__(self, inner: torch.optim.Optimizer, scaling: LossScaling | None = None) -> None:
        # No super().__init__: accelerate's AcceleratedOptimizer shows the inner optimizer's attributes the same way.
        self.inner = inner
        self.scaling = scaling or LossScaling()
        self.scale = self.scaling.initial
        self.good_steps = 0  # in a row
        self.skipped_steps = 0  # since the start of the run
        self.overflowed = False  # in the last clip()
        self._unscaled = False
        self.pairs: list[tuple[nn.Parameter, nn.Parameter]] = []  # (fp16 in the model, fp32 master)
        for group in inner.param_groups:
            masters = [nn.Parameter(param.detach().float()) for param in group["params"]]
            self.pairs += zip(group["params"], masters, strict=True)
            group["params"] = masters

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise NotImplementedError("master weights are made once, of all parameters")

    @torch.no_grad()
    def clip(self, max_norm: float = math.inf) -> torch.Tensor:
        """Moves the gradients to the masters, unscales and clips them there; returns their norm before clipping.

        The norm is an fp32 scalar, inf or nan if the step overflowed (`overflowed`, equal on all ranks). Each fp16
        gradient is freed as its fp32 copy is made: the peak is 4 bytes a parameter and one tensor, not 6.
        """
        for param, master in self.pairs:
            if param.grad is not None:
                master.grad = param.grad.float().mul_(1.0 / self.scale)
                param.grad = None
        masters = [master for _, master in self.pairs if master.grad is not None]
        grads = [master.grad for master in masters if master.grad is not None]
        norm = nn.utils.get_total_norm(grads).to(self.pairs[0][0].device)
        overflow = norm.isfinite().logical_not().float()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # DDP leaves equal gradients on all ranks; this makes the decision equal by construction.
            torch.distributed.all_reduce(overflow, op=torch.distributed.ReduceOp.MAX)
        self.overflowed = bool(overflow)
        self._unscaled = True
        if not self.overflowed and max_norm < math.inf:
            nn.utils.clip_grads_with_norm_(masters, max_norm, norm)
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps the masters and rounds them into the model, or, after an overflow, changes nothing but the scale.

        Raises RecipeError if gradients overflow although the scale is down at its minimum.
        """
        if closure is not None:
            raise NotImplementedError("a closure would compute its gradients again, at another loss scale")
        if not self._unscaled:
            self.clip()
        self._unscaled = False
        if self.overflowed:
            self.zero_grad()
            self.skipped_steps += 1
            self.good_steps = 0
            if self.scale * self.scaling.backoff < self.scaling.minimum:
                raise RecipeError.at(
                    "master_weights",
                    f"gradients still overflow at loss scale {self.scale:g} ({self.skipped_steps} steps were skipped): "
                    "a value above 65504 or a NaN arises in the model itself",
                    "lower learning_rate, look at the data of these steps, or use bf16: true instead of it",
                )
            self.scale *= self.scaling.backoff
            return
        self.inner.step()
        for param, master in self.pairs:
            param.copy_(master)
        self.zero_grad()
        self.good_steps += 1
        if self.good_steps == self.scaling.growth_interval:
            self.scale *= self.scaling.growth
            self.good_steps = 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees the gradients of the model and of the masters."""
        for param, master in self.pairs:
            param.grad = master.grad = None

    @torch.no_grad()
    def follow_model(self) -> None:
        """Takes up weights that changed outside of `step`: DDP sent rank 0's, or a best checkpoint was loaded."""
        for param, master in self.pairs:
            if not torch.equal(master.to(param.dtype), param):
                master.copy_(param)

    def state_dict(self) -> dict[str, Any]:
        """Masters (fp32, in the order of the groups), inner state, scale and counters; loads with weights_only=True."""
        return {
            "masters": [master.detach() for _, master in self.pairs],
            "inner": self.inner.state_dict(),
            "loss_scale": self.scale,
            "good_steps": self.good_steps,
            "skipped_steps": self.skipped_steps,
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """The inverse of `state_dict`. Raises RecipeError if it is of an ordinary optimizer or of another model.

        The model's weights are not touched: load the checkpoint's first. (accelerate loads an optimizer's own state
        into it after DDP has sent rank 0's weights; writing them back from the masters would undo that.)
        """
        if "masters" not in state_dict:
            raise RecipeError.at(
                "master_weights",
                "the checkpoint's optimizer.pt has no master weights: it was written without master_weights",
                "resume without master_weights, or begin a new run from the checkpoint's weights",
            )
        saved = state_dict["masters"]
        if [master.shape for _, master in self.pairs] != [master.shape for master in saved]:
            raise RecipeError.at(
                "master_weights",
                f"the checkpoint's {len(saved)} master weights do not have the shapes of the model's {len(self.pairs)}",
                "resume from a checkpoint of the same model",
            )
        self.inner.load_state_dict(state_dict["inner"])
        for (_, master), value in zip(self.pairs, saved, strict=True):
            master.copy_(value)
        self.scale = float(state_dict["loss_scale"])
        self.good_steps = int(state_dict["good_steps"])
        self.skipped_steps = int(state_dict["skipped_steps"])


def _keep_embeddings_in_32_bits(model: nn.Module, optimizer: MasterWeights) -> None:
    """What Trainer.create_optimizer does for bitsandbytes by the embedding's own weight, done for its master."""
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for param, master in optimizer.pairs:
        if id(param) in embeddings:
            manager.override_config(master, "optim_bits", 32)
            # The manager knows tensors by id() for ever; without this a later tensor could inherit the override.
            weakref.finalize(master, manager.pid2config.pop, id(master), None)
    manager.register_parameters(optimizer.param_groups)


# --- the step of a trainer -------------------------------------------------------------------------------------------


class FollowModel(TrainerCallback):
    """The masters take up weights that changed between construction and training."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].optimizer.follow_model()  # accelerate's wrapper around MasterWeights


class MasterWeightsStep:
    """What a training step does with master weights: it scales the loss, and unscales and clips at the masters.

    Needs no Trainer: training/overrides.py calls it with upstream's methods. The model is of `prepare_model`, the
    arguments have fp16=False and bf16=False. Adds `loss_scale` and `skipped_steps` (both cumulative) to the training
    logs and warns of each skipped step; `loss` and `grad_norm` in the logs are the true, unscaled ones.
    """

    def __init__(self, scaling: LossScaling | None = None) -> None:
        self.scaling = scaling or LossScaling()
        self.optimizer: MasterWeights | None = None
        self._scaling_loss = False  # only within a training step: an evaluation's loss is not scaled

    def wrap(self, inner: torch.optim.Optimizer, model: nn.Module, optim: str) -> MasterWeights:
        """The optimizer with an fp32 master for each fp16 parameter. `optim`: the recipe's."""
        self.optimizer = MasterWeights(inner, self.scaling)
        if optim == "adamw_bnb_8bit":
            _keep_embeddings_in_32_bits(model, self.optimizer)
        return self.optimizer

    def refuse_given_optimizer(self) -> None:
        if self.optimizer is None:
            raise RecipeError.at(
                "master_weights", "the trainer was given its own optimizer", "name one by `optim` instead"
            )

    def around_step(self, step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Upstream's training_step: its backward is of the scaled loss, what it returns is the true loss."""

        def scaled(*args: Any) -> torch.Tensor:
            self._scaling_loss = True
            try:
                loss = step(*args)
            finally:
                self._scaling_loss = False
            assert self.optimizer is not None
            return loss / self.optimizer.scale  # exact: scales are powers of two

        return scaled

    def around_loss(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Upstream's compute_loss, scaled within a training step."""

        def scaled(model: Any, inputs: Any, return_outputs: bool, items: Any) -> Any:
            result = compute(model, inputs, return_outputs, items)
            if not self._scaling_loss:
                return result
            loss = self._scale(model, result[0] if return_outputs else result)
            return (loss, result[1]) if return_outputs else loss

        return scaled

    def _scale(self, model: Any, loss: torch.Tensor) -> torch.Tensor:
        assert self.optimizer is not None
        if loss.dtype != torch.float32:
            plain = getattr(model, "module", model)
            raise RecipeError.at(
                "master_weights",
                f"the loss of {type(plain).__name__} is {loss.dtype}: scaled by {self.optimizer.scale:g}, "
                "it or its gradient is infinite",
                "remove master_weights and set bf16: true (a head is made to return float32 if it is called "
                f"{', '.join(HEADS)})",
            )
        return loss * self.optimizer.scale

    def clip(self, max_norm: float, optimizer: Any, *, step: int, report: bool) -> torch.Tensor:
        """The unscaled gradient's norm before clipping. Once a step, after the last backward, before optimizer.step().

        `optimizer`: accelerate's wrapper; it must know of a skipped step. `report`: on rank 0.
        """
        masters = self.optimizer
        assert masters is not None
        norm = masters.clip(max_norm)
        # What accelerator.optimizer_step_was_skipped reads, by which Trainer holds the learning rate back.
        optimizer._is_overflow = masters.overflowed
        if masters.overflowed and report:
            logger.warning(
                "step %d is skipped: fp16 gradients overflowed at loss scale %g, which becomes %g",
                step,
                masters.scale,
                masters.scale * masters.scaling.backoff,
            )
        return norm

    def logs(self) -> dict[str, float]:
        if self.optimizer is None:
            return {}
        return {"loss_scale": self.optimizer.scale, "skipped_steps": self.optimizer.skipped_steps}


def check_master_weights(model: nn.Module, optim: Any, mixed_precision: str, *, sharded: bool) -> None:
    """Raises RecipeError for what cannot have master weights: an optimizer, accelerate's casting, sharding, a dtype."""
    if optim not in OPTIMIZERS:
        raise RecipeError.at(
            "master_weights",
            f"optim: {getattr(optim, 'value', optim)} is not known to work on master weights",
            f"use one of {', '.join(OPTIMIZERS)}",
        )
    if mixed_precision != "no":
        raise RecipeError.at(
            "master_weights",
            f"accelerate's mixed_precision is {mixed_precision!r}, which casts a second time",
            "master_weights needs fp16: false and bf16: false in the recipe and 'no' in the accelerate file",
        )
    if sharded:
        raise RecipeError.at(
            "master_weights",
            "the parameters are sharded, and master weights are made of complete ones",
            "launch plain DDP, or take out master_weights: FSDP and DeepSpeed keep fp32 masters of their own",
        )
    for name, param in model.named_parameters():
        if param.requires_grad and param.dtype != torch.float16:
            raise RecipeError.at(
                "master_weights",
                f"{name} is {param.dtype}, not torch.float16",
                "call prepare_model(model) before the trainer is built",
            )
