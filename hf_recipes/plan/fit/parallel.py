"""Several processes: how a launch is spread, and what it adds to one rank's memory where no rank is traced; none of it
was measured on GPUs.

Imports neither torch nor transformers.

DDP: the reducer's buckets beside the gradients (torch/csrc/distributed/c10d/reducer.cpp: flat, 25 MiB each, the first
1 MiB, as many bytes as the trained weights' gradients; gradient_as_bucket_view, off by default, would save them).
FSDP2: one rank is traced (plan/trace/fsdp_rank.py). ZeRO, and FSDP that cannot be traced: closed forms of what is
split, no trace: such an answer is never "fits".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_recipes.common.device import sharding
from hf_recipes.errors import PlanError
from hf_recipes.plan.trace.cuda_allocator import rounded
from hf_recipes.plan.trace.result import Trace
from hf_recipes.recipe.schema.own_keys import SECTIONS
from hf_recipes.recipe.yaml_reader import read_text

FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
BUCKETS = "DDP buckets"
GATHERED = "gathered weights"
ZERO_BUCKET = 5e8  # elements that DeepSpeed reduces and gathers at a time by default, capped by the trained weights
OFFLOADS = (  # set by the accelerate file
    "FSDP_OFFLOAD_PARAMS",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
)
SHARDED = ("fsdp2", "zero2", "zero3")
# Keys of an accelerate file's fsdp_config that decide what a rank holds -> the variables that `accelerate launch` sets.
FSDP_VARIABLES = {
    "fsdp_version": "FSDP_VERSION",
    "fsdp_auto_wrap_policy": "FSDP_AUTO_WRAP_POLICY",
    "fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP",
    "fsdp_min_num_params": "FSDP_MIN_NUM_PARAMS",
    "fsdp_reshard_after_forward": "FSDP_RESHARD_AFTER_FORWARD",
    "fsdp_offload_params": "FSDP_OFFLOAD_PARAMS",
    "fsdp_activation_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING",
}
# What NCCL takes on each GPU, at most: 1.93 GiB that were not PyTorch's on an H100 (a message in ABCI's documentation)
# less that GPU's context. On each of four A100 it is 0.6 GiB (GitHub awslabs/keys_values#92).
NCCL_BYTES = 1205 * 2**20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is distributed: kind is "single", "ddp", "fsdp2", "zero2" or "zero3"."""

    kind: str = "single"
    processes: int = 1
    fsdp: tuple[tuple[str, str], ...] = ()  # FSDP_* variables of the launch

    @property
    def is_traceable(self) -> bool:
        """Whether one rank of it can be traced: FSDP2 that keeps nothing in the CPU's memory."""
        values = dict(self.fsdp)
        version, offloaded = values.get("FSDP_VERSION", "2"), values.get("FSDP_OFFLOAD_PARAMS", "false")
        return self.kind == "fsdp2" and self.processes > 1 and version == "2" and offloaded == "false"

    def is_closed_form(self, trace: Trace) -> bool:
        """Whether plan's answer for this launch is a closed form: nothing of it was traced, or `trace` is of one
        process."""
        return self.kind in SHARDED and trace.processes != self.processes

    @property
    def nccl_bytes(self) -> int:
        """The most that NCCL takes on a GPU."""
        return NCCL_BYTES if self.processes > 1 else 0


SINGLE = Layout()


def read_layout(processes: int | None, config_file: str | None) -> Layout:
    """The layout of `--processes` or accelerate's own `--config_file`. Raises PlanError for a file that has none."""
    if config_file is None:
        return SINGLE if processes in (None, 1) else Layout(kind="ddp", processes=int(processes or 1))
    config = _read(config_file)
    if "task" in config or any(isinstance(config.get(section), Mapping) for section in SECTIONS):
        fix = "name what `accelerate config` wrote, or a file of accelerate_configs/"
        raise PlanError.at(config_file, "is a recipe, not an accelerate config file", fix)
    count = int(processes if processes is not None else config.get("num_processes") or 1)
    kind = str(config.get("distributed_type") or "NO").upper()
    if kind == "DEEPSPEED":
        deepspeed = config.get("deepspeed_config")
        stage = deepspeed.get("zero_stage") if isinstance(deepspeed, Mapping) else None
        if stage not in (2, 3):
            raise PlanError.at(
                config_file, f"plan supports zero_stage 2 and 3, not {stage!r}", "set deepspeed_config.zero_stage"
            )
        return Layout(kind=f"zero{stage}", processes=count)
    if kind == "FSDP":
        section = config.get("fsdp_config")
        given = section if isinstance(section, Mapping) else {}
        found = {name: _as_variable(given[key]) for key, name in FSDP_VARIABLES.items() if given.get(key) is not None}
        return Layout(kind="fsdp2", processes=count, fsdp=tuple(found.items()))
    return SINGLE if count == 1 else Layout(kind="ddp", processes=count)


def launched_layout(environment: Mapping[str, str] = os.environ) -> Layout:
    """The layout of the launch that this process is part of."""
    count = int(environment.get("WORLD_SIZE", "1"))
    found = sharding(environment)
    if "deepspeed" in found:
        return Layout(kind=f"zero{environment.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}", processes=count)
    if found:
        values = tuple((name, environment[name]) for name in FSDP_VARIABLES.values() if name in environment)
        return Layout(kind="fsdp2", processes=count, fsdp=values)
    return Layout(kind="ddp" if count > 1 else "single", processes=count)


