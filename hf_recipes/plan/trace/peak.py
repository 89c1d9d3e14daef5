"""From a tracker's event log: the peak, its parts, where it was reached, and each phase's own peak."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hf_recipes.plan.trace.result import PARTS, StorageGroup
from hf_recipes.plan.trace.tracker import Storage

LARGEST = 20  # holdings that a trace names


@dataclass(frozen=True, kw_only=True)
class PeakSummary:
    """The allocated peak of an event log, and what it was made of."""

    allocated: int
    parts: dict[str, int]
    phase: str
    at: str
    phases: dict[str, int]
    modules: dict[str, int]
    largest: tuple[StorageGroup, ...]


def summarize_peak(
    events: Sequence[tuple[int, int]],
    storages: Sequence[Storage],
    backward_begins: Sequence[int],
    vocabulary: int | None,
    size_of: Callable[[int], int],
    since: int = 0,
) -> PeakSummary:
    """`since`: the event from which on the peak counts. `size_of` rounds as the allocator does. `vocabulary`: a last
    dimension of this size is logits."""
    sizes: dict[int, int] = {}
    current = peak = 0
    at, culprit = -1, -1
    phases: dict[str, int] = {}
    modules: dict[tuple[str, str], int] = {}
    births: dict[int, int] = {}  # storage -> index of its first event
    for index, (number, change) in enumerate(events):
        births.setdefault(number, index)
        before = sizes.get(number, 0)
        after = sizes[number] = before + change
        current += size_of(after) - size_of(before)
        if change > 0 and index >= since:
            key = storages[number].phase, storages[number].where
            if current > modules.get(key, 0):
                modules[key] = current
            if current > peak:
                peak, at, culprit = current, index, number
    for (phase, _), size in modules.items():
        phases[_public(phase)] = max(phases.get(_public(phase), 0), size)
    alive: dict[int, int] = {}
    for number, change in events[: at + 1]:
        alive[number] = alive.get(number, 0) + change
    parts = dict.fromkeys(PARTS, 0)
    kinds: dict[tuple[str, str, tuple[int, ...], str], list[int]] = {}
    for number, size in alive.items():
        if size <= 0:
            continue
        storage = storages[number]
        end = storage.died if storage.died is not None else len(events)
        part = _part(storage, births[number], end, backward_begins, vocabulary)
        parts[part] += size_of(size)
        where = f"{storage.where}: {storage.op}" if storage.where else storage.op
        kind = kinds.setdefault((part, where, storage.shape, storage.dtype), [0, 0])
        kind[0] += 1
        kind[1] += size_of(size)
    largest = sorted(kinds.items(), key=lambda item: -item[1][1])[:LARGEST]
    last = storages[culprit] if culprit >= 0 else None
    return PeakSummary(
        allocated=peak,
        parts=parts,
        phase=_public(last.phase) if last else "",
        at=f"{last.where or 'the trainer'}: {last.op}" if last else "",
        phases=phases,
        modules={f"{phase} {where}": size for (phase, where), size in modules.items()},
        largest=tuple(
            StorageGroup(part=part, where=where, shape=shape, dtype=dtype, count=count, bytes=size)
            for (part, where, shape, dtype), (count, size) in largest
        ),
    )


def _public(phase: str) -> str:
    return "backward" if phase == "recompute" else phase


def _part(storage: Storage, born: int, end: int, backward_begins: Sequence[int], vocabulary: int | None) -> str:
    """`born` is the index of the storage's first event, `end` that of its death or of the log's end."""
    if storage.part:
        return storage.part
    shape = storage.shape
    if vocabulary and len(shape) >= 2 and shape[-1] == vocabulary:
        return "logits and loss"
    if storage.phase == "recompute":
        return "activations"
    if storage.phase not in ("forward", "setup"):
        return "temporaries"
    # Made in the forward: an activation if it is still there when the backward begins.
    begun = bisect_left(backward_begins, born)
    return "activations" if begun < len(backward_begins) and backward_begins[begun] < end else "temporaries"
