"""Longformer's global attention, whose sizes are data: a classifier gives it to the first token of each row, other
tasks to none (transformers/models/longformer/modeling_longformer.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from hf_recipes.plan.trace.upstream_patches import replace_attribute

if TYPE_CHECKING:
    from hf_recipes.plan.trace.tracker import Tracker

MODEL_TYPE = "longformer"


@contextmanager
def global_attention(tracker: Tracker, classifies: bool) -> Iterator[None]:
    """`classifies`: whether rows are classified, not tokens."""
    from transformers.models.longformer import modeling_longformer as longformer

    indices = longformer.LongformerSelfAttention._get_global_attn_indices
    forward = longformer.LongformerEncoder.forward

    def first_tokens(mask: Any) -> Any:
        tracker.set_true_places(mask, mask.shape[0])
        return indices(mask)

    def without(encoder: Any, *args: Any, **kwargs: Any) -> Any:
        before, tracker.false_tests = tracker.false_tests, (*tracker.false_tests, "gt")
        try:
            return forward(encoder, *args, **kwargs)
        finally:
            tracker.false_tests = before

    with ExitStack() as stack:
        owner = longformer.LongformerSelfAttention
        stack.enter_context(replace_attribute(owner, "_get_global_attn_indices", staticmethod(first_tokens)))
        if not classifies:
            stack.enter_context(replace_attribute(longformer.LongformerEncoder, "forward", without))
        yield
