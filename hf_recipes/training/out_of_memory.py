"""A step that runs out of memory is retried with a smaller micro-batch, and the run continues.

Example: per_device_train_batch_size: 8, gradient_accumulation_steps: 4, and the third micro-batch of step 10 runs out
of memory in its backward. The gradients of the step are dropped, each micro-batch is split into 2 pieces of 4 rows, the
first two are computed again (with the random state that they had), then the third and the fourth. The optimizer steps
once, over the same 32 rows. If 4 rows do not fit either, 4 pieces of 2 rows are tried, and so on down to one row. The
number of pieces stays for the rest of the run, and is saved in its checkpoints.

The same samples in the same order, and the same number of tokens to divide the loss by: effective batch size, schedule
and optimizer are unchanged, and without dropout the step is the unsplit one but for the order of float sums.

Several processes: each splits for itself, without telling the others, as long as DDP's reduction of this window has not
begun; a micro-batch that fails in the backward that reduces ends the run, since the others wait in the middle of it.
Never retried: what fails in the optimizer's step (weights may be half changed), optimizers that step inside the
backward, sharded training. In an evaluation a batch is split in the same way.

`OutOfMemoryRetry` needs no Trainer: training/overrides.py calls it with upstream's methods, and a test with functions
of its own.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from hf_recipes.checkpoints import folders
from hf_recipes.common.text import first_line
from hf_recipes.errors import OutOfMemoryError
from hf_recipes.training.batch_split import count_samples, join_outputs, split_batch
from hf_recipes.training.window import Window, read_random_state, restore_random_state

if TYPE_CHECKING:
    from hf_recipes.recipe.recipe import Recipe

SMALLER = (
    "set a shorter max_length or activation_checkpointing: true, or take a smaller model; "
    "`hf-recipes plan` shows what fits"
)
HALVE = "halve per_device_train_batch_size, double gradient_accumulation_steps"


class SplittingTrainer(Protocol):
    """What the retry reads and sets of a trainer."""

    args: Any
    state: Any
    model: Any
    model_wrapped: Any
    accelerator: Any
    compute_loss_func: Any
    model_accepts_loss_kwargs: Any
    current_gradient_accumulation_steps: Any
    sft_tokens: Any  # SFTTrainer's count of trained tokens; None for Trainer

    @property
    def is_sharded(self) -> bool: ...

    @property
    def sft_metrics(self) -> Any: ...  # SFTTrainer's metrics since the last log line; None for Trainer


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The part of a micro-batch that is being computed."""

    share: float  # what its mean loss counts for, times the number of pieces
    is_last: bool  # of the micro-batch: its metrics are kept then, once
    is_repeated: bool = False  # its metrics have been kept already


