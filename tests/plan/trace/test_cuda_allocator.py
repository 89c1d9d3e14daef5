"""The replay of CUDA's caching allocator: its rules by example, and what must hold for any events."""

import random
from itertools import pairwise
from types import SimpleNamespace

import pytest

from hf_recipes.plan.trace.cuda_allocator import (
    EMPTY_CACHE,
    TOP,
    ExpandableSegments,
    Segments,
    replay,
    replay_trace,
    rounded,
)

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


def test_of_two_equal_blocks_the_one_of_the_newer_large_segment_is_taken_and_of_small_ones_the_older():
    memory = Segments()
    for storage in (0, 1):
        memory.allocate(storage, 30 * MIB)
    newer = memory.addresses[1]
    memory.free(0)
    memory.free(1)
    memory.allocate(2, 30 * MIB)
    assert memory.addresses[2] == newer
    small = Segments()
    for storage in (0, 1):
        small.allocate(storage, 20 * MIB)
    older = small.addresses[0]
    small.free(0)
    small.free(1)
    small.allocate(2, 20 * MIB)
    assert small.addresses[2] == older


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


def test_a_stream_does_not_get_the_free_blocks_of_another():
    events = [(0, 30 * MIB), (0, -30 * MIB), (1, 30 * MIB)]
    assert replay(events).peak == 30 * MIB
    assert replay(events, streams={0: 1}).peak == 60 * MIB
    found = replay(events, capacity=40 * MIB, streams={0: 1})  # what one has and does not use is given back first
    assert (found.out_of_memory, found.retries) == (False, 1)
    assert replay(events, streams={0: 1}, expandable=True).peak == 40 * MIB


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
        assert sorted(memory.unused[True, 0] + memory.unused[False, 0]) == free
        _is_linked(memory)
    assert set(memory.addresses) == set(sizes)


def _is_linked(memory: Segments) -> None:
    """Neighbours know each other, no two free ones are left side by side, and lists are sorted by pool."""
    for address, block in memory.blocks.items():
        if block.behind is not None:
            behind = memory.blocks[block.behind]
            assert (behind.before, address + block.size, behind.small) == (address, block.behind, block.small)
            assert not (block.free and behind.free)
        if block.before is not None:
            assert memory.blocks[block.before].behind == address
    for (small, _), unused in memory.unused.items():
        assert unused == sorted(unused) and all(memory.blocks[address].small is small for _, address in unused)
    if isinstance(memory, ExpandableSegments):
        for small, last in memory.last.items():
            ends = [a + block.size for a, block in memory.blocks.items() if block.small is small]
            assert max(ends, default=0) <= memory.ends[small]
            if last is not None:
                assert last + memory.blocks[last].size == memory.ends[small]


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


def _blocks(memory: Segments) -> list[tuple[float, float, bool]]:
    """(address, size, whether it is free) in MiB from the pool's begin, in order of address."""
    return [
        ((address % (1 << 60)) / MIB, block.size / MIB, block.free) for address, block in sorted(memory.blocks.items())
    ]


def _filled(memory: Segments, *sizes: float) -> Segments:
    """Storages 0, 1, ... of these sizes in MiB."""
    for storage, size in enumerate(sizes):
        assert memory.allocate(storage, int(size * MIB))
    return memory


@pytest.mark.parametrize(("size", "taken"), [(0, 0), (1, 512), (511, 512), (512, 512), (513, 1024), (1024, 1024)])
def test_bytes_are_rounded_up_to_512(size, taken):
    assert rounded(size) == taken


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (12 * MIB, 12 * MIB),
    ],
)
def test_the_size_of_a_segment_at_its_borders(size, segment):
    assert replay([(0, size)]).peak == segment
    assert not replay([(0, size)], capacity=segment).out_of_memory
    assert replay([(0, size)], capacity=segment - 1).out_of_memory


@pytest.mark.parametrize(
    ("size", "pages"), [(MIB, 2), (MIB + 512, 20), (20 * MIB, 20), (20 * MIB + 512, 40), (41 * MIB, 60)]
)
def test_an_expandable_segment_grows_by_pages_of_its_pool(size, pages):
    assert replay([(0, size)], expandable=True).peak == pages * MIB
    assert not replay([(0, size)], capacity=pages * MIB, expandable=True).out_of_memory
    found = replay([(0, size)], capacity=pages * MIB - 1, expandable=True)
    assert (found.out_of_memory, found.retries, found.peak, found.allocated) == (True, 1, 0, 0)


