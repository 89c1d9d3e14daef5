"""Micro-batches that come again: the second optimizer step repeats the log of the first instead of computing it.

Nothing that a forward and a backward allocate depends on the optimizer's states, which exist from the second step on.
So a micro-batch of the first step is a pattern: its storages and events, with other numbers, are those of the same
micro-batch of the second step. What happened once only is left out (cuBLAS's workspace). It is repeated where that is
exact, and computed wherever the pattern shows more than that:

- the rows have another form;
- something stays that is neither a gradient nor the loss (a cache of the model, the first scale of fp16's scaler);
- something ends that was there before, or a gradient is replaced instead of summed in place;
- another CUDA stream was used, or the cache emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.plan.trace.tracker import CUBLAS, Storage, Tracker

if TYPE_CHECKING:
    from hf_recipes.plan.trace.autocast import Simulation

Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
Grads = dict[int, int]  # place of the parameter -> its gradient's storage


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A micro-batch as it happened; its storages and events are numbered from 0."""

    inputs: Any
    storages: tuple[Storage, ...]
    events: tuple[tuple[int, int], ...]
    backward_begins: tuple[int, ...]  # index of an event of these
    backward_path: str
    work: Mapping[str, tuple[int, ...]]
    attention: Mapping[str, int]
    known_numbers: Mapping[int, float]
    before: tuple[int, ...]  # parameters that had a gradient, which was summed in place
    gradients: Mapping[int, tuple[int, Form]]  # place of the parameter -> (storage, its form), where it is new
    loss: tuple[int, Form]


@dataclass(frozen=True, kw_only=True)
class Begin:
    """Where a micro-batch begins: how much of each log there is, and what there is already."""

    inputs: Any
    gradients: Grads
    storage: int
    event: int
    backward: int
    streams: int
    work: Mapping[str, tuple[int, ...]]
    attention: Mapping[str, int]


