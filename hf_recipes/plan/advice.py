"""If it does not fit: the cheapest changes that make it fit, each verified by a trace, with what it costs. Light.

Candidates come in tiers: the same result, more time, slightly other rounding, another result. Two are traced at a time;
within a tier the one that leaves the run closest to what was asked comes first. Where no single change is enough,
they are taken together, tier by tier.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.checks import faults
from hf_recipes.errors import RecipeError
from hf_recipes.plan.short_run import accumulation_of
from hf_recipes.plan.verdict import FITS, MARGIN, Judged, examine_all
from hf_recipes.schema import fields

WANTED = 3
SECONDS = 40.0  # no traces are begun that would end later than this, as long as the last ones took
PLACE = "plan's advice"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that fits. `words` are overrides as a user types them."""

    words: Mapping[str, Any]
    what: str
    cost: str
    judged: Judged  # of the changed recipe

    @property
    def overrides(self) -> str:
        """ "SFTConfig.per_device_train_batch_size=4 SFTConfig.gradient_accumulation_steps=8" """
        return " ".join(f"{name}={_shown(value)}" for name, value in self.words.items())


@dataclass(frozen=True, kw_only=True)
class Option:
    """A change that may fit. `cost` is completed by what the trace counts."""

    words: Mapping[str, Any]
    what: str
    cost: str
    least: float = 0.0  # bytes that stand whatever the batch: no trace is spent on what cannot fit


def advise(judged: Judged, *, length: int | None = None, seconds: float = SECONDS) -> tuple[Change, ...]:
    """At most three changes, the cheapest first; () where nothing that plan knows makes it fit (see `hopeless`).

    length: tokens of the longest row, as for the verdict. Begins no trace after `seconds`.
    """
    began, found, took = time.monotonic(), list[Change](), 0.0
    tried: set[tuple[tuple[str, str], ...]] = set()
    probe = _smallest(judged, length)  # the recipe at one row a device: how far the batch reaches
    for rounds in (_alone, _together):
        waiting = [option for option in rounds(judged, probe) if _is_worth_a_trace(judged, option)]
        waiting = [option for option in waiting if _key(option) not in tried]
        while waiting and len(found) < WANTED and time.monotonic() - began + took < seconds:
            batch, waiting = waiting[:2], waiting[2:]
            tried |= {_key(option) for option in batch}
            started = time.monotonic()
            seen = examine_all(
                [judged.recipe.with_values(option.words, PLACE) for option in batch],
                judged.gpu,
                length=_length(batch, length),
                usable=judged.usable,
                spread=judged.spread,
            )
            took = time.monotonic() - started
            for option, one in zip(batch, seen, strict=True):
                if isinstance(one, Judged) and one.verdict == FITS:
                    cost = _counted(option.cost, judged, one)
                    found.append(Change(words=option.words, what=option.what, cost=cost, judged=one))
        if len(found) >= WANTED:
            break
    return tuple(found[:WANTED])


def hopeless(judged: Judged) -> str:
    """Why nothing fits, in one line: what is there before the first row."""
    standing = sum(judged.seen.parts.get(part, 0) for part in ("weights", "gradients", "optimizer"))
    weights = judged.seen.parts.get("weights", 0)
    if weights > judged.usable:
        return f"the weights alone take {weights / 2**30:.2f} GiB, more than the card has"
    return f"weights, gradients and optimizer take {standing / 2**30:.2f} GiB before the first row"


def lines(changes: tuple[Change, ...], judged: Judged) -> list[str]:
    """What the terminal shows below a verdict that is not "fits"."""
    if not changes:
        return [f"  no change that plan knows makes it fit: {hopeless(judged)}"]
    said = ["  what would fit, the cheapest first (each verified by a trace):"]
    for number, change in enumerate(changes, 1):
        reserved = f"{change.judged.held.peak / 2**30:.2f} GiB reserved"
        said += [f"  {number}. {change.what}: {reserved}; costs {change.cost}", f"     {change.overrides}"]
    return said


