"""c10/cuda/CUDACachingAllocator.cpp (torch 2.13) replayed on a list of events: what is reserved, and when it fails.

Pure: no torch. Memory is asked for in segments (2 MiB for requests up to 1 MiB, 20 MiB for those below 10 MiB, else the
request rounded up to 2 MiB), cut into blocks of multiples of 512 bytes; the smallest free block that fits is taken
(the lowest address among equals), its rest given back if it is worth keeping, neighbours merged when freed. When the
GPU has no more, every segment that is entirely free is given back and the request is tried again.

The driver gives addresses, and they decide which of two equal blocks is taken: each new segment of more than 20 MiB
lies below the older ones, as the reserved peaks of a T4 and of an H100 show (docs/methods/plan.md).

A CUDA stream has free blocks of its own, which no other one gets. In expandable segments they are counted together:
out of memory, the pages of one stream's free blocks go to another.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from hf_recipes.plan.trace.result import Reserved

if TYPE_CHECKING:
    from hf_recipes.plan.trace.result import Trace

ROUND = 512  # kMinBlockSize
SMALL = 1 << 20  # kSmallSize: larger requests come from the large pool
SMALL_SEGMENT = 2 << 20  # kSmallBuffer
LARGE_SEGMENT = 20 << 20  # kLargeBuffer
MIN_LARGE = 10 << 20  # kMinLargeAlloc
ROUND_LARGE = 2 << 20  # kRoundLarge; also the page of an expandable segment in the small pool
EMPTY_CACHE = (-1, 0)  # an event: torch.cuda.empty_cache() was called
TOP = 1 << 60
LARGE_PAGE = 20 << 20  # page of an expandable segment in the large pool (kLargeBuffer)


def rounded(size: int) -> int:
    """Bytes that a storage of `size` bytes takes: a multiple of 512; an empty one takes none."""
    return -(-size // ROUND) * ROUND


def replay_trace(trace: Trace, capacity: int | None = None, expandable: bool = False) -> Reserved:
    """The allocator's answer to a trace on a GPU with `capacity` bytes for it (None: without limit).

    `expandable` is PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
    """
    return replay(trace.events, capacity, expandable, dict(trace.streams))


def replay(
    events: Iterable[tuple[int, int]],
    capacity: int | None = None,
    expandable: bool = False,
    streams: Mapping[int, int] = MappingProxyType({}),
) -> Reserved:
    """As `replay_trace`, of plain events (storage, change in bytes). A storage whose size changes is freed and
    allocated again. `streams`: of storages that are made in another than the default stream."""
    memory: Segments | ExpandableSegments = ExpandableSegments(capacity) if expandable else Segments(capacity)
    sizes: dict[int, int] = {}
    allocated = peak = 0
    failed = False
    for storage, change in events:
        if storage == EMPTY_CACHE[0]:
            memory.empty_cache()
            continue
        before = sizes.pop(storage, 0)
        after = before + change
        if before > 0:
            allocated -= memory.free(storage)
        if after > 0:
            if not memory.allocate(storage, rounded(after), streams.get(storage, 0)):
                failed = True
                break
            sizes[storage] = after
            allocated += memory.blocks[memory.addresses[storage]].size
            peak = max(peak, allocated)
    return Reserved(peak=memory.peak, out_of_memory=failed, retries=memory.retries, allocated=peak)


@dataclass
class Block:
    """A piece of a segment; `before` and `behind` are its neighbours' addresses."""

    size: int
    small: bool
    free: bool
    before: int | None
    behind: int | None
    stream: int = 0

    @property
    def pool(self) -> tuple[bool, int]:
        return self.small, self.stream


class Segments:
    """The allocator as it is by default."""

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.reserved = self.peak = self.retries = 0
        self.blocks: dict[int, Block] = {}
        # (small, stream) -> sorted (size, address)
        self.unused: dict[tuple[bool, int], list[tuple[int, int]]] = {(True, 0): [], (False, 0): []}
        self.addresses: dict[int, int] = {}  # storage -> address
        self.lowest, self.highest = TOP, 0  # where segments above LARGE_SEGMENT begin, and where the others end

    def allocate(self, storage: int, size: int, stream: int = 0) -> bool:
        """Finds room for `size` bytes, a multiple of 512; False where the GPU has none."""
        small = size <= SMALL
        unused = self.unused.setdefault((small, stream), [])
        place = bisect_left(unused, (size, -1))
        if place < len(unused):
            _, address = unused.pop(place)
        else:
            found = self._segment(size, small, stream)
            if found is None:
                return False
            address = found
        block = self.blocks[address]
        block.free = False
        self._split(address, block, size)
        self.addresses[storage] = address
        return True

    def _segment(self, size: int, small: bool, stream: int) -> int | None:
        wanted = (
            SMALL_SEGMENT if small else LARGE_SEGMENT if size < MIN_LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE
        )
        if not self._has(wanted):
            self.retries += 1
            self.empty_cache()
            if not self._has(wanted):
                return None
        address = self._address(wanted)
        self.reserved += wanted
        self.peak = max(self.peak, self.reserved)
        self.blocks[address] = Block(size=wanted, small=small, free=False, before=None, behind=None, stream=stream)
        return address

    def _address(self, wanted: int) -> int:
        if wanted > LARGE_SEGMENT:
            self.lowest -= wanted
            return self.lowest
        self.highest += wanted
        return self.highest - wanted

    def _has(self, wanted: int) -> bool:
        return self.capacity is None or self.reserved + wanted <= self.capacity

    def _split(self, address: int, block: Block, size: int) -> None:
        rest = block.size - size
        if rest < ROUND if block.small else rest <= SMALL:
            return
        block.size = size
        other = address + size
        self.blocks[other] = Block(
            size=rest, small=block.small, free=True, before=address, behind=block.behind, stream=block.stream
        )
        if block.behind is not None:
            self.blocks[block.behind].before = other
        block.behind = other
        insort(self.unused[block.pool], (rest, other))

    def free(self, storage: int) -> int:
        """Gives the storage's block back; returns its size."""
        address = self.addresses.pop(storage)
        block = self.blocks[address]
        size = block.size
        if block.behind is not None and self.blocks[block.behind].free:
            self._absorb(address, block.behind)
        if block.before is not None and self.blocks[block.before].free:
            first = block.before
            self._remove(first)
            address = self._absorb(first, address, listed=False)
            block = self.blocks[address]
        block.free = True
        insort(self.unused[block.pool], (block.size, address))
        return size

    def _absorb(self, address: int, behind: int, listed: bool = True) -> int:
        """Makes the block at `behind` a part of the one at `address`, which stands before it."""
        if listed:
            self._remove(behind)
        block, gone = self.blocks[address], self.blocks.pop(behind)
        block.size += gone.size
        block.behind = gone.behind
        if gone.behind is not None:
            self.blocks[gone.behind].before = address
        return address

    def _remove(self, address: int) -> None:
        block = self.blocks[address]
        unused = self.unused[block.pool]
        unused.pop(bisect_left(unused, (block.size, address)))

    def empty_cache(self) -> None:
        """release_cached_blocks: segments of which nothing is used go back to the GPU."""
        for pool, unused in self.unused.items():
            remaining = []
            for size, address in unused:
                block = self.blocks[address]
                if block.before is None and block.behind is None:
                    self.reserved -= size
                    del self.blocks[address]
                else:
                    remaining.append((size, address))
            self.unused[pool] = remaining


