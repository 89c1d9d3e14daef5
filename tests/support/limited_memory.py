"""A machine with little memory: models that raise torch.OutOfMemoryError where a micro-batch has too many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _NoRoomForGradients(torch.autograd.Function):
    """The identity, whose backward may find no memory."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, check: Callable[[], None]) -> torch.Tensor:
        ctx.check = check
        return hidden.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.check()
        return gradient, None


@contextmanager
def limited_memory(when: str, rows: int, *, from_call: int = 1) -> Iterator[list[int]]:
    """No memory for more than `rows` rows (tokens // 8 where a batch is flattened), `when`: "forward", "backward",
    "evaluation" or "optimizer", from the `from_call`-th training forward (optimizer: step) on. Yields the sizes of
    every forward that was tried."""
    from transformers import BertModel, LlamaModel, MixtralModel

    tried: list[int] = []
    trained = 0

    def refuse(size: int) -> None:
        if size > rows:
            raise torch.OutOfMemoryError(f"CUDA out of memory (injected): {size} rows. Tried to allocate 2.00 GiB.")

    def narrow(kind: Any) -> Callable[..., Any]:
        upstreams = kind.forward

        def forward(self: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
            nonlocal trained
            training = self.training and torch.is_grad_enabled()
            size = (
                len(input_ids)
                if len(input_ids) > 1
                else max(1, input_ids.numel() // 8 if "cu_seq_lens_q" in kwargs else 1)
            )
            tried.append(size if training else -size)
            trained += training
            if (when == "forward" and training and trained >= from_call) or (when == "evaluation" and not training):
                refuse(size)
            output = upstreams(self, input_ids, *args, **kwargs)
            if when == "backward" and training and trained >= from_call:
                for name in ("last_hidden_state", "pooler_output"):
                    if getattr(output, name, None) is not None:
                        output[name] = _NoRoomForGradients.apply(output[name], lambda: refuse(size))
            return output

        kind.forward = forward
        return upstreams

    kinds = (LlamaModel, BertModel, MixtralModel)
    before = [narrow(kind) for kind in kinds]
    step, steps = torch.optim.AdamW.step, 0

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if when == "optimizer" and steps >= from_call:
            refuse(rows + 1)
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = counted  # type: ignore[method-assign]
    try:
        yield tried
    finally:
        torch.optim.AdamW.step = step  # type: ignore[method-assign]
        for kind, upstreams in zip(kinds, before, strict=True):
            kind.forward = upstreams
