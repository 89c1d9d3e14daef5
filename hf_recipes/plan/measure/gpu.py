"""Everything that touches a CUDA GPU, in one file: one recipe measured, and the facts of the GPU itself.

Its records of an H100 are in recipes/results/lab; tests/plan/measure runs it with a stand-in for torch.cuda.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from hf_recipes.common.device import this_device
from hf_recipes.common.text import first_line
from hf_recipes.plan.trace.cuda_allocator import rounded
from hf_recipes.plan.trace.cuda_workspaces import cudnn_backward, efficient_backward, flash_backward
from hf_recipes.plan.trace.meta_model import build_config, vocabulary_size
from hf_recipes.plan.trace.short_run import shorten_recipe
from hf_recipes.plan.trace.stand_in_rows import stand_in_tokenizer
from hf_recipes.plan.trace.trace import gather_state_dict, stand_in_trainer, traced_length
from hf_recipes.plan.trace.trainer_effects import evaluate_once, list_evaluations
from hf_recipes.recipe.defaults import choose

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

WARM_UP, STEPS = 2, 5  # optimizer steps: memory is complete after two, time is taken of the others
BACK_ENDS = ("DEFAULT", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")
SHAPES = (  # rows, heads, heads of keys, length, width of a head, whether in fp16
    (4, 16, 16, 2048, 64, True),
    (4, 16, 16, 2000, 80, True),
    (2, 8, 2, 1024, 256, True),
    (4, 16, 16, 1024, 64, False),
)
RULES = {  # back end -> the rule of cuda_workspaces.py for its backward
    "FLASH_ATTENTION": flash_backward,
    "EFFICIENT_ATTENTION": efficient_backward,
    "CUDNN_ATTENTION": cudnn_backward,
}


def measure_on_gpu(
    recipe: Recipe, length: int | None, micro_batch: int | None, fraction: float | None
) -> dict[str, Any]:
    """Peaks in bytes and seconds a step of `recipe` on cuda:0, with random weights and rows of full length.

    fraction: of the GPU's memory that this process may take (set_per_process_memory_fraction): a smaller GPU. What
    runs out of memory is an outcome, with the phase in which it did.
    """
    began = time.perf_counter()
    device = this_device()
    if fraction is not None:
        torch.cuda.set_per_process_memory_fraction(fraction)
    recipe, _ = choose(recipe, device)
    config = build_config(recipe)
    tokenizer = stand_in_tokenizer(vocabulary_size(recipe, config), 2**31)
    recipe, length, _ = traced_length(recipe, config, length)
    found: dict[str, Any] = {"outcome": "finished", "phase": "building", "phases": {}, "ends": {}}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        short = _for_the_gpu(recipe, shorten_recipe(recipe, folder, micro_batch, STEPS))
        try:
            trainer = stand_in_trainer(short, config, tokenizer, length, "cuda", lambda line: None)
            found["micro_batches"] = trainer.args.gradient_accumulation_steps  # of a step
            found["ends"]["building"] = time.perf_counter() - began
            clock = _Clock()
            trainer.add_callback(clock)
            gc.collect()  # a run makes its weights on the CPU: what it took to make them here does not count
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            with _phase(found, "training"):
                trainer.train()
            found["step_seconds"] = clock.seconds / max(1, clock.steps)
            splits = trainer.parts.retry.splits
            if splits:  # run's own answer to a step that is out of memory: a smaller micro-batch
                found |= {"outcome": "out of memory", "splits": splits}
            found["loaded_bytes"] = clock.loaded
            found["ends"]["training"] = time.perf_counter() - began
            with _phase(found, "saving"):
                gather_state_dict(trainer.accelerator.unwrap_model(trainer.model))
            for dtype in list_evaluations(recipe):
                with _phase(found, "evaluation"):
                    evaluate_once(trainer, dtype)
        except torch.OutOfMemoryError as problem:
            found |= {"outcome": "out of memory", "error": first_line(problem)}
    free, total = torch.cuda.mem_get_info()
    found["allocated_bytes"] = max(found["phases"].values(), default=torch.cuda.max_memory_allocated())
    found.setdefault("reserved_bytes", torch.cuda.max_memory_reserved())
    # All memory in use, less what torch has reserved now: the context (and other programs, if there are any).
    found["context_bytes"] = total - free - torch.cuda.memory_reserved()
    found["device_bytes"] = found["reserved_bytes"] + found["context_bytes"]
    found["gpu_bytes"] = total
    found["retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
    found["seconds"] = {**found.pop("ends"), "over": time.perf_counter() - began}
    return found


@contextmanager
def _phase(found: dict[str, Any], name: str) -> Iterator[None]:
    """Notes the phase and the most that was allocated while it ran."""
    found["phase"] = name
    reserved = torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.cuda.synchronize()
        found["phases"][name] = max(torch.cuda.max_memory_allocated(), found["phases"].get(name, 0))
        found["reserved_bytes"] = max(reserved, torch.cuda.max_memory_reserved(), found.get("reserved_bytes", 0))


def _for_the_gpu(recipe: Recipe, short: Recipe) -> Recipe:
    """The short run as the GPU runs it: not on the CPU, and in the recipe's own precision."""
    values = {f"{recipe.trainer}.{name}": recipe.training.get(name, False) for name in ("fp16", "bf16")}
    return short.with_values({**values, f"{recipe.trainer}.use_cpu": False}, "the lab")