def as_json(changes: tuple[Change, ...]) -> list[dict[str, Any]]:
    """For tools."""
    return [
        {
            "overrides": change.overrides,
            "what": change.what,
            "cost": change.cost,
            "verdict": change.judged.verdict,
            "reserved_bytes": change.judged.held.peak,
            "allocated_bytes": change.judged.seen.allocated,
        }
        for change in changes
    ]


# candidates ---------------------------------------------------------------------------------------------------------


def _alone(judged: Judged, probe: Judged | None) -> Iterator[Option]:
    yield from _same_result(judged, probe)
    yield from _more_time(judged)
    yield from _other_rounding(judged)
    yield from _other_result(judged)


def _together(judged: Judged, probe: Judged | None) -> Iterator[Option]:
    """The smallest batch with one, then two, of the later tiers; at last with an adapter on quantised weights."""
    small = next(iter(_batches(judged, (1,))), None)
    base = [small] if small is not None else []
    time_ = list(_more_time(judged))
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
                    least=_standing(judged),
                )
    if recipe.get("model.attn_implementation") == "eager":
        yield Option(
            words={"model.attn_implementation": "sdpa"},
            what="attention by sdpa instead of eager",
            cost="nothing: the same attention without its matrix of scores",
            least=_standing(judged),
        )
    yield from _batches(judged, _guesses(judged, probe))


def _batches(judged: Judged, sizes: tuple[int, ...]) -> Iterator[Option]:
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
        yield Option(words=words, what=what, cost=cost, least=_standing(judged))


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


def _smallest(judged: Judged, length: int | None) -> Judged | None:
    option = next(iter(_batches(judged, (1,))), None)
    if option is None:
        return None
    changed = judged.recipe.with_values(option.words, PLACE)
    found = examine_all([changed], judged.gpu, length=length, usable=judged.usable, spread=judged.spread)[0]
    return found if isinstance(found, Judged) else None


def _more_time(judged: Judged) -> Iterator[Option]:
    recipe, section = judged.recipe, judged.recipe.trainer
    word = "activation_checkpointing" if "activation_checkpointing" in fields(section) else "gradient_checkpointing"
    on = recipe.training.get("activation_checkpointing", recipe.training.get("gradient_checkpointing"))
    if on is None and section == "SFTConfig":
        return  # its default is on
    if not on:
        words = {f"{section}.{word}": True}
        yield Option(words=words, what="activation checkpointing", cost="time: {flops}", least=_standing(judged))


def _other_rounding(judged: Judged) -> Iterator[Option]:
    recipe, gpu = judged.recipe, judged.gpu
    section, training = recipe.trainer, recipe.training
    full = "LoraConfig" not in recipe.sections
    if not training.get("bf16") and not training.get("fp16") and section != "SFTConfig":
        word = "bf16" if gpu.bf16 else "fp16"
        words = {f"{section}.{word}": True}
        cost = f"{word}'s rounding in products"
        yield Option(words=words, what=f"{word} autocast", cost=cost, least=_standing(judged))
    optim = str(training.get("optim", "adamw_torch_fused"))
    if full and "8bit" not in optim and "bnb" not in optim and optim.startswith("adamw"):
        for name in ("adamw_bnb_8bit", "paged_adamw_8bit"):
            cost = "the rounding of 8-bit states" + (
                ", and copies to the host when the card is full" * ("paged" in name)
            )
            least = _standing(judged, optimizer=0.0 if name.startswith("paged") else 0.25)
            yield Option(words={f"{section}.optim": name}, what=f"optim: {name}", cost=cost, least=least)
    dtype = recipe.get("model.dtype", "float32")
    if dtype in ("float32", "auto") and gpu.bf16 and not recipe.get("master_weights"):
        least = _standing(judged, optimizer=0.5, gradients=0.5, weights=0.5)
        cost = "bf16's rounding of the frozen weights" if not full else "bf16's rounding of weights and updates: risky"
        yield Option(words={"model.dtype": "bfloat16"}, what="weights in bfloat16", cost=cost, least=least)


