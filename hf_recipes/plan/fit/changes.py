"""Changes that may make a recipe fit, with what each costs and a guess of what it leaves. Light; traces nothing.

Tiers: the same result, more time, slightly other rounding, another result; then two and three together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.plan.fit.verdict import MARGIN, Judged
from hf_recipes.plan.trace.short_run import accumulation_of
from hf_recipes.recipe.schema.installed import checkpointing_key

BATCH = frozenset({"batch"})
RECOMPUTED = 0.4  # of the bytes that are no weights or states: a guess of what checkpointing leaves
QUANTISED = 0.35  # of 16-bit weights: nf4, with embeddings and norms that stay


@dataclass(frozen=True, kw_only=True)
class Option:
    """A change that may fit. `cost` is completed by what the trace counts."""

    words: Mapping[str, Any]
    what: str
    cost: str
    least: float = 0.0  # bytes that stand whatever the batch: no trace is spent on what cannot fit
    standing: float = 0.0  # bytes of weights, gradients and optimizer, as far as they can be told without a trace
    moving: float = 1.0  # of the recipe's other bytes: what may fit by this guess is traced first
    kinds: frozenset[str] = frozenset()  # what it changes: together with more where it fits alone, it says nothing


def alone(judged: Judged, probe: Judged | None) -> Iterator[Option]:
    yield from _same_result(judged, probe)
    yield from more_time(judged)
    yield from _other_rounding(judged)
    yield from _other_result(judged)


def together(judged: Judged, probe: Judged | None) -> Iterator[Option]:
    """The smallest batch with one, then two, of the later tiers; at last with an adapter on quantised weights."""
    small = next(iter(batches(judged, (1,), probe)), None)
    base = [small] if small is not None else []
    time_ = list(more_time(judged))
    rounding = list(_other_rounding(judged))
    other = list(_other_result(judged))
    for more in (time_, rounding, other):
        for option in more:
            yield _joined([*base, option])
    for second in (*rounding, *other):
        yield _joined([*base, *time_, second])
    for second in rounding:
        for third in other:
            yield _joined([*base, *time_, second, third])
    for second, third in itertools.combinations(other, 2):
        if second.kinds != third.kinds:
            yield _joined([*base, *time_, second, third])


def _same_result(judged: Judged, probe: Judged | None) -> Iterator[Option]:
    recipe, section, seen = judged.recipe, judged.recipe.trainer, judged.seen
    training_peak = max((size for phase, size in seen.phases.items() if phase != "evaluation"), default=0)
    if seen.phases.get("evaluation", 0) >= training_peak and seen.eval_batch > 1:
        for rows in (seen.micro_batch, 1):
            if rows < seen.eval_batch:
                yield Option(
                    words={f"{section}.per_device_eval_batch_size": rows},
                    what=f"evaluate {_rows(rows)} at a time",
                    cost="nothing in the result: an evaluation takes a little longer",
                    least=standing_bytes(judged),
                    kinds=frozenset({"evaluation"}),
                )
    if recipe.get("model.attn_implementation") == "eager":
        yield Option(
            words={"model.attn_implementation": "sdpa"},
            what="attention by sdpa instead of eager",
            cost="nothing: the same attention without its matrix of scores",
            least=standing_bytes(judged),
            kinds=frozenset({"attention"}),
        )
    yield from batches(judged, _guesses(judged, probe), probe)


def batches(judged: Judged, sizes: tuple[int, ...], probe: Judged | None = None) -> Iterator[Option]:
    """Smaller micro-batches at the recipe's effective batch; evaluation's goes along where it is larger."""
    recipe, section = judged.recipe, judged.recipe.trainer
    rows, accumulation = judged.seen.micro_batch, accumulation_of(recipe)
    for size in sizes:
        if size >= rows or (rows * accumulation) % size:
            continue
        words: dict[str, Any] = {
            f"{section}.per_device_train_batch_size": size,
            f"{section}.gradient_accumulation_steps": rows * accumulation // size,
        }
        if judged.seen.eval_batch > size:
            words[f"{section}.per_device_eval_batch_size"] = size
        what = f"{_rows(size)} a device with {rows * accumulation // size} accumulation steps"
        cost = f"nothing in the result: the effective batch stays {rows * accumulation}"
        standing, moving = standing_bytes(judged), _moving_of(size, judged, probe)
        yield Option(words=words, what=what, cost=cost, least=standing, standing=standing, moving=moving, kinds=BATCH)


def _moving_of(size: int, judged: Judged, probe: Judged | None) -> float:
    """What a smaller batch leaves of the bytes that are no weights or states: affine in the rows, by the probe."""
    whole, rows = judged.seen.allocated - standing_bytes(judged), judged.seen.micro_batch
    if probe is None or whole <= 0 or rows <= 1:
        return size / rows
    one = max(0.0, probe.seen.allocated - standing_bytes(probe))
    return min(1.0, (one + (size - 1) * (whole - one) / (rows - 1)) / whole)


def _guesses(judged: Judged, probe: Judged | None) -> tuple[int, ...]:
    """Micro-batches to try, the largest first: allocated memory is affine in the batch inside one regime."""
    rows = judged.seen.micro_batch * accumulation_of(judged.recipe)
    divisors = [size for size in range(judged.seen.micro_batch - 1, 0, -1) if rows % size == 0]
    divisors = [size for size in divisors if size & (size - 1) == 0] or divisors
    if probe is None or not divisors:
        return ()
    a_row = (judged.held.peak - probe.held.peak) / max(1, judged.seen.micro_batch - 1)
    room = judged.usable / MARGIN - probe.held.peak
    if room < 0:
        return ()
    reach = 1 + (room / a_row if a_row > 0 else math.inf)
    fitting = [size for size in divisors if size <= reach * 1.02]
    return tuple(fitting[:2])


def more_time(judged: Judged) -> Iterator[Option]:
    recipe, section = judged.recipe, judged.recipe.trainer
    word = checkpointing_key(section)
    on = recipe.training.get("activation_checkpointing", recipe.training.get("gradient_checkpointing"))
    if on is None and section == "SFTConfig":
        return  # its default is on
    if not on:
        words = {f"{section}.{word}": True}
        least = standing_bytes(judged)
        yield Option(
            words=words,
            what="activation checkpointing",
            cost="time: {flops}",
            least=least,
            standing=least,
            moving=RECOMPUTED,
            kinds=frozenset({"checkpointing"}),
        )


def _other_rounding(judged: Judged) -> Iterator[Option]:
    recipe, gpu = judged.recipe, judged.gpu
    section, training = recipe.trainer, recipe.training
    full = "LoraConfig" not in recipe.sections
    if not training.get("bf16") and not training.get("fp16") and section != "SFTConfig":
        word = "bf16" if gpu.bf16 else "fp16"
        words = {f"{section}.{word}": True}
        cost = f"{word}'s rounding in products"
        kinds = frozenset({"autocast"})
        yield Option(words=words, what=f"{word} autocast", cost=cost, least=standing_bytes(judged), kinds=kinds)
    optim = str(training.get("optim", "adamw_torch_fused"))
    if full and "8bit" not in optim and "bnb" not in optim and optim.startswith("adamw"):
        for name in ("adamw_bnb_8bit", "paged_adamw_8bit"):
            cost = "the rounding of 8-bit states" + (
                ", and copies to the host when the card is full" * ("paged" in name)
            )
            least = standing_bytes(judged, optimizer=0.0 if name.startswith("paged") else 0.25)
            named = {f"{section}.optim": name}
            kinds = frozenset({"optim"})
            yield Option(words=named, what=f"optim: {name}", cost=cost, least=least, standing=least, kinds=kinds)
    dtype = recipe.get("model.dtype", "float32")
    if dtype in ("float32", "auto") and gpu.bf16 and not recipe.get("master_weights"):
        least = standing_bytes(judged, optimizer=0.5, gradients=0.5, weights=0.5)
        cost = "bf16's rounding of the frozen weights" if not full else "bf16's rounding of weights and updates: risky"
        yield Option(
            words={"model.dtype": "bfloat16"},
            what="weights in bfloat16",
            cost=cost,
            least=least,
            standing=least,
            kinds=frozenset({"dtype"}),
        )


def _other_result(judged: Judged) -> Iterator[Option]:
    """Another result: shorter rows, an adapter, an adapter on quantised weights."""
    recipe = judged.recipe
    dotted = recipe.max_length_key
    for share in (0.75, 0.5, 0.25):
        shorter = max(64, int(judged.seen.length * share) // 64 * 64)
        if shorter < judged.seen.length:
            cost = f"what stands behind token {shorter}"
            what = f"rows of {shorter} tokens"
            standing, moving = standing_bytes(judged), shorter / judged.seen.length
            yield Option(
                words={dotted: shorter},
                what=what,
                cost=cost,
                least=standing,
                standing=standing,
                moving=moving,
                kinds=frozenset({"length"}),
            )
    adapter = {"LoraConfig.r": 16, "LoraConfig.lora_alpha": 32, "LoraConfig.target_modules": "all-linear"}
    if "LoraConfig" not in recipe.sections and not recipe.get("master_weights"):
        if "pretrained_model_name_or_path" in recipe.section("model"):
            least = standing_bytes(judged, optimizer=0.0, gradients=0.0)
            cost = "another result: {trainable}"
            what = "LoRA instead of training all weights"
            kinds = frozenset({"adapter"})
            yield Option(words=adapter, what=what, cost=cost, least=least, standing=least, kinds=kinds)
        adapter_words, kept = adapter, 0.0
    else:
        adapter_words, kept = {}, 1.0
    if not recipe.section("BitsAndBytesConfig") and "pretrained_model_name_or_path" in recipe.section("model"):
        compute = "bfloat16" if judged.gpu.bf16 else "float16"
        quantised = {
            "BitsAndBytesConfig.load_in_4bit": True,
            "BitsAndBytesConfig.bnb_4bit_quant_type": "nf4",
            "BitsAndBytesConfig.bnb_4bit_use_double_quant": True,
            "BitsAndBytesConfig.bnb_4bit_compute_dtype": compute,
        }
        cost = "another result: frozen weights of 4 bits, {trainable}"
        standing = standing_bytes(judged, optimizer=kept, gradients=kept, weights=QUANTISED)
        kinds = frozenset({"adapter"})
        yield Option(words={**adapter_words, **quantised}, what="QLoRA", cost=cost, standing=standing, kinds=kinds)


# helpers ------------------------------------------------------------------------------------------------------------


def _joined(options: list[Option]) -> Option:
    words = {name: value for option in options for name, value in option.words.items()}
    cost = "; ".join(dict.fromkeys(option.cost for option in options if not option.cost.startswith("nothing")))
    what = " + ".join(option.what for option in options)
    least = min(option.least for option in options)  # each may take away what another leaves
    standing, moving = min(option.standing for option in options), math.prod(option.moving for option in options)
    kinds = frozenset().union(*(option.kinds for option in options))
    cost = cost or options[0].cost
    return Option(words=words, what=what, cost=cost, least=least, standing=standing, moving=moving, kinds=kinds)


def standing_bytes(judged: Judged, *, optimizer: float = 1.0, gradients: float = 1.0, weights: float = 1.0) -> float:
    """Bytes of weights, gradients and optimizer, each changed by a factor."""
    parts = judged.seen.parts
    return (
        weights * parts.get("weights", 0)
        + gradients * parts.get("gradients", 0)
        + optimizer * parts.get("optimizer", 0)
    )


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"
