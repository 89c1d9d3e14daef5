"""SFTTrainer's head on a CPU: plain logits where they are small, instead of TRL's tiles.

TRL's fused head exists so that the logits need no memory: it makes them in tiles, and again in the backward pass. On a
CPU, where its tiles are folded by torch and not by a kernel, that takes most of a small model's step. Here the model's
own forward gives the logits, and their probabilities are kept for the backward pass.
Loss, entropy and accuracy are the same numbers. Larger logits, other devices and experts' router losses stay TRL's.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional

LARGEST = 256 * 2**20  # bytes of float32 logits of a micro-batch


class _Scores(torch.autograd.Function):
    """(N, V) logits and (N,) labels to (N,) log-probabilities, entropies and whether the label is the likeliest."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = logits.float()
        most, top = values.max(-1)
        shares = torch.softmax(values, -1)  # one pass, where exp, sum and division are three
        norm = most - shares.gather(-1, top.unsqueeze(-1)).squeeze(-1).log()  # the likeliest one's share is exp(0)/sum
        chosen = values.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - norm
        mean = torch.bmm(shares.unsqueeze(1), values.unsqueeze(2)).reshape(-1)  # of the logits, without another (N, V)
        ctx.save_for_backward(shares, labels)
        ctx.dtype = logits.dtype
        entropy, correct = norm - mean, top == labels
        ctx.mark_non_differentiable(entropy, correct)
        return chosen, entropy, correct

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        shares, labels = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        found = shares * -grad
        found.scatter_add_(-1, labels.unsqueeze(-1), grad)
        return found.to(ctx.dtype), None


def use_plain_logits(model: Any) -> None:
    """Replaces the fused head of a causal LM, or of the one in peft's wrapper. Works in place."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    fused, config = inner.forward, inner.config.get_text_config()

    @functools.wraps(fused)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        others = {"shift_labels", "output_router_logits"} & set(kwargs)
        if not fused_lm_head or others or not _is_small(labels, config):
            return fused(*args, fused_lm_head=fused_lm_head, labels=labels, **kwargs)
        count = kwargs.pop("num_items_in_batch", None)
        return _score(fused(*args, **{**kwargs, "use_cache": False}).logits, labels, count)

    inner.forward = forward


def _is_small(labels: torch.Tensor, config: Any) -> bool:
    """Of a CPU, and of what plan traces for one: TRL has no kernel there."""
    from trl.trainer import utils

    if labels.device.type not in ("cpu", "meta") or utils._use_triton(labels.device):
        return False
    if getattr(config, "output_router_logits", False):
        return False
    return bool(labels.numel() * config.vocab_size * 4 <= LARGEST)


def _score(logits: torch.Tensor, labels: torch.Tensor, count: Any) -> Any:
    """What TRL's forward returns. Every position is scored, as there: the shapes do not depend on the labels."""
    from trl.trainer.utils import FusedCausalLMOutput

    mask = labels[:, 1:] != -100
    # The last position predicts nothing: it gets a label, so that the logits need not be copied without it.
    targets = functional.pad(labels[:, 1:].clamp(min=0), (0, 1))
    found = _Scores.apply(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
    scores = (one.view(labels.shape)[:, :-1].masked_fill(~mask, 0) for one in found)
    log_probs, entropy, correct = scores
    loss = -log_probs.sum() / (mask.sum().clamp(min=1) if count is None else count)
    return FusedCausalLMOutput(loss=loss, log_probs=log_probs, entropy=entropy, is_top1=correct, label_mask=mask)