def _as_variable(value: Any) -> str:
    """As `accelerate launch` writes it: true, false, a number, names with commas."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def offloads(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this launch keeps weights or the optimizer in the CPU's memory."""
    values = [environment.get(name, "").lower() for name in OFFLOADS]
    return any(value not in ("", "none", "false") for value in values)


def least_bytes(trace: Trace, layout: Layout) -> int:
    """What one rank holds in the optimizer's step in any case: its shares of the weights (whole under ZeRO-2), of the
    gradients and of the optimizer. Where nothing is shared, without the gradients: an optimizer may take each as it
    comes. `trace`: of one process."""
    if layout.kind in ("single", "ddp"):
        return trace.parts.get("weights", 0) + trace.parts.get("optimizer", 0)
    n = layout.processes
    weights, states = trace.parts.get("weights", 0), trace.parts.get("optimizer", 0)
    return (weights if layout.kind == "zero2" else weights // n) + (states + trace.trainable_bytes) // n


def apply_layout(trace: Trace, layout: Layout) -> Trace:
    """One rank's trace under this launch; `trace` may be that rank's already."""
    if layout.kind == "single" or (layout.kind == "fsdp2" and trace.processes == layout.processes > 1):
        return trace
    if layout.kind == "ddp":
        return _ddp(trace, layout)
    return _sharded(trace, layout)


def _ddp(trace: Trace, layout: Layout) -> Trace:
    left, sizes = trace.trainable_bytes, list[int]()
    while left > 0:
        sizes.append(min(left, BUCKET if sizes else FIRST_BUCKET))
        left -= sizes[-1]
    last = max((number for number, _ in trace.events), default=-1)
    added = tuple((last + 1 + i, size) for i, size in enumerate(sizes))
    more = sum(map(rounded, sizes))
    mark = f"DDP over {layout.processes} processes: the gradients' buckets by rule, not verified on GPUs"
    return replace(
        trace,
        allocated=trace.allocated + more,
        parts={**trace.parts, BUCKETS: more},
        phases={phase: size + more for phase, size in trace.phases.items()},
        module_peaks={module: size + more for module, size in trace.module_peaks.items()},
        events=(*added, *trace.events),
        load=(len(added) + trace.load[0], *trace.load[1:]) if trace.load else (),
        notes=(*trace.notes, mark),
    )


def _sharded(trace: Trace, layout: Layout) -> Trace:
    """Each rank keeps its share of the split parts; what is gathered for a moment is added. Each phase has its own sum,
    and the largest counts: in the optimizer's step nothing is gathered, and its temporaries are split, too."""
    sums = {phase: _rank_parts(trace, layout, phase) for phase in trace.phases}
    phase = max(sums, key=lambda name: sum(sums[name].values()))
    parts = dict(sums[phase])
    allocated = sum(parts.values())
    name = {"fsdp2": "FSDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3"}[layout.kind]
    mark = f"{name} over {layout.processes} processes: a closed form of what is split, not traced and not verified"
    shares = {one: sum(parts.values()) / max(1, trace.phases[one]) for one, parts in sums.items()}
    return replace(
        trace,
        allocated=allocated,
        parts=parts,
        phase=phase,
        at=trace.at if phase == trace.phase else f"the {phase} pass",
        phases={one: sum(sums[one].values()) for one in sums},
        module_peaks={
            module: round(size * shares.get(module.partition(" ")[0], 1.0))
            for module, size in trace.module_peaks.items()
        },
        events=((0, allocated),),
        estimate=(*trace.estimate, mark),
    )


def _rank_parts(trace: Trace, layout: Layout, phase: str) -> dict[str, int]:
    """One rank's bytes at the phase's own peak."""
    n, two = layout.processes, layout.kind == "zero2"
    weights, states = trace.parts.get("weights", 0), trace.parts.get("optimizer", 0)
    if two:
        gathered = {BUCKETS: int(2 * min(2 * ZERO_BUCKET, trace.trainable_bytes))}
    else:  # a block's weights while it runs, and the next one's before it: two blocks, with their gradients
        gathered = {GATHERED: int(3 * weights / max(1, trace.blocks))}
    if phase == trace.phase:
        parts = dict(trace.parts)
    else:  # the parts of this phase's peak are not known: what stands, and the rest as temporaries
        gradients = phase in ("backward", "optimizer") or (phase == "forward" and trace.accumulation > 1)
        left, parts = trace.phases[phase], dict[str, int]()
        for part, size in (
            ("weights", weights),
            ("optimizer", states),
            ("gradients", trace.trainable_bytes * gradients),
        ):
            parts[part] = min(left, size)
            left -= parts[part]
        parts["temporaries"] = left
    if phase == "optimizer":
        split = [part for part in parts if not (two and part == "weights")]
        return {part: -(-size // n) if part in split else size for part, size in parts.items()}
    split = ["gradients", "optimizer", *([] if two else ["weights"])]
    return {part: -(-size // n) if part in split else size for part, size in parts.items()} | gathered


def _read(path: str) -> Mapping[str, Any]:
    location = "argument '--config_file'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise PlanError.at(
            location, f"{path!r} cannot be read ({problem.strerror})", "name one of accelerate_configs/"
        ) from None
    found = read_text(text, lambda line: f"{path}:{line}", path)
    if found.errors or not isinstance(found.values, dict):
        raise PlanError.at(path, "is not an accelerate config", "write one with `accelerate config`")
    return found.values
