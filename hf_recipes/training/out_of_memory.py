"""A step that runs out of memory is made again in pieces, and the run goes on: `class X(MemoryMixin, Trainer)`.

The same samples in the same order, the same tokens to divide the loss by, the gradients of the whole accumulation
window made anew: effective batch, schedule and optimizer are untouched, and without dropout the step is the unsplit
one but for the order of float sums. The split is kept for the rest of the run (and in its checkpoints), never undone.

Several processes: each splits for itself, without a word to the others, as long as DDP's reduction of this window has
not begun; a micro-batch that fails in the backward that reduces ends the run, since the others wait in the middle of
it. Never made again: what fails in the optimizer's step (weights may be half changed), optimizers that step inside the
backward, sharded training. evaluation/exact.py's pieces are rows, too.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_recipes.checkpoints import folders
from hf_recipes.common.text import first_line
from hf_recipes.errors import Diagnostic, OutOfMemoryError
from hf_recipes.training.batch_split import joined, samples, split

if TYPE_CHECKING:
    from transformers import Trainer

    _Trainer = Trainer
else:
    _Trainer = object

SMALLER = "a shorter max_length, activation_checkpointing: true, or a smaller model; `hf-recipes plan` says what fits"


class OutOfMemory(OutOfMemoryError):
    """Memory that no splitting saves: the run ends, its checkpoints are whole."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The part of a micro-batch that is being computed."""

    share: float  # what its mean loss counts for, times the number of pieces
    closes: bool  # the last one: metrics are told then, once a micro-batch
    told: bool = False  # they have been told already: this is a repetition


