"""Changes that may make a recipe fit, with what each costs and a guess of what it leaves. Traces nothing; imports
neither torch nor transformers.

Tiers: the same result, more time, slightly other rounding, another result; then two and three combined.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.plan.fit.verdict import MARGIN, Fit
from hf_recipes.recipe.global_batch import accumulation_of
from hf_recipes.recipe.schema.installed import checkpointing_key

BATCH = frozenset({"batch"})
RECOMPUTED = 0.4  # of the bytes that are no weights or states: a guess of what checkpointing leaves
QUANTIZED = 0.35  # of 16-bit weights: nf4, with embeddings and norms that stay


@dataclass(frozen=True, kw_only=True)
class Option:
    """A change that may fit. `cost` is completed by what the trace counts."""

    values: Mapping[str, Any]
    what: str
    cost: str
    least_bytes: float = 0.0  # bytes that no batch changes: no trace is spent on what cannot fit
    fixed: float = 0.0  # bytes of weights, gradients and optimizer, as far as they are known without a trace
    variable: float = 1.0  # of the recipe's other bytes: what may fit by this guess is traced first
    kinds: frozenset[str] = frozenset()  # what it changes; combined with more it is left out where it fits alone


def single_changes(fit: Fit, probe: Fit | None) -> Iterator[Option]:
    yield from _same_result(fit, probe)
    yield from more_time(fit)
    yield from _other_rounding(fit)
    yield from _other_result(fit)


def combined_changes(fit: Fit, probe: Fit | None) -> Iterator[Option]:
    """The smallest batch with one, then two, of the later tiers; last with an adapter on quantized weights."""
    small = next(iter(batches(fit, (1,), probe)), None)
    base = [small] if small is not None else []
    time_ = list(more_time(fit))
    rounding = list(_other_rounding(fit))
    other = list(_other_result(fit))
    for more in (time_, rounding, other):
        for option in more:
            yield _combine([*base, option])
    for second in (*rounding, *other):
        yield _combine([*base, *time_, second])
    for second in rounding:
        for third in other:
            yield _combine([*base, *time_, second, third])
    for second, third in itertools.combinations(other, 2):
        if second.kinds != third.kinds:
            yield _combine([*base, *time_, second, third])


def _same_result(fit: Fit, probe: Fit | None) -> Iterator[Option]:
    recipe, section, trace = fit.recipe, fit.recipe.trainer, fit.trace
    training_peak = max((size for phase, size in trace.phases.items() if phase != "evaluation"), default=0)
    if trace.phases.get("evaluation", 0) >= training_peak and trace.eval_batch > 1:
        for rows in (trace.micro_batch, 1):
            if rows < trace.eval_batch:
                yield Option(
                    values={f"{section}.per_device_eval_batch_size": rows},
                    what=f"evaluate {_rows(rows)} at a time",
                    cost="nothing in the result: an evaluation takes a little longer",
                    least_bytes=fixed_bytes(fit),
                    kinds=frozenset({"evaluation"}),
                )
    if recipe.get("model.attn_implementation") == "eager":
        yield Option(
            values={"model.attn_implementation": "sdpa"},
            what="attention by sdpa instead of eager",
            cost="nothing: the same attention without its matrix of scores",
            least_bytes=fixed_bytes(fit),
            kinds=frozenset({"attention"}),
        )
    yield from batches(fit, _guess_batches(fit, probe), probe)


def batches(fit: Fit, sizes: tuple[int, ...], probe: Fit | None = None) -> Iterator[Option]:
    """Smaller micro-batches at the recipe's effective batch; evaluation's goes along where it is larger."""
    recipe, section = fit.recipe, fit.recipe.trainer
    rows, accumulation = fit.trace.micro_batch, accumulation_of(recipe)
    for size in sizes:
        if size >= rows or (rows * accumulation) % size:
            continue
        values: dict[str, Any] = {
            f"{section}.per_device_train_batch_size": size,
            f"{section}.gradient_accumulation_steps": rows * accumulation // size,
        }
        if fit.trace.eval_batch > size:
            values[f"{section}.per_device_eval_batch_size"] = size
        what = f"{_rows(size)} a device with {rows * accumulation // size} accumulation steps"
        cost = f"nothing in the result: the effective batch stays {rows * accumulation}"
        fixed, variable = fixed_bytes(fit), _variable_share(size, fit, probe)
        yield Option(
            values=values, what=what, cost=cost, least_bytes=fixed, fixed=fixed, variable=variable, kinds=BATCH
        )


def _variable_share(size: int, fit: Fit, probe: Fit | None) -> float:
    """What a smaller batch leaves of the bytes that are no weights or states: affine in the rows, by the probe."""
    variable_bytes, rows = fit.trace.allocated - fixed_bytes(fit), fit.trace.micro_batch
    if probe is None or variable_bytes <= 0 or rows <= 1:
        return size / rows
    one = max(0.0, probe.trace.allocated - fixed_bytes(probe))
    return min(1.0, (one + (size - 1) * (variable_bytes - one) / (rows - 1)) / variable_bytes)


def _guess_batches(fit: Fit, probe: Fit | None) -> tuple[int, ...]:
    """Micro-batches to try, the largest first: allocated memory is affine in the batch inside one regime."""
    rows = fit.trace.micro_batch * accumulation_of(fit.recipe)
    divisors = [size for size in range(fit.trace.micro_batch - 1, 0, -1) if rows % size == 0]
    divisors = [size for size in divisors if size & (size - 1) == 0] or divisors
    if probe is None or not divisors:
        return ()
    a_row = (fit.reserved.peak - probe.reserved.peak) / max(1, fit.trace.micro_batch - 1)
    room = fit.usable / MARGIN - probe.reserved.peak
    if room < 0:
        return ()
    reach = 1 + (room / a_row if a_row > 0 else math.inf)
    fitting = [size for size in divisors if size <= reach * 1.02]
    return tuple(fitting[:2])


def more_time(fit: Fit) -> Iterator[Option]:
    recipe, section = fit.recipe, fit.recipe.trainer
    key = checkpointing_key(section)
    on = recipe.training.get("activation_checkpointing", recipe.training.get("gradient_checkpointing"))
    if on is None and section == "SFTConfig":
        return  # its default is on
    if not on:
        values = {f"{section}.{key}": True}
        least = fixed_bytes(fit)
        yield Option(
            values=values,
            what="activation checkpointing",
            cost="time: {flops}",
            least_bytes=least,
            fixed=least,
            variable=RECOMPUTED,
            kinds=frozenset({"checkpointing"}),
        )


def _other_rounding(fit: Fit) -> Iterator[Option]:
    recipe, gpu = fit.recipe, fit.gpu
    section, training = recipe.trainer, recipe.training
    full = "LoraConfig" not in recipe.sections
    if not training.get("bf16") and not training.get("fp16") and section != "SFTConfig":
        key = "bf16" if gpu.bf16 else "fp16"
        values = {f"{section}.{key}": True}
        cost = f"{key}'s rounding in products"
        kinds = frozenset({"autocast"})
        yield Option(values=values, what=f"{key} autocast", cost=cost, least_bytes=fixed_bytes(fit), kinds=kinds)
    optim = str(training.get("optim", "adamw_torch_fused"))
    if full and "8bit" not in optim and "bnb" not in optim and optim.startswith("adamw"):
        for name in ("adamw_bnb_8bit", "paged_adamw_8bit"):
            cost = "the rounding of 8-bit states" + (
                ", and copies to the host when the GPU is full" * ("paged" in name)
            )
            least = fixed_bytes(fit, optimizer=0.0 if name.startswith("paged") else 0.25)
            named = {f"{section}.optim": name}
            kinds = frozenset({"optim"})
            yield Option(values=named, what=f"optim: {name}", cost=cost, least_bytes=least, fixed=least, kinds=kinds)
    dtype = recipe.get("model.dtype", "float32")
    if dtype in ("float32", "auto") and gpu.bf16 and not recipe.get("master_weights"):
        least = fixed_bytes(fit, optimizer=0.5, gradients=0.5, weights=0.5)
        cost = "bf16's rounding of the frozen weights" if not full else "bf16's rounding of weights and updates: risky"
        yield Option(
            values={"model.dtype": "bfloat16"},
            what="weights in bfloat16",
            cost=cost,
            least_bytes=least,
            fixed=least,
            kinds=frozenset({"dtype"}),
        )


def _other_result(fit: Fit) -> Iterator[Option]:
    """Another result: shorter rows, an adapter, an adapter on quantised weights."""
    recipe = fit.recipe
    dotted = recipe.max_length_key
    for share in (0.75, 0.5, 0.25):
        shorter = max(64, int(fit.trace.length * share) // 64 * 64)
        if shorter < fit.trace.length:
            cost = f"what stands behind token {shorter}"
            what = f"rows of {shorter} tokens"
            fixed, variable = fixed_bytes(fit), shorter / fit.trace.length
            yield Option(
                values={dotted: shorter},
                what=what,
                cost=cost,
                least_bytes=fixed,
                fixed=fixed,
                variable=variable,
                kinds=frozenset({"length"}),
            )
    adapter = {"LoraConfig.r": 16, "LoraConfig.lora_alpha": 32, "LoraConfig.target_modules": "all-linear"}
    if "LoraConfig" not in recipe.sections and not recipe.get("master_weights"):
        if "pretrained_model_name_or_path" in recipe.section("model"):
            least = fixed_bytes(fit, optimizer=0.0, gradients=0.0)
            cost = "another result: {trainable}"
            what = "LoRA instead of training all weights"
            kinds = frozenset({"adapter"})
            yield Option(values=adapter, what=what, cost=cost, least_bytes=least, fixed=least, kinds=kinds)
        adapter_values, trained = adapter, 0.0
    else:
        adapter_values, trained = {}, 1.0
    if not recipe.section("BitsAndBytesConfig") and "pretrained_model_name_or_path" in recipe.section("model"):
        compute = "bfloat16" if fit.gpu.bf16 else "float16"
        quantised = {
            "BitsAndBytesConfig.load_in_4bit": True,
            "BitsAndBytesConfig.bnb_4bit_quant_type": "nf4",
            "BitsAndBytesConfig.bnb_4bit_use_double_quant": True,
            "BitsAndBytesConfig.bnb_4bit_compute_dtype": compute,
        }
        cost = "another result: frozen weights of 4 bits, {trainable}"
        fixed = fixed_bytes(fit, optimizer=trained, gradients=trained, weights=QUANTIZED)
        kinds = frozenset({"adapter"})
        yield Option(values={**adapter_values, **quantised}, what="QLoRA", cost=cost, fixed=fixed, kinds=kinds)


# helpers ------------------------------------------------------------------------------------------------------------


def _combine(options: list[Option]) -> Option:
    values = {name: value for option in options for name, value in option.values.items()}
    cost = "; ".join(dict.fromkeys(option.cost for option in options if not option.cost.startswith("nothing")))
    what = " + ".join(option.what for option in options)
    least = min(option.least_bytes for option in options)  # each may take away what another leaves
    fixed, variable = min(option.fixed for option in options), math.prod(option.variable for option in options)
    kinds = frozenset().union(*(option.kinds for option in options))
    cost = cost or options[0].cost
    return Option(values=values, what=what, cost=cost, least_bytes=least, fixed=fixed, variable=variable, kinds=kinds)


def fixed_bytes(fit: Fit, *, optimizer: float = 1.0, gradients: float = 1.0, weights: float = 1.0) -> float:
    """Bytes of weights, gradients and optimizer, each changed by a factor."""
    parts = fit.trace.parts
    return (
        weights * parts.get("weights", 0)
        + gradients * parts.get("gradients", 0)
        + optimizer * parts.get("optimizer", 0)
    )


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"
