"""The replay of CUDA's caching allocator: its rules by example, and what must hold for any events."""

import random
from itertools import pairwise

import pytest

from hf_recipes.plan.trace.cuda_allocator import EMPTY_CACHE, ExpandableSegments, Segments, replay, rounded

MIB = 2**20


def test_a_small_request_takes_a_segment_of_two_mib_and_a_large_one_of_twenty():
    assert replay([(0, 4)]).peak == 2 * MIB
    assert replay([(0, MIB + 1)]).peak == 20 * MIB
    assert replay([(0, 11 * MIB)]).peak == 12 * MIB
    assert replay([(0, 4)]).allocated == 512


def test_a_freed_block_is_used_again_and_neighbours_are_merged():
    events = [(0, 4 * MIB), (1, 4 * MIB), (0, -4 * MIB), (1, -4 * MIB), (2, 8 * MIB)]
    assert replay(events).peak == 20 * MIB


def test_the_smallest_free_block_that_fits_is_taken():
    memory = Segments()
    for storage, size in ((0, 40 * MIB), (1, 24 * MIB)):
        assert memory.allocate(storage, size)
    memory.free(0)
    memory.free(1)
    assert memory.allocate(2, 22 * MIB)
    assert memory.blocks[memory.addresses[2]].size == 22 * MIB
    assert memory.allocate(3, 40 * MIB), "the larger block is still whole"
    assert memory.peak == 64 * MIB


def test_a_rest_of_one_mib_or_less_stays_with_its_large_block():
    memory = Segments()
    memory.allocate(0, 20 * MIB - MIB)
    assert memory.blocks[memory.addresses[0]].size == 20 * MIB


def test_a_full_gpu_gets_its_unused_segments_back_before_it_is_out_of_memory():
    events = [(0, 30 * MIB), (0, -30 * MIB), (1, 50 * MIB)]
    found = replay(events, capacity=60 * MIB)
    assert (found.out_of_memory, found.retries, found.peak) == (False, 1, 50 * MIB)
    assert replay(events, capacity=40 * MIB).out_of_memory


def test_fragments_that_no_request_fits_are_out_of_memory_by_default_and_fit_expandable_segments():
    events = [(i, 5 * MIB) for i in range(8)]  # two segments of 20 MiB
    events += [(i, -5 * MIB) for i in (2, 3, 4, 5)] + [(99, 20 * MIB)]
    assert replay(events, capacity=40 * MIB).out_of_memory
    assert not replay(events, capacity=40 * MIB, expandable=True).out_of_memory


def test_emptying_the_cache_gives_unused_segments_back():
    events = [(0, 30 * MIB), (0, -30 * MIB), EMPTY_CACHE, (1, 50 * MIB)]
    found = replay(events)
    assert (found.peak, found.retries) == (50 * MIB, 0)


def _random_events(seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    events, alive = [], {}
    for number in range(400):
        if alive and draw.random() < 0.45:
            storage = draw.choice(sorted(alive))
            events.append((storage, -alive.pop(storage)))
        else:
            size = draw.choice((draw.randint(1, 5000), draw.randint(1, 3 * MIB), draw.randint(MIB, 60 * MIB)))
            alive[number] = size
            events.append((number, size))
    return events


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", [Segments, ExpandableSegments])
def test_for_any_events_blocks_never_overlap_and_nothing_is_lost(seed, kind):
    memory, sizes = kind(), {}
    for storage, change in _random_events(seed):
        if change > 0:
            assert memory.allocate(storage, rounded(change))
            sizes[storage] = rounded(change)
        else:
            memory.free(storage)
            del sizes[storage]
        if draw_every(storage):
            memory.empty_cache()
        spans = sorted((address, address + block.size) for address, block in memory.blocks.items())
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert sum(block.size for block in memory.blocks.values()) == memory.reserved
        for storage, address in memory.addresses.items():
            assert memory.blocks[address].size >= sizes[storage] and not memory.blocks[address].free
        free = sorted((b.size, a) for a, b in memory.blocks.items() if b.free)
        assert sorted(memory.unused[True] + memory.unused[False]) == free
    assert set(memory.addresses) == set(sizes)


def draw_every(storage: int) -> bool:
    return storage % 37 == 0


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("expandable", [False, True])
def test_for_any_events_reserved_is_never_below_allocated_and_a_gpu_of_that_size_suffices(seed, expandable):
    events = _random_events(seed)
    free = replay(events, expandable=expandable)
    assert free.peak >= free.allocated and not free.out_of_memory and free.retries == 0
    found = replay(events, capacity=free.peak, expandable=expandable)
    assert (found.out_of_memory, found.peak, found.retries) == (False, free.peak, 0)
    assert replay(events, capacity=free.allocated // 2, expandable=expandable).out_of_memory
