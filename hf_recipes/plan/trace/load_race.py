"""What a 4-bit model's load leaves reserved where threads read weights ahead of the quantiser: an interval.

Older releases of transformers read such weights in up to four threads, and how far they are ahead of the quantiser is a
race (core_model_loading.py). The same run then reserves more or less. `run` ends the race: what plan predicts is exact
for it. For another program, or another release, these are the least and the most of the loads that are so many weights
ahead. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from hf_recipes.plan.trace.cuda_allocator import replay
from hf_recipes.plan.trace.result import Trace

AHEAD = (0, 1, 2, 3, 4, 8, 16, 32, 64, 1 << 30)  # weights; the last: all are there before the first is quantised


def reserved_range(trace: Trace) -> tuple[int, int]:
    """(least, most) bytes reserved, by how far a load is ahead of the quantiser; one value twice where nothing is
    quantised as it is loaded."""
    return race_range(trace.events, trace.load, dict(trace.streams))


def race_range(
    events: Sequence[tuple[int, int]], load: Sequence[int], streams: dict[int, int] | None = None
) -> tuple[int, int]:
    """As `reserved_range`, of plain events, of which `load` counts those of each weight (load.py, replay_load)."""
    weights = [list(events[begin:end]) for begin, end in pairwise(accumulate(load, initial=0))]
    training = events[sum(load) :]
    peaks = [
        replay([*_reordered(weights, ahead), *training], streams=streams or {}).peak
        for ahead in (AHEAD if weights else (0,))
    ]
    return min(peaks), max(peaks)


def _reordered(load: Sequence[Sequence[tuple[int, int]]], ahead: int) -> list[tuple[int, int]]:
    """The load's events, where a weight is read (its first) before the weight `ahead` places before it is quantised."""
    if not load:
        return []
    warmup, *weights = load
    found, read = list(warmup), 0
    for number, weight in enumerate(weights):
        upto = min(len(weights), number + 1 + ahead)
        found += [other[0] for other in weights[read:upto]]
        read = max(read, upto)
        found += weight[1:]
    return found
