"""Peak memory of a recipe before it runs: its own Trainer on meta tensors, every storage's birth and death recorded.

    seen = trace(recipe, capability=(8, 6))              # -> Trace: exact allocated peak, by part, and the event log
    replay_trace(seen, capacity=7 * 2**30)                   # -> Reserved: the allocator replayed with that much memory

Light: torch is imported only where the tracing happens, which is a child process (tracing patches torch).

    recipe ── tracing.py (our builders, on meta) ──► events.py under autocast.py's rules ──► result.Trace
    Trace ── allocator.py ──► Reserved ── verdict.py (a card) ──► Judged ──► show.py, advice.py, frontier.py
"""

from __future__ import annotations

from hf_recipes.plan.trace.cuda_allocator import replay_trace
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
    "trace_recipe",
    "trace_recipes",
]
