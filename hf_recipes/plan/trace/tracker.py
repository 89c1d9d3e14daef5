"""Every storage's birth and death, by part of the memory and by module, while real code runs on meta or CPU tensors.

    with Tracker(device="meta") as seen:
        loss = model(**batch).loss; loss.backward(); optimizer.step()
    seen.events                      # (storage, +bytes | -bytes), in the order in which it happened

A TorchDispatchMode sees each kernel's outputs; views and in-place results share a storage and count once. A weak
reference on the storage's Python object, which lives as long as the C++ one, shows its death. Memory that a kernel
takes for itself comes from cuda_workspaces.py; what Trainer does only on a GPU, from trainer_effects.py.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_recipes.common.text import first_line
from hf_recipes.plan.trace.costs import cost_of
from hf_recipes.plan.trace.fast_meta import Known, can_be_known, key_of, learn
from hf_recipes.plan.trace.unknown_values import (
    ANSWERS,
    KNOWN_RESULTS,
    NAMED_ANSWERS,
    ZEROS,
    is_infinite,
)

# What autograd does in place where no dispatch mode looks on (isTensorSubclassLike in its C++), in a backward.
IN_PLACE = ("add", "index_add", "scatter", "scatter_add", "masked_scatter")

# Frames of Python between an operation and the one who called it: ours, and torch's around a dispatch mode.
AROUND = ("writes_in_place", "_put", "_dispatch", "__torch_dispatch__", "_fn", "inner")

CUBLAS = "cuBLAS workspace"  # it stays from the first product on
aten = torch.ops.aten
Workspaces = Callable[[Any, tuple[Any, ...], bool], "tuple[tuple[int, ...], tuple[int, ...]]"]


@dataclass
class Storage:
    """What is known of one storage; `part` is set where it is known for certain, else peak.py infers it."""

    size: int
    phase: str
    op: str
    where: str
    shape: tuple[int, ...]
    dtype: str
    part: str = ""
    died: int | None = None  # index of the event, None while it lives


class UntraceableError(Exception):
    """An operation whose result depends on data, which a meta tensor does not have; the message names it."""


class Tracker(TorchDispatchMode):
    """Records storages on `device`. `uniform`: whether masks are all ones, which a meta tensor does not know.

    `workspaces(operation, arguments, in_backward)` gives the bytes that its kernel holds while it runs, and those that
    stay from then on (cuBLAS's, once a thread).
    """

    def __init__(self, *, device: str, uniform: bool = True, workspaces: Workspaces | None = None) -> None:
        super().__init__()
        self.device = device
        self.uniform: bool = uniform
        self.workspaces = workspaces
        self.events: list[tuple[int, int]] = []
        self.storages: list[Storage] = []
        self.backward_begins: list[int] = []  # index of the event before which each backward began
        self.phase = "setup"
        self.stream = 0  # of CUDA, in which work is queued
        self.streams: dict[int, int] = {}  # storage -> its stream, where that is another than 0
        self.path: list[str] = []  # the modules whose forward runs
        self.backward_path = ""
        self.work: dict[str, list[int]] = {}  # phase -> flops, bytes, kernels, half flops, bytes of products
        self.guessed: dict[str, str] = {}  # operation -> what was done instead of following it
        self.bounded: set[str] = set()  # operations that were given their largest possible result
        self.known_numbers: dict[int, float] = {}  # storage -> the number in it, where the trace knows it
        self.all_false: set[int] = set()  # masks of what is infinite or not a number: nothing is
        self.false_tests: tuple[str, ...] = ("isinf", "isnan")  # tests of which nothing is true
        self.true_counts: dict[int, int] = {}  # storage of a mask -> places that can be true, where fewer than all
        self._alive: dict[int, tuple[int, Any]] = {}  # address of the C++ storage -> (number, weak reference)
        # (sum, first operand, the sum's address) of the last sum that may be in place
        self._accumulated = (-1, -1, 0)
        self._same: dict[int, int] = {}  # such a sum -> the storage that it is
        self._in_backward = False
        self._resize = torch.UntypedStorage.resize_
        self._known: dict[tuple[Any, ...], Known] = {}  # results of operations that come again
        self._is_paused = False

    # events ---------------------------------------------------------------------------------------------------------

    def add_storage(self, size: int, op: str, shape: tuple[int, ...] = (), dtype: str = "", part: str = "") -> int:
        """Records bytes that no tensor shows, too (a workspace). Returns the storage's number."""
        number = len(self.storages)
        phase = self._phase()
        where = self.backward_path if phase == "backward" else (self.path[-1] if self.path else "")
        self.storages.append(Storage(size, phase, op, where, shape, dtype, part))
        self.events.append((number, size))
        if self.stream:
            self.streams[number] = self.stream
        return number

    def free_storage(self, number: int) -> None:
        number = self._same.get(number, number)
        total, first, address = self._accumulated
        if number == first and self.events[-1][0] == total:
            self.events.pop()
            self._same[total] = first
            self._alive[address] = (first, self._alive[address][1])
            return
        storage = self.storages[number]
        storage.died = len(self.events)
        self.events.append((number, -storage.size))

    def writes_in_place(self) -> bool:
        """Whether autograd's own code runs, which does so where it can; a Function's backward in Python does not."""
        if not self._in_backward or torch.is_grad_enabled():
            return False
        caller = inspect.currentframe()
        while caller is not None and caller.f_code.co_name in AROUND:
            caller = caller.f_back
        return caller is not None and caller.f_code.co_name == "_engine_run_backward"

    def _accumulates(self, args: Any, result: Any) -> None:
        """Two gradients of one tensor are summed in place if nothing else refers to the first (can_accumulate_inplace
        in torch/csrc/autograd/input_buffer.cpp), and some formulas write into zeros that they made, but never under a
        dispatch mode: there, the first dies right after the result is born. Then they are one storage. A view's base
        keeps its storage."""
        first, address = args[0], result.untyped_storage()._cdata
        known = self._alive.get(first.untyped_storage()._cdata) if isinstance(first, torch.Tensor) else None
        born = self._alive.get(address)
        if known and born and not first._is_view() and self.storages[known[0]].size == self.storages[born[0]].size:
            self._accumulated = (born[0], known[0], address)

    def track(self, tensor: torch.Tensor, op: str, part: str = "") -> None:
        """Records the tensor's storage if it is new; names its part if one is given."""
        if type(tensor) is not torch.Tensor:
            tensor = getattr(tensor, "_local_tensor", tensor)  # a DTensor is what this rank has of it
            if isinstance(tensor, FakeTensor):  # DTensor's, for shapes only
                return
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._alive.get(address)
        if known is not None:
            number = known[0]
            if storage.nbytes() != self.storages[number].size:
                self._resized(number, storage.nbytes())
            if part:
                self.storages[number].part = part
            return
        number = self.add_storage(
            storage.nbytes(), op, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), part
        )
        self._alive[address] = (number, weakref.ref(storage, self._end_of(address, number)))

    def name(self, tensor: torch.Tensor, part: str) -> None:
        """Names the part of a storage that is known already; others stay unknown (paged states)."""
        tensor = getattr(tensor, "_local_tensor", tensor)
        known = self._alive.get(tensor.untyped_storage()._cdata) if tensor.device.type == self.device else None
        if known is not None:
            self.storages[known[0]].part = part

    def number_of(self, tensor: Any) -> int:
        """The number of the tensor's storage; -1 where it is not tracked."""
        known = self._alive.get(tensor.untyped_storage()._cdata) if isinstance(tensor, torch.Tensor) else None
        return known[0] if known is not None else -1

    def adopt(self, tensor: torch.Tensor, number: int) -> None:
        """The tensor's storage is the one that has this number already."""
        storage = tensor.untyped_storage()
        self._alive[storage._cdata] = (number, weakref.ref(storage, self._end_of(storage._cdata, number)))

    def _end_of(self, address: int, number: int) -> Callable[[Any], None]:
        def end(_: Any) -> None:
            known = self._alive.get(address)
            if known is not None and known[0] == self._same.get(number, number):
                del self._alive[address]
            self.free_storage(number)

        return end

    def _resized(self, number: int, size: int) -> None:
        storage = self.storages[number]
        self.events.append((number, size - storage.size))
        storage.size = size

    def guessed_flops(self, flops: int) -> None:
        """Counts the arithmetic of an operation that is answered instead of run."""
        work = self.work.setdefault("backward" if self._in_backward else self.phase, [0, 0, 0, 0, 0])
        work[0] += flops
        work[2] += 1

    def number_in(self, tensor: torch.Tensor) -> float:
        """What a meta tensor of one number holds: what the trace knows of it, else 1."""
        known = self._alive.get(tensor.untyped_storage()._cdata)
        return self.known_numbers.get(known[0], 1) if known is not None else 1

    def most_true(self, mask: torch.Tensor) -> int:
        """Places of a mask that can be true."""
        known = self._alive.get(mask.untyped_storage()._cdata)
        written = self.true_counts.get(known[0], mask.numel()) if known is not None else mask.numel()
        return min(mask.numel(), written)

    def set_true_places(self, mask: torch.Tensor, count: int) -> None:
        """At most so many places of a mask are true."""
        known = self._alive.get(mask.untyped_storage()._cdata)
        if known is not None:
            self.true_counts[known[0]] = count

    def is_nowhere(self, mask: torch.Tensor) -> bool:
        known = self._alive.get(mask.untyped_storage()._cdata)
        return known is not None and known[0] in self.all_false

    def made_by(self, tensor: torch.Tensor) -> str:
        """The operation that made the tensor's storage, "" where it is not tracked."""
        known = self._alive.get(tensor.untyped_storage()._cdata)
        return self.storages[known[0]].op if known is not None else ""

    def _remember_number(self, name: str, args: Any, result: Any) -> None:
        """Remembers the few numbers on which code branches (whether a mask is full, whether a gradient is finite), and
        how much of a mask that began as zeros was written."""
        if (
            isinstance(result, torch.Tensor)
            and result.dtype == torch.bool
            and (name in (*ZEROS, "eq", "copy_") or name in self.false_tests)
        ):
            known = self._alive.get(result.untyped_storage()._cdata)
            if known is not None and (name in self.false_tests or (name == "eq" and is_infinite(args[1]))):
                self.all_false.add(known[0])
            if known is not None and name in ZEROS:
                self.true_counts[known[0]] = 0
            elif known is not None and known[0] in self.true_counts:
                self.true_counts[known[0]] += result.numel()
        rule = KNOWN_RESULTS.get(name)
        if rule is not None and isinstance(result, torch.Tensor) and result.numel() == 1:
            known = self._alive.get(result.untyped_storage()._cdata)
            if known is not None:
                self.known_numbers[known[0]] = rule(self, args)

    # phases ---------------------------------------------------------------------------------------------------------

    def _phase(self) -> str:
        inside = torch._C._current_graph_task_id() >= 0
        if inside != self._in_backward:
            self._in_backward = inside
            if inside:
                self.backward_begins.append(len(self.events))
                self.backward_path = "the loss"
        if not inside:
            return self.phase
        return "recompute" if torch.is_grad_enabled() else "backward"  # checkpointing turns gradients on to recompute

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What happens inside belongs to `phase` (its backward stays "backward")."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is computed inside is not recorded; storages that end inside are."""
        self._is_paused = True
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self._is_paused = False

    def __enter__(self) -> Tracker:
        tracker, resize = self, self._resize

        def resize_(storage: Any, size: int) -> Any:  # FSDP frees by resize_(0), which no dispatch mode sees
            result = resize(storage, size)
            known = tracker._alive.get(storage._cdata)
            if known is not None and storage.nbytes() != tracker.storages[known[0]].size:
                tracker._resized(known[0], storage.nbytes())
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*problem)

    # dispatch -------------------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled under a trace, and torch's guard against it would take a tenth of its time."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kind in types:
            if kind.__name__ == "DTensor":
                return NotImplemented  # it unwraps to its local shards, which come back here
        # In a backward autocast's function mode is on: looking at a tensor's shape here would go through it.
        with torch._C.DisableTorchFunction():
            return self._dispatch(func, args, kwargs or {})

    def _dispatch(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self._is_paused:
            return func(*args, **kwargs)
        op = _OPERATIONS.get(id(func)) or _learn_operation(func)
        packet, name, on_meta = op.packet, op.name, self.device == "meta"
        self._phase()
        if on_meta and op.answer is not None:
            answered, value = op.answer(self, func, args, kwargs)
            if answered:
                return value
        key = key_of(func, args, kwargs) if on_meta and op.can_be_known else None
        known = self._known.get(key) if key is not None else None
        try:
            result = func(*args, **kwargs) if known is None else known.result(args)
        except (NotImplementedError, RuntimeError) as problem:
            if on_meta and _is_untraceable(problem):
                raise UntraceableError(f"{func}: {first_line(problem)}") from problem
            raise
        self._track_all(result, name)
        if name in IN_PLACE and self.writes_in_place():
            self._accumulates(args, result)
        if on_meta:
            self._remember_number(name, args, result)
        if self.workspaces is not None:  # a kernel takes them after its result
            passing, staying = self.workspaces(packet, args, self._in_backward)
            for size in staying:
                self.add_storage(size, CUBLAS, part="workspaces")
            for number in [self.add_storage(size, f"{name} workspace", part="workspaces") for size in passing]:
                self.free_storage(number)
        if not op.is_view:
            cost = cost_of(packet, args, kwargs, result) if known is None else known.cost
            self._count(*cost)
            if key is not None and known is None:
                learned = learn(func, args, kwargs, result, cost)
                if learned is not None:
                    self._known[key] = learned
        return result

    def _track_all(self, result: Any, op: str) -> None:
        if isinstance(result, torch.Tensor):
            self.track(result, op)
        elif isinstance(result, tuple | list):
            for one in result:
                self._track_all(one, op)

    def _count(self, flops: int, moved: int, half: bool) -> None:
        work = self.work.setdefault("backward" if self._in_backward else self.phase, [0, 0, 0, 0, 0])
        work[0] += flops
        work[1] += moved
        work[2] += 1
        if flops:
            work[3] += flops if half else 0
            work[4] += moved


@dataclass(frozen=True, slots=True)
class Operation:
    """What is asked of an operation each time that it runs."""

    func: Any  # it stays, so that its id stays its own
    packet: Any
    name: str
    answer: Callable[..., Any] | None  # instead of running it, on meta tensors
    is_view: bool
    can_be_known: bool


_OPERATIONS: dict[int, Operation] = {}  # by id: torch hashes an operation in Python


def _learn_operation(func: Any) -> Operation:
    packet, returns = func._overloadpacket, func._schema.returns
    name = packet.__name__
    found = _OPERATIONS[id(func)] = Operation(
        func=func,
        packet=packet,
        name=name,
        answer=ANSWERS.get(packet) or NAMED_ANSWERS.get(name),
        is_view=bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns),
        can_be_known=can_be_known(func),
    )
    return found


def _is_untraceable(problem: Exception) -> bool:
    message = str(problem)
    return any(word in message for word in ("eta", "ata-dependent", "data dependent", "unbacked"))
