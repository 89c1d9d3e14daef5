"""Several processes: what a launch adds to one rank's memory, by rule. Light; none of it was measured on cards.

DDP: the reducer's buckets beside the gradients (torch/csrc/distributed/c10d/reducer.cpp: flat, 25 MiB each, the first
1 MiB, as many bytes as the trained weights' gradients; gradient_as_bucket_view, off by default, would save them).
ZeRO and FSDP: closed forms of what is split, no trace: such an answer is never "fits".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_recipes.errors import RecipeError
from hf_recipes.plan.trace.cuda_allocator import rounded
from hf_recipes.plan.trace.result import Trace
from hf_recipes.recipe.yaml_reader import read_text

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
BUCKETS = "DDP buckets"
GATHERED = "gathered weights"
ZERO_BUCKET = 5e8  # elements that DeepSpeed reduces and gathers at a time by default, capped by the trained weights
SHARDED = ("fsdp2", "zero2", "zero3")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread: kind is "single", "ddp", "fsdp2", "zero2" or "zero3"."""

    kind: str = "single"
    processes: int = 1

    @property
    def is_closed_form(self) -> bool:
        return self.kind in SHARDED


SINGLE = Layout()


def layout(processes: int | None, config_file: str | None) -> Layout:
    """What `--processes` or accelerate's own `--config_file` says. Raises RecipeError for a file that says neither."""
    if config_file is None:
        return SINGLE if processes in (None, 1) else Layout(kind="ddp", processes=int(processes or 1))
    words = _read(config_file)
    count = int(processes if processes is not None else words.get("num_processes") or 1)
    kind = str(words.get("distributed_type") or "NO").upper()
    if kind == "DEEPSPEED":
        deepspeed = words.get("deepspeed_config")
        stage = deepspeed.get("zero_stage") if isinstance(deepspeed, Mapping) else None
        if stage not in (2, 3):
            raise RecipeError.at(
                config_file, f"plan knows zero_stage 2 and 3, not {stage!r}", "set deepspeed_config.zero_stage"
            )
        return Layout(kind=f"zero{stage}", processes=count)
    if kind == "FSDP":
        return Layout(kind="fsdp2", processes=count)
    return SINGLE if count == 1 else Layout(kind="ddp", processes=count)


def applied(seen: Trace, spread: Layout) -> Trace:
    """One rank's trace under this launch."""
    if spread.kind == "single":
        return seen
    if spread.kind == "ddp":
        return _ddp(seen, spread)
    return _sharded(seen, spread)


def _ddp(seen: Trace, spread: Layout) -> Trace:
    left, sizes = seen.trainable_bytes, list[int]()
    while left > 0:
        sizes.append(min(left, BUCKET if sizes else FIRST_BUCKET))
        left -= sizes[-1]
    last = max((number for number, _ in seen.events), default=-1)
    added = tuple((last + 1 + i, size) for i, size in enumerate(sizes))
    more = sum(map(rounded, sizes))
    mark = f"DDP over {spread.processes} processes: the gradients' buckets by rule, not verified on cards"
    return replace(
        seen,
        allocated=seen.allocated + more,
        parts={**seen.parts, BUCKETS: more},
        phases={phase: size + more for phase, size in seen.phases.items()},
        locations={location: size + more for location, size in seen.locations.items()},
        events=(*added, *seen.events),
        notes=(*seen.notes, mark),
    )


def _sharded(seen: Trace, spread: Layout) -> Trace:
    """Each rank keeps its share of the split parts; what is whole for a moment comes on top."""
    n = spread.processes
    parts = dict(seen.parts)
    split = ("gradients", "optimizer") if spread.kind == "zero2" else ("weights", "gradients", "optimizer")
    whole = parts.get("weights", 0)
    for part in split:
        parts[part] = -(-parts.get(part, 0) // n)
    if spread.kind == "zero2":
        parts[BUCKETS] = int(2 * min(2 * ZERO_BUCKET, seen.trainable_bytes))
    else:  # a block's weights are gathered while it runs and the next one's before it: two blocks, with their gradients
        parts[GATHERED] = int(3 * whole / max(1, seen.blocks))
    allocated = sum(parts.values())
    change = allocated - seen.allocated
    name = {"fsdp2": "FSDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}[spread.kind]
    mark = f"{name} over {n} processes: a closed form of what is split, not traced and not verified"
    return replace(
        seen,
        allocated=allocated,
        parts=parts,
        phases={phase: max(0, size + change) for phase, size in seen.phases.items()},
        locations={location: max(0, size + change) for location, size in seen.locations.items()},
        events=((0, allocated),),
        estimate=(*seen.estimate, mark),
    )


def _read(path: str) -> Mapping[str, Any]:
    where = "argument '--config_file'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise RecipeError.at(
            where, f"{path!r} cannot be read ({problem.strerror})", "name one of accelerate_configs/"
        ) from None
    found = read_text(text, lambda line: f"{path}:{line}", path)
    if found.errors or not isinstance(found.values, dict):
        raise RecipeError.at(path, "is no accelerate config", "write one with `accelerate config`")
    return found.values