class OutOfMemoryRetry:
    """Splits micro-batches and evaluation batches until they fit. `say`: on every rank, each splits on its own."""

    def __init__(self, *, recipe: Recipe | None = None, say: Callable[[str], None] = print) -> None:
        self.recipe, self.say = recipe, say  # the recipe's line is named in a message
        self.splits: list[dict[str, Any]] = []  # what happened in this call of train(), for the record
        self._pieces = 1
        self._eval_pieces = 1
        self._piece: Piece | None = None
        self._sums: dict[int, Any] = {}
        self._passed_forward = False
        self._hooked: Any = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint's progress.json keeps."""
        return {"pieces": [self._pieces, self._eval_pieces]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pieces, self._eval_pieces = state.get("pieces", (self._pieces, self._eval_pieces))

    # --- training ----------------------------------------------------------------------------------------------------

    @contextmanager
    def training(self, trainer: SplittingTrainer) -> Iterator[None]:
        """Around a call of train(). Raises OutOfMemoryError for what is never retried."""
        self.splits = []
        try:
            yield
        except torch.OutOfMemoryError as problem:
            step, reason = trainer.state.global_step + 1, first_line(problem)
            if trainer.is_sharded:  # the others wait in the middle of this step
                what = f"out of memory in step {step}, rank {trainer.args.process_index}: {reason}"
                raise self._error(trainer, what, HALVE) from problem
            what = f"out of memory outside of forward and backward (the optimizer's step?) in step {step}: {reason}"
            fix = "take a smaller optimizer (optim: adamw_bnb_8bit, paged_adamw_8bit)"
            raise self._error(trainer, what, fix) from problem

    def training_step(
        self, trainer: SplittingTrainer, window: Window, step: Callable[..., Any], model: Any, inputs: Any, items: Any
    ) -> torch.Tensor:
        """`step`: upstream's training_step(model, inputs, items), a forward and a backward."""
        if not window.batches or trainer.is_sharded or _steps_inside_backward(trainer.args):
            loss: torch.Tensor = step(model, inputs, items)
            return loss
        window.random_states.append(read_random_state(trainer.args.device))
        while True:
            try:
                return self._in_pieces(trainer, step, model, inputs, items)
            except torch.OutOfMemoryError as caught:
                problem = first_line(caught)  # the exception itself holds the activations
            while True:
                self._split_further(trainer, inputs, problem)
                try:
                    self._repeat_window(trainer, window, step, model, items)
                    break
                except torch.OutOfMemoryError as caught:
                    problem = first_line(caught)

    def _in_pieces(
        self, trainer: SplittingTrainer, step: Callable[..., Any], model: Any, inputs: Any, items: Any, *,
        repeated: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """A micro-batch's forward and backward; only its last piece may reduce gradients over the processes."""
        parts = split_batch(inputs, self._pieces) if self._pieces > 1 else [inputs]
        shares = _loss_shares(trainer, parts, items)
        steps = trainer.current_gradient_accumulation_steps
        self._sums = {}
        total: Any = 0.0
        for n, (part, share) in enumerate(zip(parts, shares, strict=True)):
            is_last = n == len(parts) - 1
            if repeated or len(parts) > 1:
                self._piece = Piece(share=share, is_last=is_last, is_repeated=repeated)
            reduces = is_last and not repeated
            unreduced = contextlib.nullcontext() if reduces else trainer.accelerator.no_sync(model=model)
            self._passed_forward = False
            try:
                with unreduced, self._watch_forward(model), _balance_experts(trainer.model, len(parts)):
                    trainer.current_gradient_accumulation_steps = steps * len(parts)
                    total = total + step(model, part, items)
            finally:
                self._piece, trainer.current_gradient_accumulation_steps = None, steps
        return total

    def _repeat_window(
        self, trainer: SplittingTrainer, window: Window, step: Callable[..., Any], model: Any, items: Any
    ) -> None:
        """The gradients of the window's earlier micro-batches, from nothing; the present one's follow."""
        gc.collect()
        if trainer.args.device.type == "cuda":
            torch.cuda.empty_cache()
        if hasattr(model, "require_forward_param_sync"):
            model.require_forward_param_sync = False  # DDP's buffers were sent when the first attempt began
        trainer.model.zero_grad()
        current = len(window.random_states) - 1
        for state, batch in zip(window.random_states[:current], window.batches[:current], strict=True):
            restore_random_state(state, trainer.args.device)
            self._in_pieces(trainer, step, model, batch, items, repeated=True)
        restore_random_state(window.random_states[current], trainer.args.device)

    def _split_further(self, trainer: SplittingTrainer, inputs: Any, problem: str) -> None:
        """Doubles the pieces. Raises OutOfMemoryError if nothing is left to split, or others wait for this process."""
        step = trainer.state.global_step + 1
        phase = "backward" if self._passed_forward else "forward"
        reduces = bool(getattr(trainer.model_wrapped, "require_backward_grad_sync", True))
        if trainer.args.world_size > 1 and self._passed_forward and reduces:
            rank = trainer.args.process_index
            what = f"out of memory in the backward that reduces gradients, step {step}, rank {rank}: {problem}"
            raise self._error(trainer, what, HALVE)
        if self._pieces >= count_samples(inputs):
            what = f"one sample does not fit: out of memory in {phase}, step {step}: {problem}"
            raise self._error(trainer, what, SMALLER)
        self._pieces *= 2
        self._report_split(trainer, phase, step, self._pieces)

    def _report_split(self, trainer: SplittingTrainer, phase: str, step: int, pieces: int) -> None:
        self.splits.append({"step": step, "phase": phase, "pieces": pieces, "rank": trainer.args.process_index})
        line = f"out of memory in {phase}, step {step}: retrying with each micro-batch in {pieces} pieces; "
        line += "effective batch size, schedule and samples are unchanged"
        if phase != "evaluation" and _has_dropout(trainer.model):
            line += "; dropout draws other masks than in the unsplit step"
        self.say(line)

    def _error(self, trainer: SplittingTrainer, what: str, fix: str) -> OutOfMemoryError:
        saved = folders.latest_complete(Path(str(trainer.args.output_dir)))
        more = f"; --resume continues from {saved.name}, which is complete" if saved else ""
        recipe = self.recipe
        location = recipe.location(f"{recipe.trainer}.per_device_train_batch_size") if recipe else "the run"
        return OutOfMemoryError.at(location, what, fix + more)

    @contextmanager
    def _watch_forward(self, model: Any) -> Iterator[None]:
        """Notes whether the wrapped model's forward was left: from then on DDP expects the backward."""
        if self._hooked is not model:
            self._hooked = model
            model.register_forward_hook(self._leave_forward)
        yield

    def _leave_forward(self, *_: Any) -> None:
        self._passed_forward = True

    # --- the loss and its metrics ------------------------------------------------------------------------------------

    def compute_loss(
        self, trainer: SplittingTrainer, window: Window, compute: Callable[..., Any], model: Any, inputs: Any,
        return_outputs: bool, items: Any,
    ) -> Any:  # fmt: skip
        """`compute`: upstream's compute_loss(model, inputs, return_outputs, items)."""
        piece = self._piece
        if piece is None:
            result: Any = compute(model, inputs, return_outputs, items)
        else:
            with self._metrics_once(trainer, window, piece):
                result = compute(model, inputs, return_outputs, items)
        is_counted = piece is None or (piece.is_last and not piece.is_repeated)
        if trainer.model.training and is_counted and window.batches:
            window.metrics_kept = max(window.metrics_kept, len(window.random_states))
        if piece is None or piece.share == 1.0:
            return result
        return (result[0] * piece.share, result[1]) if return_outputs else result * piece.share

    @contextmanager
    def _metrics_once(self, trainer: SplittingTrainer, window: Window, piece: Piece) -> Iterator[None]:
        """SFTTrainer gathers and keeps metrics in compute_loss: sums over the pieces are kept with the last one."""
        metrics = trainer.sft_metrics
        if metrics is None:
            yield
            return
        gather, calls = trainer.accelerator.gather_for_metrics, iter(range(10**6))
        before, tokens = {name: list(values) for name, values in metrics.items()}, trainer.sft_tokens
        silent = piece.is_repeated or not piece.is_last or window.metrics_kept >= len(window.random_states)

        def sum_pieces(value: Any, *_: Any, **__: Any) -> Any:
            n = next(calls)
            self._sums[n] = self._sums[n] + value if n in self._sums else value
            return value if silent else gather(self._sums[n])

        trainer.accelerator.gather_for_metrics = sum_pieces
        try:
            yield
        finally:
            del trainer.accelerator.gather_for_metrics
            if silent:
                metrics.clear()
                metrics.update(before)
                trainer.sft_tokens = tokens

    # --- evaluation --------------------------------------------------------------------------------------------------

    def prediction_step(self, trainer: SplittingTrainer, predict: Callable[[Any], Any], inputs: Any) -> Any:
        """`predict`: a batch to (loss, logits, labels)."""
        while True:
            parts = split_batch(inputs, self._eval_pieces) if self._eval_pieces > 1 else [inputs]
            try:
                outputs = [predict(part) for part in parts]
                return outputs[0] if len(outputs) == 1 else join_outputs(outputs, list(map(count_samples, parts)))
            except torch.OutOfMemoryError as caught:
                problem = first_line(caught)
                if trainer.is_sharded:
                    raise
            gc.collect()
            if self._eval_pieces >= count_samples(inputs):
                what = f"one sample does not fit: out of memory in evaluation: {problem}"
                raise self._error(trainer, what, SMALLER)
            self._eval_pieces *= 2
            self._report_split(trainer, "evaluation", trainer.state.global_step, self._eval_pieces)


def _steps_inside_backward(args: Any) -> bool:
    return any(name in str(args.optim) for name in ("lomo", "layerwise"))


def _loss_shares(trainer: SplittingTrainer, parts: list[Any], items: Any) -> list[float]:
    """What each piece's loss is multiplied by: 1 where it is a sum over the whole window's items."""
    if len(parts) == 1 or trainer.compute_loss_func is not None:
        return [1.0] * len(parts)
    if trainer.model_accepts_loss_kwargs and items is not None:
        return [1.0] * len(parts)
    counts = [int((part["labels"] != -100).sum()) if "labels" in part else count_samples(part) for part in parts]
    return [count * len(parts) / max(1, sum(counts)) for count in counts]


@contextmanager
def _balance_experts(model: Any, pieces: int) -> Iterator[None]:
    """Experts add their balancing loss in each forward: the mean over the pieces stands for the micro-batch's."""
    routed = [part for part in model.modules() if hasattr(part, "router_aux_loss_coef")] if pieces > 1 else []
    for part in routed:
        part.router_aux_loss_coef /= pieces
    try:
        yield
    finally:
        for part in routed:
            part.router_aux_loss_coef *= pieces


def _has_dropout(model: Any) -> bool:
    return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in model.modules())
