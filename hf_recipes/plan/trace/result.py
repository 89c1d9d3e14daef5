"""The result of a trace, as values that travel as JSON. Imports the standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# The parts that a peak is made of, in the order of a table. Their sum is the allocated peak.
PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits and loss",
    "AMP copies",
    "temporaries",
    "workspaces",
)


@dataclass(frozen=True, kw_only=True)
class StorageGroup:
    """Storages of one kind that are alive at the peak."""

    part: str
    where: str  # the module's path, and the operation that made them
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int  # of all of them


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one phase computes and moves: "micro-batch" (forward and backward), "optimizer", "evaluation" (a batch)."""

    flops: int  # multiplications and additions of matrix products and attention, counted singly (a MAC is 2)
    bytes_moved: int  # read and written by every kernel, as if nothing stayed in a cache
    kernels: int  # operations that allocate or write: a lower bound of launches
    half_flops: int = 0  # those of `flops` whose inputs are fp16 or bf16
    matmul_bytes: int = 0  # those of `bytes_moved` that the kernels with flops move
    seconds_traced: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Two optimizer steps, an evaluation batch and saving of one recipe on one device of one process."""

    allocated: int  # bytes at the peak, each storage rounded up to 512 as torch.cuda.max_memory_allocated counts
    parts: Mapping[str, int]  # PARTS -> bytes at the peak; sums to `allocated`
    phase: str  # of the peak: "loading", "forward", "backward", "optimizer", "evaluation" or "saving"
    at: str  # where the peak was reached: the module's path and the operation
    phases: Mapping[str, int]  # phase -> its own peak in bytes
    # "phase module" -> the peak while it ran: each is smooth in rows and length, a phase is not
    module_peaks: Mapping[str, int]
    largest: tuple[StorageGroup, ...]  # at the peak, the largest first
    events: tuple[tuple[int, int], ...]  # (storage, +bytes born | -bytes died), unrounded, in order
    work: Mapping[str, Work]
    parameters: int  # a quantised weight counts what it stands for, a tied one once
    trainable: int
    trainable_bytes: int  # of the trained weights in their dtype, which is their gradients' too
    blocks: int  # transformer blocks of the model
    length: int
    positions: int | None  # tokens that the model can hold, where they are a limit
    micro_batch: int
    accumulation: int  # of the recipe; two micro-batches at most are traced
    eval_batch: int  # rows of one device in evaluation
    capability: tuple[int, int] | None  # None: planned for a CPU
    attention: Mapping[str, int] = field(default_factory=dict)  # sdpa's back end -> calls
    notes: tuple[str, ...] = ()  # what was assumed
    estimate: tuple[str, ...] = ()  # operations that could not be traced and what was assumed instead; () = exact
    seconds: float = 0.0  # of tracing, imports not counted
    processes: int = 1  # of the FSDP2 launch that the traced rank belongs to
    streams: tuple[tuple[int, int], ...] = ()  # (storage, CUDA stream) of those that are not in the default stream
    load: tuple[int, ...] = ()  # of the first events: how many each weight took that was quantised as it was loaded

    @property
    def is_upper_bound(self) -> bool:
        """Whether the run may take less than this, by what stands in `estimate`."""
        return any("an upper bound" in reason for reason in self.estimate)

    @property
    def flops(self) -> int:
        """Of one optimizer step of one process: every micro-batch and the optimizer."""
        return self._step("flops")

    @property
    def bytes_moved(self) -> int:
        """Read and written by one optimizer step of one process."""
        return self._step("bytes_moved")

    def _step(self, name: str) -> int:
        once = sum(getattr(self.work[key], name) for key in ("optimizer",) if key in self.work)
        return int(once + self.accumulation * getattr(self.work["micro-batch"], name))

    def to_values(self) -> dict[str, Any]:
        """What JSON takes; the events, which are many, as they are."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        largest, work = (asdict(one) for one in self.largest), self.work.items()
        return values | {"largest": list(largest), "work": {name: asdict(one) for name, one in work}}

    def to_json(self) -> str:
        return json.dumps(self.to_values())

    @classmethod
    def from_json(cls, text: str) -> Trace:
        """The inverse of `to_json`."""
        return cls.from_values(json.loads(text))

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Trace:
        """Of what JSON made of a trace."""
        values = dict(values)
        values["events"] = tuple((storage, change) for storage, change in values["events"])
        values["streams"] = tuple((storage, stream) for storage, stream in values["streams"])
        values["largest"] = tuple(StorageGroup(**{**one, "shape": tuple(one["shape"])}) for one in values["largest"])
        values["work"] = {name: Work(**one) for name, one in values["work"].items()}
        values["capability"] = tuple(values["capability"]) if values["capability"] else None
        for name in ("notes", "estimate", "load"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the rows of a recipe's data, cut where the run cuts them."""

    rows: int  # of the train split
    eval_rows: int
    longest: int  # tokens, of both splits
    tokens: int  # of the train split
    cut: int  # rows of the train split that are as long as the limit: most of them were cut there
    rows_by_length: tuple[tuple[int, int], ...]  # (tokens, rows of the train split), from short to long
    seconds: float = 0.0  # of reading and tokenizing


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """What CUDA's caching allocator takes from the GPU for a trace's events."""

    peak: int  # bytes, as torch.cuda.max_memory_reserved
    out_of_memory: bool
    retries: int  # times that it gave all its unused segments back to the GPU and asked again: slow, not fatal
    allocated: int  # as torch.cuda.max_memory_allocated: full blocks, up to 1 MiB larger than the request
