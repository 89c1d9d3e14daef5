"""Optimizers of packages that plan need not have: their states by the shapes that their own code makes, and no less
than what they take beside them. The answer is an upper bound, and says so.

Read in galore-torch 1.0, apollo-torch 1.0.3, lomo-optim 0.1.1, grokadamw 0.1.2, torch-optimi 0.3.3, schedulefree 1.4.1
and torchao 0.18.0; benchmarks/optimizer_states.py compares with what the packages' own code holds on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_recipes.plan.trace.field_effects import LAYERWISE

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

Form = tuple[tuple[int, ...], torch.dtype]
FP32, BYTE = torch.float32, torch.uint8
SMALLEST_QUANTISED = 4096  # torchao's _new_buffer, after bitsandbytes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the states: `rank` of a low-rank projection, `block` of values with one scale; on a CPU?"""

    rank: int
    block: int
    cpu: bool


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`states` of a weight, `low_rank`: of one that is projected; `passing`: how many fp32 copies of a weight live at
    once while it is updated (of all weights together where `together`); `in_backward`: each gradient is used and given
    back as it is made."""

    states: Callable[[nn.Parameter, Options], list[Form]]
    passing: int
    low_rank: Callable[[nn.Parameter, Options], list[Form]] | None = None
    in_backward: bool = False
    together: bool = False


def adam(weight: nn.Parameter, options: Options) -> list[Form]:
    """exp_avg and exp_avg_sq, of the weight's dtype."""
    return [(tuple(weight.shape), weight.dtype)] * 2


def galore_adam(weight: nn.Parameter, options: Options) -> list[Form]:
    """galore_torch/adamw.py: both averages of the projected gradient, and the projection."""
    return [(_projected(weight, options), weight.dtype)] * 2 + [(_projection(weight, options), weight.dtype)]


def adafactor(weight: nn.Parameter, options: Options) -> list[Form]:
    """galore_torch/adafactor.py: the squares' means of rows and columns; of a vector, all of them."""
    return _factored(tuple(weight.shape), weight.dtype)


def galore_adafactor(weight: nn.Parameter, options: Options) -> list[Form]:
    return [*_factored(_projected(weight, options), weight.dtype), (_projection(weight, options), weight.dtype)]


def adam_8bit(weight: nn.Parameter, options: Options) -> list[Form]:
    """bitsandbytes: bytes with a scale for each 256 of them; small weights in fp32. Its two maps are shared."""
    return _bnb(tuple(weight.shape))


def galore_adam_8bit(weight: nn.Parameter, options: Options) -> list[Form]:
    return [*_bnb(_projected(weight, options)), (_projection(weight, options), weight.dtype)]


def adalomo(weight: nn.Parameter, options: Options) -> list[Form]:
    """lomo_optim/adalomo.py: the squares' means of rows and columns, in fp32."""
    return _factored(tuple(weight.shape), FP32)


def nothing(weight: nn.Parameter, options: Options) -> list[Form]:
    return []


def grokadamw(weight: nn.Parameter, options: Options) -> list[Form]:
    """grokadamw.py, _update_group: three states, which stay on the CPU between steps."""
    return [(tuple(weight.shape), weight.dtype)] * 3 if options.cpu else []


def stable_adamw(weight: nn.Parameter, options: Options) -> list[Form]:
    """optimi: Adam's two, and Kahan's compensation of a weight in half precision."""
    return [(tuple(weight.shape), weight.dtype)] * (2 if weight.dtype == FP32 else 3)


def one(weight: nn.Parameter, options: Options) -> list[Form]:
    """schedulefree: z, the sequence that the gradients change."""
    return [(tuple(weight.shape), weight.dtype)]


def torchao_8bit(weight: nn.Parameter, options: Options) -> list[Form]:
    return _torchao(weight, options, codes=1, values=256)


def torchao_4bit(weight: nn.Parameter, options: Options) -> list[Form]:
    return _torchao(weight, options, codes=2, values=16)


# A projection's singular value decomposition: the gradient in fp32, cuSOLVER's copy of it, both sides, their product.
DECOMPOSED = 6
RULES: dict[str, Rule] = {
    "galore_adamw": Rule(states=adam, low_rank=galore_adam, passing=DECOMPOSED),
    "galore_adamw_8bit": Rule(states=adam_8bit, low_rank=galore_adam_8bit, passing=DECOMPOSED),
    "galore_adafactor": Rule(states=adafactor, low_rank=galore_adafactor, passing=DECOMPOSED),
    # its update, what limits its growth, the norms' quotient, the product with the rate
    "apollo_adamw": Rule(states=adam, low_rank=galore_adam, passing=5),
    "lomo": Rule(states=nothing, passing=3, in_backward=True),
    # the gradient and the weight in fp32, the squares, what rows and columns make of them, the update
    "adalomo": Rule(states=adalomo, passing=5, in_backward=True),
    "grokadamw": Rule(states=grokadamw, passing=9),  # three states of this weight and of the one before, three results
    "schedule_free_adamw": Rule(states=adam, passing=2, together=True),
    "schedule_free_radam": Rule(states=adam, passing=2, together=True),
    "schedule_free_sgd": Rule(states=one, passing=2, together=True),
    "stable_adamw": Rule(states=stable_adamw, passing=1, together=True),
    "adamw_torch_8bit": Rule(states=torchao_8bit, passing=6),
    "adamw_torch_4bit": Rule(states=torchao_4bit, passing=6),
}


