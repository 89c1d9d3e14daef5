"""Everything that touches a CUDA card, in one file: one recipe for real, and what the card itself is.

Written from torch's and transformers' documentation; today's records say whether it has run (docs/lab.md).
"""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from hf_recipes.choices import choose
from hf_recipes.devices import this_device
from hf_recipes.plan.meta_model import config_of, vocabulary
from hf_recipes.plan.rows import stand_in_tokenizer
from hf_recipes.plan.short_run import shortened
from hf_recipes.plan.side_effects import evaluate_once, evaluations
from hf_recipes.plan.tracing import _length, _state_dict, _trainer

if TYPE_CHECKING:
    from hf_recipes.recipe import Recipe

WARM_UP, STEPS = 2, 6  # optimizer steps: memory is whole after two, time is taken of the others


def measure_on_card(
    recipe: Recipe, length: int | None, micro_batch: int | None, fraction: float | None
) -> dict[str, Any]:
    """Peaks in bytes and seconds a step of `recipe` on cuda:0, with random weights and rows of full length.

    fraction: of the card's memory that this process may take (set_per_process_memory_fraction): a smaller card. What
    runs out of memory is an outcome, with the phase in which it did.
    """
    device = this_device()
    if fraction is not None:
        torch.cuda.set_per_process_memory_fraction(fraction)
    recipe, _ = choose(recipe, device)
    config = config_of(recipe)
    tokenizer = stand_in_tokenizer(vocabulary(recipe, config), 2**31)
    recipe, _, _ = _length(recipe, config, length)
    found: dict[str, Any] = {"outcome": "finished", "phase": "building"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        short = _on_the_card(recipe, shortened(recipe, folder, micro_batch, STEPS))
        torch.cuda.reset_peak_memory_stats()
        try:
            trainer = _trainer(short, config, tokenizer, _length_of(short, length), "cuda", lambda line: None)
            clock = _Clock()
            trainer.add_callback(clock)
            found["phase"] = "training"
            trainer.train()
            found["step_seconds"] = clock.seconds / max(1, clock.steps)
            found["phase"] = "saving"
            _state_dict(trainer.accelerator.unwrap_model(trainer.model))
            found["phase"] = "evaluation"
            for dtype in evaluations(recipe):
                evaluate_once(trainer, dtype)
        except torch.OutOfMemoryError as problem:
            found |= {"outcome": "out of memory", "error": str(problem).splitlines()[0]}
    free, total = torch.cuda.mem_get_info()
    found["allocated_bytes"] = torch.cuda.max_memory_allocated()
    found["reserved_bytes"] = torch.cuda.max_memory_reserved()
    # All that the card lacks, less what torch holds now: the context (and other programs, if there are any).
    found["context_bytes"] = total - free - torch.cuda.memory_reserved()
    found["device_bytes"] = found["reserved_bytes"] + found["context_bytes"]
    found["card_bytes"] = total
    return found


def _on_the_card(recipe: Recipe, short: Recipe) -> Recipe:
    """The short run as a card takes it: not on the CPU, and in the recipe's own precision."""
    words = {f"{recipe.trainer}.{name}": recipe.training.get(name, False) for name in ("fp16", "bf16")}
    return short.with_values({**words, f"{recipe.trainer}.use_cpu": False}, "the lab")


def _length_of(short: Recipe, length: int | None) -> int:
    dotted = "SFTConfig.max_length" if short.trainer == "SFTConfig" else "dataset.max_length"
    return int(short.get(dotted) or length or 0)


class _Clock(TrainerCallback):
    """Seconds of the optimizer steps after the warm-up, the card waited for."""

    def __init__(self) -> None:
        self.seen, self.steps, self.seconds, self.began = 0, 0, 0.0, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.cuda.synchronize()
        self.seen += 1
        if self.seen > WARM_UP:
            self.steps += 1
            self.seconds += time.perf_counter() - self.began


def facts() -> dict[str, Any]:
    """The card: name, capability, memory as torch sees it, free after the context, achieved rates and bandwidth."""
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {"name": properties.name, "capability": [properties.major, properties.minor]}
    found |= {"total_bytes": total, "free_bytes": free, "context_bytes": total - free - torch.cuda.memory_reserved()}
    found["flops"] = {name: _rate(dtype) for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))}
    found["flops"]["fp32"] = _rate(torch.float32)
    found["bandwidth"] = _bandwidth()
    found["attention_backward_bytes"] = {name: _attention(name) for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION")}
    return found


def _rate(dtype: torch.dtype, size: int = 4096, times: int = 20) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    seconds = _timed(lambda: a @ b, times)
    return 2 * size**3 / seconds


def _bandwidth(times: int = 20) -> float:
    """Bytes/s of a copy of 1 GiB: read and written."""
    a = torch.empty(2**28, device="cuda", dtype=torch.float32)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _timed(lambda: b.copy_(a), times)


def _timed(work: Any, times: int) -> float:
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def _attention(backend: str, batch: int = 4, heads: int = 16, rows: int = 2048, width: int = 64) -> int | None:
    """Bytes that the backward takes beside its inputs, outputs and their gradients; None where it does not run."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape = (batch, heads, rows, width)
    query, key, value = (torch.randn(shape, device="cuda", dtype=torch.float16, requires_grad=True) for _ in range(3))
    try:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            gradient = torch.ones_like(out)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            out.backward(gradient)
            torch.cuda.synchronize()
    except RuntimeError:
        return None
    return torch.cuda.max_memory_allocated() - before - 3 * query.nbytes