def test_a_rest_of_512_bytes_is_split_off_a_small_block_and_more_than_a_mib_off_a_large_one():
    small = _filled(Segments(), 1, 1 - 512 / MIB, 512 / MIB)
    assert small.reserved == 2 * MIB and [size * MIB for _, size, _ in _blocks(small)] == [MIB, MIB - 512, 512]
    large = _filled(Segments(), 19 - 512 / MIB, 1 + 512 / MIB)
    assert large.reserved == 20 * MIB and len(large.blocks) == 2
    assert _blocks(_filled(Segments(), 19)) == [(0, 20, False)]  # a rest of exactly one MiB stays
    grown = _filled(ExpandableSegments(), 20 - 512 / MIB)
    assert [size * MIB for _, size, _ in _blocks(grown)] == [20 * MIB - 512, 512]  # here any rest is split off


def test_small_and_large_requests_have_pools_of_their_own():
    memory = _filled(Segments(), 1, 2)
    assert memory.reserved == 22 * MIB
    memory.free(1)
    assert memory.allocate(2, MIB) and memory.reserved == 22 * MIB  # the rest of the small segment
    assert memory.allocate(3, 512) and memory.reserved == 24 * MIB  # not the large one, which has room


def test_blocks_are_merged_with_both_neighbours_and_the_first_of_equals_is_taken():
    memory = _filled(Segments(), 5, 5, 5)
    assert _blocks(memory) == [(0, 5, False), (5, 5, False), (10, 5, False), (15, 5, True)]
    assert memory.free(0) == 5 * MIB and memory.free(2) == 5 * MIB
    assert _blocks(memory) == [(0, 5, True), (5, 5, False), (10, 10, True)]
    assert memory.free(1) == 5 * MIB
    assert _blocks(memory) == [(0, 20, True)]
    memory = _filled(Segments(), 5, 5, 5, 5)
    memory.free(2)
    memory.free(0)
    assert memory.allocate(9, 5 * MIB) and memory.addresses[9] == 0


def test_only_segments_that_are_entirely_free_go_back():
    memory = _filled(Segments(), 30, 5, 40)
    memory.free(0)
    memory.free(2)
    memory.empty_cache()
    assert memory.reserved == 20 * MIB and _blocks(memory) == [(0, 5, False), (5, 15, True)]
    assert memory.unused == {(True, 0): [], (False, 0): [(15 * MIB, 5 * MIB)]} and memory.peak == 90 * MIB
    assert memory.allocate(3, 30 * MIB) and memory.addresses[3] == TOP - 100 * MIB  # addresses are not used again


def test_a_full_gpu_is_tried_again_once_and_counts_it():
    memory = _filled(Segments(capacity=50 * MIB), 30, 20)
    memory.free(0)
    assert memory.allocate(2, 10 * MIB) and memory.retries == 0  # in the free block
    memory.free(2)
    assert memory.allocate(3, 30 * MIB) and memory.retries == 0
    assert not memory.allocate(4, 2 * MIB) and memory.retries == 1
    memory.free(3)
    assert memory.allocate(5, 12 * MIB) and memory.retries == 1


def test_an_expandable_segment_continues_its_free_end():
    memory = _filled(ExpandableSegments(), 15, 10)
    assert _blocks(memory) == [(0, 15, False), (15, 10, False), (25, 15, True)] and memory.reserved == 40 * MIB
    assert memory.allocate(2, 15 * MIB) and memory.reserved == 40 * MIB  # exactly what is free
    assert memory.allocate(3, 2 * MIB) and memory.reserved == 60 * MIB
    assert _blocks(memory)[3:] == [(40, 2, False), (42, 18, True)]
    assert memory.allocate(4, 512) and memory.reserved == 62 * MIB  # the small pool


def test_full_pages_inside_free_blocks_go_back_and_both_rests_stay():
    memory = _filled(ExpandableSegments(), 5, 40, 5)
    memory.free(1)
    memory.empty_cache()
    assert memory.reserved == 40 * MIB
    assert _blocks(memory) == [(0, 5, False), (5, 15, True), (40, 5, True), (45, 5, False), (50, 10, True)]
    _is_linked(memory)
    assert memory.allocate(3, 15 * MIB) and memory.addresses[3] == (1 << 60) + 5 * MIB
    assert memory.allocate(4, 30 * MIB) and memory.addresses[4] == (1 << 60) + 50 * MIB  # grown at the end
    assert memory.reserved == 60 * MIB
    for storage in (0, 3, 2, 4):
        memory.free(storage)
    assert _blocks(memory) == [(0, 20, True), (40, 40, True)]
    memory.empty_cache()
    assert (memory.reserved, memory.blocks, memory.last[False]) == (0, {}, None)
    assert memory.allocate(5, 2 * MIB) and memory.addresses[5] == (1 << 60) + 80 * MIB and memory.reserved == 20 * MIB