class _Clock(TrainerCallback):
    """Seconds of the optimizer steps after the warm-up, the GPU synchronized."""

    def __init__(self) -> None:
        self.seen, self.steps, self.seconds, self.began, self.loaded = 0, 0, 0.0, 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.loaded = torch.cuda.memory_allocated()  # the weights

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.cuda.synchronize()
        self.seen += 1
        if self.seen > WARM_UP:
            self.steps += 1
            self.seconds += time.perf_counter() - self.began


def gpu_facts() -> dict[str, Any]:
    """The GPU: name, capability, memory as torch sees it, free after the context, achieved rates and bandwidth."""
    torch.zeros(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {"name": properties.name, "capability": [properties.major, properties.minor]}
    found |= {"total_bytes": total, "free_bytes": free, "context_bytes": total - free - torch.cuda.memory_reserved()}
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    found["cublas_bytes"] = _workspace()
    found["flops"] = {**{name: _rate(dtype) for name, dtype in half.items()}, "fp32": _rate(torch.float32)}
    torch.backends.cuda.matmul.allow_tf32 = True
    found["flops"]["tf32"] = _rate(torch.float32)
    found["bandwidth"] = _bandwidth()
    small = torch.zeros(1, device="cuda")
    found["launch_seconds"] = _timed(lambda: small.add_(1), 2000)
    found["attention_backward"] = [_attention(name, *shape) for name in BACK_ENDS for shape in SHAPES]
    return found


def _workspace() -> int:
    """Bytes that stay allocated after the first matrix product: cuBLAS's workspace of this thread."""
    a = torch.randn(256, 256, device="cuda")
    before = torch.cuda.memory_allocated()
    b = a @ a
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated() - before - b.nbytes


def _rate(dtype: torch.dtype, size: int = 8192, times: int = 10) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * size**3 / _timed(lambda: a @ b, times)


def _bandwidth(times: int = 20) -> float:
    """Bytes/s of a copy of 1 GiB: read and written."""
    a = torch.empty(2**28, device="cuda", dtype=torch.float32)
    b = torch.empty_like(a)
    return 2 * a.nbytes / _timed(lambda: b.copy_(a), times)


def _timed(work: Callable[[], object], times: int) -> float:
    """Seconds of one call, the GPU synchronized."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def _attention(backend: str, batch: int, heads: int, groups: int, rows: int, width: int, half: bool) -> dict[str, Any]:
    """What the backward of an attention takes beside inputs, outputs and gradients, as measured and as
    cuda_workspaces.py predicts it. `groups`: heads of keys and values."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = torch.float16 if half else torch.float32
    shapes = [(batch, heads, rows, width)] + [(batch, groups, rows, width)] * 2
    query, key, value = (torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes)
    found: dict[str, Any] = {"backend": backend, "query": shapes[0], "key": shapes[1], "dtype": str(dtype)}
    every = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    try:
        with sdpa_kernel(every if backend == "DEFAULT" else [getattr(SDPBackend, backend)]):
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=heads != groups
            )
        found["kernel"] = type(out.grad_fn).__name__
        gradient = torch.ones_like(out)
        if backend in RULES:
            sizes = RULES[backend]((gradient, query, key, value, out))
            found["predicted_bytes"] = sum(map(rounded, sizes))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out.backward(gradient)
        torch.cuda.synchronize()
    except RuntimeError as problem:
        return {**found, "refused": first_line(problem)}
    own = sum(rounded(one.nbytes) for one in (query, key, value))
    return {**found, "measured_bytes": torch.cuda.max_memory_allocated() - before - own}