def _other_result(judged: Judged) -> Iterator[Option]:
    """Another result: shorter rows, an adapter, an adapter on quantised weights."""
    recipe, section = judged.recipe, judged.recipe.trainer
    dotted = "SFTConfig.max_length" if section == "SFTConfig" else "dataset.max_length"
    for share in (0.75, 0.5, 0.25):
        shorter = max(64, int(judged.seen.length * share) // 64 * 64)
        if shorter < judged.seen.length:
            cost = f"what stands behind token {shorter}"
            what = f"rows of {shorter} tokens"
            yield Option(words={dotted: shorter}, what=what, cost=cost, least=_standing(judged))
    adapter = {"LoraConfig.r": 16, "LoraConfig.lora_alpha": 32, "LoraConfig.target_modules": "all-linear"}
    if "LoraConfig" not in recipe.sections and not recipe.get("master_weights"):
        if "pretrained_model_name_or_path" in recipe.section("model"):
            least = _standing(judged, optimizer=0.0, gradients=0.0)
            cost = "another result: {trainable}"
            yield Option(words=adapter, what="LoRA instead of training all weights", cost=cost, least=least)
        adapter_words = adapter
    else:
        adapter_words = {}
    if not recipe.section("BitsAndBytesConfig") and "pretrained_model_name_or_path" in recipe.section("model"):
        compute = "bfloat16" if judged.gpu.bf16 else "float16"
        quantised = {
            "BitsAndBytesConfig.load_in_4bit": True,
            "BitsAndBytesConfig.bnb_4bit_quant_type": "nf4",
            "BitsAndBytesConfig.bnb_4bit_use_double_quant": True,
            "BitsAndBytesConfig.bnb_4bit_compute_dtype": compute,
        }
        cost = "another result: frozen weights of 4 bits, {trainable}"
        yield Option(words={**adapter_words, **quantised}, what="QLoRA", cost=cost)


# helpers ------------------------------------------------------------------------------------------------------------


def _standing(judged: Judged, *, optimizer: float = 1.0, gradients: float = 1.0, weights: float = 1.0) -> float:
    """Bytes of weights, gradients and optimizer, each changed by a factor."""
    parts = judged.seen.parts
    return (
        weights * parts.get("weights", 0)
        + gradients * parts.get("gradients", 0)
        + optimizer * parts.get("optimizer", 0)
    )


def _is_worth_a_trace(judged: Judged, option: Option) -> bool:
    return option.least * MARGIN <= judged.usable and _is_valid(judged, option)


def _is_valid(judged: Judged, option: Option) -> bool:
    """Whether `check` would accept the changed recipe."""
    try:
        return not faults(judged.recipe.with_values(option.words, PLACE))
    except RecipeError:
        return False


def _length(batch: list[Option], length: int | None) -> int | None:
    """A change of the length must not be overruled by the length that was asked for."""
    changed = any(name.endswith(".max_length") for option in batch for name in option.words)
    return None if changed else length


def _joined(options: list[Option]) -> Option:
    words = {name: value for option in options for name, value in option.words.items()}
    cost = "; ".join(dict.fromkeys(option.cost for option in options if not option.cost.startswith("nothing")))
    what = " + ".join(option.what for option in options)
    least = min(option.least for option in options)  # each may take away what another leaves
    return Option(words=words, what=what, cost=cost or options[0].cost, least=least)


def _counted(cost: str, before: Judged, after: Judged) -> str:
    """Numbers that the traces have counted."""
    more = after.seen.flops / before.seen.flops - 1 if before.seen.flops else 0.0
    fill: dict[str, Callable[[], str]] = {
        "{flops}": lambda: f"{more:.0%} more arithmetic, every layer is computed twice",
        "{trainable}": lambda: f"{after.seen.trainable:,} of {after.seen.parameters:,} parameters are trained",
    }
    for mark, text in fill.items():
        if mark in cost:
            cost = cost.replace(mark, text())
    return cost


def _key(option: Option) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, str(value)) for name, value in option.words.items()))


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