class ExpandableSegments(Segments):
    """PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: one segment a pool, which grows at its end page by page.

    Before the GPU is out of memory, whole pages inside free blocks go back to it; what is asked for later is put at
    the end (the real allocator maps pages into the holes: the same number of pages).
    """

    def __init__(self, capacity: int | None = None) -> None:
        super().__init__(capacity)
        self.ends = {True: 0, False: 1 << 60}  # small -> where the pool's mapped pages end
        self.last: dict[bool, int | None] = {True: None, False: None}  # small -> address of the block that ends there

    def allocate(self, storage: int, size: int, stream: int = 0) -> bool:
        return super().allocate(storage, size)

    def _segment(self, size: int, small: bool, stream: int) -> int | None:
        page = SMALL_SEGMENT if small else LARGE_PAGE
        if not self._grow(size, small, page):
            self.retries += 1
            self.empty_cache()
            if not self._grow(size, small, page):
                return None
        address = self.last[small]
        assert address is not None
        self._remove(address)
        return address

    def _grow(self, size: int, small: bool, page: int) -> bool:
        """Maps pages until the free block at the end of the pool holds `size`; it is in the list of free ones."""
        last = self.last[small]
        tail = self.blocks[last].size if last is not None and self.blocks[last].free else 0
        mapped = -(-max(0, size - tail) // page) * page
        if not self._has(mapped):
            return False
        self.reserved += mapped
        self.peak = max(self.peak, self.reserved)
        end = self.ends[small]
        self.ends[small] = end + mapped
        if tail:
            assert last is not None
            self._remove(last)
            self.blocks[last].size += mapped
            insort(self.unused[small, 0], (tail + mapped, last))
        else:
            before = last if last is not None else None
            if before is not None:
                self.blocks[before].behind = end
            self.blocks[end] = Block(size=mapped, small=small, free=True, before=before, behind=None)
            self.last[small] = end
            insort(self.unused[small, 0], (mapped, end))
        return True

    def _split(self, address: int, block: Block, size: int) -> None:
        rest = block.size - size
        if rest < ROUND:
            return
        block.size = size
        other = address + size
        self.blocks[other] = Block(size=rest, small=block.small, free=True, before=address, behind=block.behind)
        if block.behind is not None:
            self.blocks[block.behind].before = other
        block.behind = other
        if self.last[block.small] == address:
            self.last[block.small] = other
        insort(self.unused[block.pool], (rest, other))

    def _absorb(self, address: int, behind: int, listed: bool = True) -> int:
        small = self.blocks[address].small
        if self.last[small] == behind:
            self.last[small] = address
        return super()._absorb(address, behind, listed)

    def empty_cache(self) -> None:
        for (small, _), unused in self.unused.items():
            page = SMALL_SEGMENT if small else LARGE_PAGE
            base = 0 if small else 1 << 60
            for _, address in list(unused):
                block = self.blocks[address]
                start = base + -(-(address - base) // page) * page
                stop = base + (address + block.size - base) // page * page
                if stop > start:
                    self._unmap(address, block, start, stop)

    def _unmap(self, address: int, block: Block, start: int, stop: int) -> None:
        """Takes the pages from `start` to `stop` out of a free block; what is left on both sides stays free."""
        self._remove(address)
        self.reserved -= stop - start
        end, behind, before = address + block.size, block.behind, block.before
        del self.blocks[address]
        if start > address:
            self.blocks[address] = Block(size=start - address, small=block.small, free=True, before=before, behind=None)
            insort(self.unused[block.pool], (start - address, address))
        elif before is not None:
            self.blocks[before].behind = None
        if end > stop:
            self.blocks[stop] = Block(size=end - stop, small=block.small, free=True, before=None, behind=behind)
            insort(self.unused[block.pool], (end - stop, stop))
            if behind is not None:
                self.blocks[behind].before = stop
        elif behind is not None:
            self.blocks[behind].before = None
        if self.last[block.small] == address:
            self.last[block.small] = stop if end > stop else None
