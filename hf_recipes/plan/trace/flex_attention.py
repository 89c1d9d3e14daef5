"""attn_implementation: flex_attention without its compiler: its Triton kernel has the outputs and the workspaces of
torch's flash kernel. The mask's blocks (a number for each 128 x 128 scores) are not counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from hf_recipes.plan.trace.upstream_patches import replace_attribute


@contextmanager
def flex_attention_on_meta() -> Iterator[None]:
    """transformers calls `_attend` instead of the compiled kernel, with no mask."""
    import transformers.integrations.flex_attention as flex
    import transformers.masking_utils as masks

    with ExitStack() as stack:
        stack.enter_context(replace_attribute(flex, "compile_friendly_flex_attention", _attend))
        stack.enter_context(replace_attribute(masks, "create_block_mask", lambda *_, **__: None))
        yield


def _attend(query: Any, key: Any, value: Any, *, scale: float | None = None, **arguments: Any) -> Any:
    """(batch, heads, tokens, width), and the scores' log-sum-exp where it is asked for."""
    op = torch.ops.aten._scaled_dot_product_flash_attention
    found, sums = op(query, key, value, 0.0, False, False, scale=scale)[:2]
    if arguments.get("return_aux") is not None:
        return found, SimpleNamespace(lse=sums)
    return (found, sums) if arguments.get("return_lse") else found
