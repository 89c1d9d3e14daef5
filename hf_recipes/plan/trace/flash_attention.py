"""attn_implementation: flash_attention_2 (or 3) without the package: transformers' own path, with torch's flash kernel.

Its outputs are the same: the result and one float32 log-sum-exp a row and head. transformers unpads before it and pads
after it, and that is upstream's code here too. The package's own padding of odd head widths is done as torch does it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from hf_recipes.plan.trace.attention import flash
from hf_recipes.plan.trace.upstream_patches import replace_attribute


@contextmanager
def flash_attention_on_meta() -> Iterator[None]:
    """transformers believes that the package is there and calls the functions of this file."""
    import transformers.modeling_flash_attention_utils as utils
    import transformers.modeling_utils as modeling
    import transformers.models.falcon.modeling_falcon as falcon
    import transformers.models.gpt_neo.modeling_gpt_neo as gpt_neo

    process = utils._lazy_define_process_function(_varlen), utils._lazy_define_process_function(_varlen)

    def functions(*_: Any, **__: Any) -> Any:
        return (_dense, _varlen, None, utils._pad_input, utils._unpad_input), process

    def can_dispatch(model: Any, *_: Any, **__: Any) -> bool:
        if not model._supports_flash_attn:  # upstream's own refusal
            raise ValueError(f"{type(model).__name__} does not support Flash Attention yet")
        return True

    with ExitStack() as stack:
        for module in (utils, modeling):
            stack.enter_context(replace_attribute(module, "lazy_import_flash_attention", functions))
        stack.enter_context(replace_attribute(modeling, "is_kernels_available", lambda *_, **__: False))
        stack.enter_context(replace_attribute(modeling.PreTrainedModel, "_flash_attn_can_dispatch", can_dispatch))
        for module in (falcon, gpt_neo):  # without the package they do not even import it
            if not hasattr(module, "_flash_attention_forward"):
                setattr(module, "_flash_attention_forward", utils._flash_attention_forward)  # noqa: B010
                stack.callback(delattr, module, "_flash_attention_forward")
        yield


def _dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    **_: Any,
) -> torch.Tensor:
    """(batch, tokens, heads, width) as flash_attn_func takes and gives it."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (q, k, v))
    found: torch.Tensor = flash(query, key, value, dropout_p, causal, softmax_scale)
    return found.transpose(1, 2)


def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: Any = None,
    max_seqlen_k: Any = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    **_: Any,
) -> torch.Tensor:
    """(tokens of all rows, heads, width): one row, whose borders cost nothing."""
    return _dense(q[None], k[None], v[None], dropout_p, softmax_scale, causal)[0]