def rule_of(optim: str) -> Rule | None:
    """None for optimizers whose own code is traced."""
    rule = RULES.get(optim.removesuffix(LAYERWISE))
    if rule is None or not optim.endswith(LAYERWISE):
        return rule
    return Rule(states=rule.states, low_rank=rule.low_rank, passing=rule.passing, in_backward=True)


class StandIn(torch.optim.Optimizer):
    """An optimizer that only allocates: `low` are the weights that are projected to a low rank."""

    def __init__(self, weights: list[nn.Parameter], low: set[int], rule: Rule, options: Options) -> None:
        super().__init__([{"params": weights}], {"lr": 0.0, "weight_decay": 0.0})
        self.low, self.rule, self.options = low, rule, options
        if rule.in_backward:
            for weight in weights:
                weight.register_post_accumulate_grad_hook(self.update)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.rule.in_backward:
            return
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        for some in [weights] if self.rule.together else [[weight] for weight in weights]:
            self._allocate(some)

    @torch.no_grad()
    def update(self, weight: torch.Tensor) -> None:
        """Of one weight in the backward pass."""
        self._allocate([weight])
        weight.grad = None

    def _allocate(self, weights: list[Any]) -> None:
        """The states of the weights, which stay, and what lives while they are updated."""
        for weight in weights:
            self._keep(weight)
        count = self.rule.passing
        passing = [torch.empty_like(weight, dtype=FP32) for weight in weights for _ in range(count)]
        del passing

    def _keep(self, weight: Any) -> None:
        if self.state[weight]:
            return
        states = self.rule.low_rank if id(weight) in self.low and self.rule.low_rank else self.rule.states
        for number, (shape, dtype) in enumerate(states(weight, self.options)):
            self.state[weight][f"state_{number}"] = torch.zeros(shape, dtype=dtype, device=weight.device)


def stand_in_optimizer(recipe: Recipe, model: Any, cpu: bool) -> StandIn | None:
    """The optimizer that Trainer gets instead of making the recipe's; None where it makes its own."""
    rule = rule_of(str(recipe.training.get("optim", "")))
    if rule is None:
        return None
    values = _arguments(recipe.training.get("optim_args"))
    options = Options(rank=int(values.get("rank", 128)), block=int(values.get("block_size", 256)), cpu=cpu)
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    chosen = _target_names(model, recipe.training.get("optim_target_modules")) if rule.low_rank else set()
    low = {id(weight) for name, weight in named if name in chosen}
    return StandIn([weight for _, weight in named], low, rule, options)


def _target_names(model: Any, targets: Any) -> set[str]:
    """As Trainer's _setup_low_rank_optimizer finds them: weights of linear layers. None at all is its error."""
    from transformers.trainer_utils import check_target_module_exists

    if targets is None:
        return set()
    every = isinstance(targets, str) and targets.replace("_", "-") == "all-linear"
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and (every or check_target_module_exists(targets, name))
    }


def _arguments(given: Any) -> dict[str, str]:
    """optim_args: "rank=64, scale=0.1"."""
    pairs = (part.partition("=") for part in str(given or "").replace(" ", "").split(",") if part)
    return {name: value for name, _, value in pairs}


def _projected(weight: nn.Parameter, options: Options) -> tuple[int, ...]:
    """GaLoreProjector.project, proj_type std: the shorter side becomes the rank."""
    rows, columns = weight.shape
    rank = min(options.rank, rows, columns)
    return (rows, rank) if rows >= columns else (rank, columns)


def _projection(weight: nn.Parameter, options: Options) -> tuple[int, ...]:
    return (min(options.rank, *weight.shape), min(weight.shape))


def _factored(shape: tuple[int, ...], dtype: torch.dtype) -> list[Form]:
    return [((shape[0],), dtype), ((shape[1],), dtype)] if len(shape) > 1 else [(shape, dtype)]


def _bnb(shape: tuple[int, ...]) -> list[Form]:
    size = _size(shape)
    if size < SMALLEST_QUANTISED:
        return [(shape, FP32)] * 2
    return [((size,), BYTE), ((-(-size // 256),), FP32)] * 2


def _torchao(weight: nn.Parameter, options: Options, *, codes: int, values: int) -> list[Form]:
    """torchao/optim/adam.py, _new_buffer: so many codes a byte, a scale a block, a map of so many values; of each of
    Adam's two."""
    size = weight.numel()
    if size < SMALLEST_QUANTISED or size % options.block:
        return adam(weight, options)
    return [((size // codes,), BYTE), ((size // options.block,), FP32), ((values,), FP32)] * 2


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size
