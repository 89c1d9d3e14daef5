"""What Trainer does beside the step that holds memory or gives it back: evaluations as the run makes them, the cache
emptied between steps, activations sent to the CPU. field_effects.py has the fields that come here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_recipes.plan.trace.cuda_allocator import EMPTY_CACHE
from hf_recipes.plan.trace.upstream_patches import replace_attribute

if TYPE_CHECKING:
    from hf_recipes.plan.trace.tracker import Tracker
    from hf_recipes.recipe.recipe import Recipe

REPORTED_ROW_BYTES = 1024  # bytes of a row


@contextmanager
def patch_trainer(tracker: Tracker) -> Iterator[None]:
    """On a GPU: torch_empty_cache_steps is an event of the log, and what checkpointing offloads leaves the GPU."""
    import transformers.modeling_utils as modeling
    import transformers.trainer as trainer

    class SaveOnCpu(torch.autograd.graph.saved_tensors_hooks):
        """Pinned memory of the CPU is not the GPU's: a saved tensor is gone, and allocated again where it is needed."""

        def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
            super().__init__(self.pack, self.unpack)

        @staticmethod
        def pack(tensor: torch.Tensor) -> Any:
            return (tensor.shape, tensor.dtype) if tensor.device.type == "meta" else tensor

        @staticmethod
        def unpack(packed: Any) -> torch.Tensor:
            if isinstance(packed, torch.Tensor):
                return packed
            return torch.empty(packed[0], dtype=packed[1], device="meta")

    def clear_device_cache(garbage_collection: bool = False) -> None:
        tracker.events.append(EMPTY_CACHE)

    with ExitStack() as stack:
        stack.enter_context(replace_attribute(trainer, "clear_device_cache", clear_device_cache))
        if hasattr(modeling, "save_on_cpu"):  # newer than the oldest supported transformers
            stack.enter_context(replace_attribute(modeling, "save_on_cpu", SaveOnCpu))
        yield


def list_evaluations(recipe: Recipe) -> tuple[torch.dtype | None, ...]:
    """The evaluations of a run, each with the dtype that the model is cast to for it (None: as it is trained). Trainer
    casts outside of training only: bf16_full_eval leaves the evaluations between steps as they are."""
    training = recipe.training
    inside = training.get("eval_strategy") not in (None, False, "no") or bool(training.get("eval_on_start"))
    half = {True: torch.bfloat16}.get(bool(training.get("bf16_full_eval")))
    if training.get("fp16_full_eval"):
        half = torch.float16
    return (None, half) if inside and half is not None else (half,)


def evaluate_once(trainer: Any, dtype: torch.dtype | None) -> int:
    """One batch of the evaluation set as Trainer.evaluation_loop handles it (ours keeps two numbers a row, upstream's
    what preprocess_logits_for_metrics leaves). Returns the bytes that stay on the device of each row until the end."""
    from accelerate.utils import send_to_device

    args, model = trainer.args, trainer.model
    if dtype is not None:
        model.to(dtype=dtype)
    rows = [trainer.eval_dataset[i % len(trainer.eval_dataset)] for i in range(args.eval_batch_size)]
    model.eval()
    with trainer.parts.evaluation.all_rows_in_order(trainer):
        batch = trainer.data_collator(rows)
    lengths = batch.pop("example_lengths", None)
    batch = send_to_device(dict(batch), args.device)
    if lengths is not None:
        batch["example_lengths"] = lengths
    _, logits, labels = trainer.prediction_step(model, batch, prediction_loss_only=False)
    if trainer.preprocess_logits_for_metrics is not None and logits is not None:
        logits = trainer.preprocess_logits_for_metrics(logits, labels)
    model.train()
    return _nbytes((logits, labels)) // args.eval_batch_size


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_nbytes, value)) if isinstance(value, tuple | list) else 0


def describe_untraced(recipe: Recipe, row_bytes: int) -> list[str]:
    """Notes on what the trace does not count: the size of the evaluation set, texts that are sampled."""
    found = []
    if row_bytes >= REPORTED_ROW_BYTES and not recipe.training.get("eval_accumulation_steps"):
        found.append(
            f"evaluation: {row_bytes:,} bytes of each row stay on the GPU until its end, which are not counted "
            f"({row_bytes * 10_000 / 2**20:,.0f} MiB for 10,000 rows); eval_accumulation_steps bounds them"
        )
    if recipe.get("sample_prompts"):
        found.append("sample_prompts: one text at a time with its cache, which is not traced: less than a batch")
    return found