class RepeatedSteps:
    """`step(place, inputs, run)` for each micro-batch, `place` within its optimizer step."""

    def __init__(self, tracker: Tracker, simulation: Simulation, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.tracker, self.simulation = tracker, simulation
        self.parameters = [one for one in parameters if one.requires_grad]
        self.patterns: dict[int, Pattern | None] = {}
        self.repeated = 0

    def step(self, place: int, inputs: Mapping[str, Any], run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The loss, as `run()` would return it."""
        if place not in self.patterns:
            return self._record(place, inputs, run)
        pattern = self.patterns[place]
        if pattern is not None:
            with self.tracker.paused():
                if pattern.inputs == self._facts_of(inputs) and pattern.before == tuple(self._gradients()):
                    return self._repeat(pattern)
        return run()

    def _gradients(self) -> Grads:
        """The storage of each gradient that there is."""
        return {
            place: self.tracker.number_of(one.grad) for place, one in enumerate(self.parameters) if one.grad is not None
        }

    def _facts_of(self, inputs: Mapping[str, Any]) -> Any:
        """All that a trace knows of a batch, to be compared; None where it is not of plain tensors on the device."""
        found = []
        for name, value in inputs.items():
            if not _is_plain(value):
                return None
            number, tracker = self.tracker.number_of(value), self.tracker
            known = tracker.known_numbers.get(number), tracker.true_counts.get(number), number in tracker.all_false
            found.append((name, _form(value), known))
        return found

    def _record(self, place: int, inputs: Mapping[str, Any], run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Computes the micro-batch, and keeps its pattern where there is one."""
        tracker = self.tracker
        with tracker.paused():
            begin = Begin(
                inputs=self._facts_of(inputs),
                gradients=self._gradients(),
                storage=len(tracker.storages),
                event=len(tracker.events),
                backward=len(tracker.backward_begins),
                streams=len(tracker.streams),
                work={phase: tuple(counts) for phase, counts in tracker.work.items()},
                attention=dict(self.simulation.attention),
            )
        loss = run()
        with tracker.paused():
            self.patterns[place] = self._pattern_since(begin, loss)
        return loss

    def _pattern_since(self, begin: Begin, loss: torch.Tensor) -> Pattern | None:
        """None where a repetition would not be exact."""
        tracker, first = self.tracker, begin.storage
        log, after, loss_number = tracker.events[begin.event :], self._gradients(), tracker.number_of(loss)
        new = {place: number for place, number in after.items() if number >= first}
        made: dict[int, torch.Tensor] = {place: self.parameters[place].grad for place in new}  # type: ignore[misc]
        alive = _alive(log)
        once = {number for number in alive if tracker.storages[number].op == CUBLAS}
        exact = (
            begin.inputs is not None
            and all(number >= first for number, _ in log)
            and alive - once == {*new.values(), loss_number}
            and len(alive - once) == len(new) + 1  # each gradient has its own storage
            and all(after.get(place) == number for place, number in begin.gradients.items())
            and len(tracker.streams) == begin.streams
            and not loss.requires_grad
            and all(map(_is_plain, (loss, *made.values())))
        )
        if not exact:
            return None
        kept = [number for number in range(first, len(tracker.storages)) if number not in once]
        number_of = {number: n for n, number in enumerate(kept)}
        events: list[tuple[int, int]] = []
        index_of: dict[int | None, int | None] = {None: None}  # of an event
        for index, (number, change) in enumerate(log, begin.event):
            index_of[index] = len(events)
            if number not in once:
                events.append((number_of[number], change))
        index_of[len(tracker.events)] = len(events)
        stored = (tracker.storages[number] for number in kept)
        numbers, attention = tracker.known_numbers.items(), self.simulation.attention.items()
        return Pattern(
            inputs=begin.inputs,
            storages=tuple(replace(one, died=index_of[one.died]) for one in stored),
            events=tuple(events),
            backward_begins=tuple(index_of[index] or 0 for index in tracker.backward_begins[begin.backward :]),
            backward_path=tracker.backward_path,
            work={phase: _difference(counts, begin.work.get(phase)) for phase, counts in tracker.work.items()},
            attention={name: calls - begin.attention.get(name, 0) for name, calls in attention},
            known_numbers={number_of[number]: value for number, value in numbers if number in number_of},
            before=tuple(begin.gradients),
            gradients={place: (number_of[number], _form(made[place])) for place, number in new.items()},
            loss=(number_of[loss_number], _form(loss)),
        )

    def _repeat(self, pattern: Pattern) -> torch.Tensor:
        tracker, simulation = self.tracker, self.simulation
        first, begin = len(tracker.storages), len(tracker.events)
        tracker.storages += [
            replace(one, died=None if one.died is None else one.died + begin) for one in pattern.storages
        ]
        tracker.events += [(first + number, change) for number, change in pattern.events]
        tracker.backward_begins += [begin + index for index in pattern.backward_begins]
        tracker.backward_path = pattern.backward_path
        tracker.known_numbers |= {first + number: value for number, value in pattern.known_numbers.items()}
        for phase, more in pattern.work.items():
            counts = tracker.work.setdefault(phase, [0] * len(more))
            counts[:] = [one + other for one, other in zip(counts, more, strict=True)]
        for name, calls in pattern.attention.items():
            simulation.attention[name] = simulation.attention.get(name, 0) + calls
        for one, (number, form) in pattern.gradients.items():
            self.parameters[one].grad = self._made(form, first + number)
        self.repeated += 1
        number, form = pattern.loss
        return self._made(form, first + number)

    def _made(self, form: Form, number: int) -> torch.Tensor:
        made = torch.empty_strided(form[0], form[1], dtype=form[2], device="meta")
        self.tracker.adopt(made, number)
        return made


def _alive(events: Iterable[tuple[int, int]]) -> set[int]:
    """The storages that are not given back."""
    sizes: dict[int, int] = {}
    for number, change in events:
        sizes[number] = sizes.get(number, 0) + change
    return {number for number, size in sizes.items() if size}


def _difference(counts: list[int], before: tuple[int, ...] | None) -> tuple[int, ...]:
    return tuple(one - other for one, other in zip(counts, before or (0,) * len(counts), strict=True))


def _is_plain(tensor: Any) -> bool:
    """Whether `empty_strided` makes the same."""
    return (
        type(tensor) is torch.Tensor
        and tensor.is_meta
        and not tensor.storage_offset()
        and torch.empty_strided(*_form(tensor)[:2], dtype=tensor.dtype, device="meta").untyped_storage().nbytes()
        == tensor.untyped_storage().nbytes()
    )


def _form(tensor: torch.Tensor) -> Form:
    return tensor.shape, tensor.stride(), tensor.dtype