class MemoryMixin(_Trainer):
    """Overrides training_step, compute_loss, prediction_step, get_batch_samples and train."""

    model: Any
    recipe: Any  # whose line a message names
    tell: Callable[[str], None]
    splits: list[dict[str, Any]] = []  # noqa: RUF012 - what happened, for the record; replaced by train
    _pieces = 1
    _eval_pieces = 1
    _window: list[Any] = []  # noqa: RUF012 - micro-batches of this optimizer step; replaced, never changed
    _random: list[Any]  # the random state before each micro-batch that has begun
    _told = 0  # micro-batches of the window whose metrics are told
    _piece: Piece | None = None
    _sums: dict[int, Any]
    _passed_forward = False
    _hooked: Any = None
    _metrics: Any  # SFTTrainer's
    _total_train_tokens: int

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self.splits = []
        try:
            return super().train(*args, **kwargs)
        except torch.OutOfMemoryError as problem:
            when = f"step {self.state.global_step + 1}"
            reason = first_line(problem)
            what = f"out of memory outside of forward and backward (the optimizer's step?) in {when}: {reason}"
            raise self._ends(what, "take a smaller optimizer (optim: adamw_bnb_8bit, paged_adamw_8bit)") from problem

    def progress(self) -> dict[str, Any]:
        return {**super().progress(), "pieces": [self._pieces, self._eval_pieces]}  # type: ignore[misc]

    def _take_up(self) -> None:
        found = self._pending or {}  # type: ignore[attr-defined]
        self._pieces, self._eval_pieces = found.get("pieces", (self._pieces, self._eval_pieces))
        super()._take_up()  # type: ignore[misc]

    # --- training ----------------------------------------------------------------------------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._window, self._random, self._told = batches, [], 0
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if not self._can_repeat():
            return super().training_step(model, inputs, num_items_in_batch)
        self._random.append(random_state(self.args.device))
        while True:
            try:
                return self._in_pieces(model, inputs, num_items_in_batch)
            except torch.OutOfMemoryError as caught:
                problem = first_line(caught)  # the exception itself holds the activations
            while True:
                self._split_further(inputs, problem)
                try:
                    self._repeat_the_window(model, num_items_in_batch)
                    break
                except torch.OutOfMemoryError as caught:
                    problem = first_line(caught)

    def _can_repeat(self) -> bool:
        updates_in_backward = any(word in str(self.args.optim) for word in ("lomo", "layerwise"))
        return bool(self._window) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled or updates_in_backward)

    def _in_pieces(self, model: Any, inputs: Any, items: Any, *, repeated: bool = False) -> torch.Tensor:
        """A micro-batch's forward and backward; only its last piece may reduce gradients over the processes."""
        parts = split(inputs, self._pieces) if self._pieces > 1 else [inputs]
        shares = self._shares(parts, items)
        steps = self.current_gradient_accumulation_steps
        self._sums = {}
        total: Any = 0.0
        for n, (part, share) in enumerate(zip(parts, shares, strict=True)):
            closes = n == len(parts) - 1
            if repeated or len(parts) > 1:
                self._piece = Piece(share=share, closes=closes, told=repeated)
            alone = contextlib.nullcontext() if closes and not repeated else self.accelerator.no_sync(model=model)
            self._passed_forward = False
            try:
                with alone, self._watched(model), self._balanced(len(parts)):
                    self.current_gradient_accumulation_steps = steps * len(parts)
                    total = total + super().training_step(model, part, items)
            finally:
                self._piece, self.current_gradient_accumulation_steps = None, steps
        return total

    def _shares(self, parts: list[Any], items: Any) -> list[float]:
        """What each piece's loss is to be multiplied by: 1 where it is a sum over the whole window's items."""
        if len(parts) == 1 or self.compute_loss_func is not None:
            return [1.0] * len(parts)
        if self.model_accepts_loss_kwargs and items is not None:
            return [1.0] * len(parts)
        counted = [int((part["labels"] != -100).sum()) if "labels" in part else samples(part) for part in parts]
        return [count * len(parts) / max(1, sum(counted)) for count in counted]

    def _repeat_the_window(self, model: Any, items: Any) -> None:
        """The gradients of the window's earlier micro-batches, from nothing; the present one's follow."""
        gc.collect()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        if hasattr(model, "require_forward_param_sync"):
            model.require_forward_param_sync = False  # DDP's buffers were sent when the first attempt began
        self.model.zero_grad()
        current = len(self._random) - 1
        for state, batch in zip(self._random[:current], self._window[:current], strict=True):
            restore(state, self.args.device)
            self._in_pieces(model, batch, items, repeated=True)
        restore(self._random[current], self.args.device)

    def _split_further(self, inputs: Any, problem: str) -> None:
        """Doubles the pieces. Raises OutOfMemory if there is nothing left to split, or others wait for this process."""
        step = self.state.global_step + 1
        phase = "backward" if self._passed_forward else "forward"
        if self.args.world_size > 1 and self._passed_forward and self._reduces():
            what = f"out of memory in the backward that reduces gradients, step {step}, rank {self.args.process_index}"
            raise self._ends(f"{what}: {problem}", "halve per_device_train_batch_size, double accumulation")
        if self._pieces >= samples(inputs):
            what = f"one sample does not fit: out of memory in {phase}, step {step}: {problem}"
            raise self._ends(what, f"take {SMALLER}")
        self._pieces *= 2
        self._note(phase, step, self._pieces)

    def _reduces(self) -> bool:
        return bool(getattr(self.model_wrapped, "require_backward_grad_sync", True))

    def _note(self, phase: str, step: int, pieces: int) -> None:
        self.splits.append({"step": step, "phase": phase, "pieces": pieces, "rank": self.args.process_index})
        masks = (
            "; dropout draws other masks than the unsplit step would" if phase != "evaluation" and self._drops() else ""
        )
        print_line = f"out of memory in {phase}, step {step}: from here on a micro-batch is computed in {pieces} pieces"
        self.tell(f"{print_line}; batch, schedule and samples are the same{masks}")

    def _drops(self) -> bool:
        return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in self.model.modules())

    def _ends(self, what: str, fix: str) -> OutOfMemory:
        last = next(
            (p for p in folders.list_checkpoints(Path(str(self.args.output_dir))) if folders.is_complete(p)), None
        )
        kept = f"; {last.name} is whole, --resume goes on from it" if last else ""
        recipe = getattr(self, "recipe", None)
        where = recipe.location(f"{recipe.trainer}.per_device_train_batch_size") if recipe else "the run"
        return OutOfMemory(Diagnostic(location=where, message=what, fix=fix + kept))

    @contextmanager
    def _watched(self, model: Any) -> Iterator[None]:
        """Tells whether the wrapped model's forward was left: from then on DDP expects the backward."""
        if self._hooked is not model:
            self._hooked = model
            model.register_forward_hook(self._leaves_forward)
        yield

    @contextmanager
    def _balanced(self, pieces: int) -> Iterator[None]:
        """Experts add their balancing loss in each forward: the mean over the pieces stands for the micro-batch's."""
        routed = [part for part in self.model.modules() if hasattr(part, "router_aux_loss_coef")] if pieces > 1 else []
        for part in routed:
            part.router_aux_loss_coef /= pieces
        try:
            yield
        finally:
            for part in routed:
                part.router_aux_loss_coef *= pieces

    def _leaves_forward(self, *_: Any) -> None:
        self._passed_forward = True

    # --- the loss and its metrics ------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        piece = self._piece
        if piece is None:
            result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        else:
            with self._once_a_micro_batch(piece):
                result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training and (piece is None or piece.closes) and self._window:
            self._told = max(self._told, len(self._random))
        if piece is None or piece.share == 1.0:
            return result
        return (result[0] * piece.share, result[1]) if return_outputs else result * piece.share

    @contextmanager
    def _once_a_micro_batch(self, piece: Piece) -> Iterator[None]:
        """SFTTrainer gathers and keeps metrics in compute_loss: sums over the pieces are told with the last one."""
        if not hasattr(self, "_total_train_tokens"):
            yield
            return
        gather, calls = self.accelerator.gather_for_metrics, iter(range(10**6))
        kept, tokens = {name: list(values) for name, values in self._metrics["train"].items()}, self._total_train_tokens
        silent = piece.told or not piece.closes or self._told >= len(self._random)

        def collected(value: Any, *_: Any, **__: Any) -> Any:
            n = next(calls)
            self._sums[n] = self._sums[n] + value if n in self._sums else value
            return value if silent else gather(self._sums[n])

        self.accelerator.gather_for_metrics = collected  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.accelerator.gather_for_metrics
            if silent:
                self._metrics["train"].clear()
                self._metrics["train"].update(kept)
                self._total_train_tokens = tokens

    # --- evaluation --------------------------------------------------------------------------------------------------

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        step = super().prediction_step
        while True:
            parts = split(inputs, self._eval_pieces) if self._eval_pieces > 1 else [inputs]
            try:
                found = [step(model, part, prediction_loss_only, ignore_keys) for part in parts]
                return found[0] if len(found) == 1 else joined(found, [samples(part) for part in parts])
            except torch.OutOfMemoryError as caught:
                problem = first_line(caught)
                if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                    raise
            gc.collect()
            if self._eval_pieces >= samples(inputs):
                what = f"one sample does not fit: out of memory in evaluation: {problem}"
                raise self._ends(what, f"take {SMALLER}")
            self._eval_pieces *= 2
            self._note("evaluation", self.state.global_step, self._eval_pieces)


def random_state(device: torch.device) -> dict[str, Any]:
    """What a forward can draw from: Python's, NumPy's, torch's, and the card's generator."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().numpy().tobytes(),  # no tensor: plan's tracker would count it
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "mps": torch.mps.get_rng_state() if device.type == "mps" else None,
    }


def restore(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(torch.frombuffer(bytearray(state["torch"]), dtype=torch.uint8))
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    if state["mps"] is not None:
        torch.mps.set_rng_state(state["mps"])