def test_pages_at_the_begin_and_at_the_end_of_a_free_block_go_back():
    memory = _filled(ExpandableSegments(), 25, 5)
    memory.free(0)
    memory.empty_cache()
    assert _blocks(memory) == [(20, 5, True), (25, 5, False), (30, 10, True)]
    _is_linked(memory)
    memory = _filled(ExpandableSegments(), 5, 35)
    memory.free(1)
    memory.empty_cache()
    assert _blocks(memory) == [(0, 5, False), (5, 15, True)] and memory.last[False] is None
    _is_linked(memory)
    assert memory.allocate(2, 16 * MIB) and memory.addresses[2] == (1 << 60) + 40 * MIB
    memory = _filled(ExpandableSegments(), 1, 0.5)  # of the small pool, whose pages have 2 MiB
    memory.free(0)
    memory.empty_cache()
    assert memory.reserved == 2 * MIB
    memory.free(1)
    memory.empty_cache()
    assert memory.reserved == 0


def test_an_expandable_segment_takes_pages_of_the_other_pool_before_it_is_out_of_memory():
    found = replay([(0, 40 * MIB), (0, -40 * MIB), (1, 512)], capacity=40 * MIB, expandable=True)
    assert (found.out_of_memory, found.retries, found.peak, found.allocated) == (False, 1, 40 * MIB, 40 * MIB)
    memory = ExpandableSegments(capacity=40 * MIB)
    assert memory.allocate(0, 30 * MIB)
    memory.free(0)
    assert memory.allocate(1, 35 * MIB) and memory.retries == 0 and memory.reserved == 40 * MIB
    assert not memory.allocate(2, 25 * MIB) and memory.retries == 1


def test_a_storage_that_grows_is_allocated_again_and_what_follows_a_failure_is_not_replayed():
    found = replay([(0, 4 * MIB), (0, 4 * MIB), (0, -6 * MIB), (1, 12 * MIB)])
    assert (found.allocated, found.peak) == (14 * MIB, 20 * MIB)
    failed = replay([(0, 12 * MIB), (1, 40 * MIB), (2, 2 * MIB)], capacity=34 * MIB)
    assert (failed.out_of_memory, failed.allocated, failed.peak, failed.retries) == (True, 12 * MIB, 12 * MIB, 1)
    assert replay([(0, 2 * MIB), (0, -2 * MIB), (0, 2 * MIB)]).allocated == 2 * MIB
    assert replay([(0, 1)]).allocated == 512 and replay([(0, 1), (0, -1), (1, 1)]).allocated == 512


def test_a_trace_is_replayed_by_its_events():
    trace = SimpleNamespace(events=[(i, 5 * MIB) for i in range(8)] + [(i, -5 * MIB) for i in (2, 3, 4, 5)], streams=())
    trace.events.append((99, 20 * MIB))
    assert replay_trace(trace).peak == 60 * MIB and not replay_trace(trace).out_of_memory
    assert replay_trace(trace, capacity=40 * MIB).out_of_memory
    assert not replay_trace(trace, capacity=40 * MIB, expandable=True).out_of_memory


@pytest.mark.parametrize(
    ("sizes", "freed", "reserved"),
    [
        ([20, 20, 20], [0, 2], 20),  # whole pages at both ends
        ([20, 20, 20], [1], 40),  # a hole in the middle, whose borders are those of a page
        ([10, 25, 25], [1], 60),  # from 10 to 35: no whole page inside
        ([10, 45, 5], [1], 40),  # from 10 to 55: the page from 20 to 40
        ([10, 30, 20], [1], 40),  # from 10 to 40
        ([20, 30, 10], [1], 40),  # from 20 to 50
        ([60], [0], 0),
    ],
)
def test_what_is_left_when_pages_went_back_can_be_freed_merged_and_used_again(sizes, freed, reserved):
    memory = ExpandableSegments()
    for storage, size in enumerate(sizes):
        memory.allocate(storage, size * MIB)
    assert memory.reserved == 60 * MIB
    for storage in freed:
        memory.free(storage)
    memory.empty_cache()
    assert memory.reserved == sum(block.size for block in memory.blocks.values()) == reserved * MIB
    for storage in set(range(len(sizes))) - set(freed):
        memory.free(storage)
    memory.empty_cache()
    assert memory.allocate(99, 20 * MIB)
    assert sum(block.size for block in memory.blocks.values()) == memory.reserved
