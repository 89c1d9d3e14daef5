"""Peak memory of a recipe before it runs: its own Trainer on meta tensors, every storage's birth and death recorded.

    trace = trace_recipe(recipe, capability=(8, 6))      # -> Trace: exact allocated peak, by part, and the event log
    replay_trace(trace, capacity=7 * 2**30)              # -> Reserved: the allocator replayed with that much memory
    reserved_range(trace)                                # -> (least, most): of a 4-bit model that threads load

Imports neither torch nor transformers: the tracing is in a child process, since it patches torch.

recipe ── trace/trace.py (our builders, on meta) ──► trace/tracker.py under autocast.py's rules ──► result.Trace Trace
── trace/cuda_allocator.py ──► Reserved ── fit/verdict.py (a GPU) ──► Fit ──► fit/show.py, advice.py, search.py"""

from __future__ import annotations

from hf_recipes.plan.trace.cuda_allocator import replay_trace
from hf_recipes.plan.trace.load_race import reserved_range
from hf_recipes.plan.trace.result import PARTS, Lengths, Reserved, StorageGroup, Trace, Work
from hf_recipes.plan.trace.worker import trace_recipe, trace_recipes

__all__ = [
    "PARTS",
    "Lengths",
    "Reserved",
    "StorageGroup",
    "Trace",
    "Work",
    "replay_trace",
    "reserved_range",
    "trace_recipe",
    "trace_recipes",
]
