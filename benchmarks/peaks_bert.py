"""BERT-large of transformers' performance guide (2022) through the package's own path, as the software of then behaved.

What differed then: eager attention only, with a mask of the parameters' dtype (fp32 under autocast) that was always
added (transformers 4.16, modeling_bert.py, BertSelfAttention.forward, and modeling_utils.get_extended_attention_mask);
softmax kept its input for the backward as well as its output (torch 1.10; pytorch #65242 ended that in 1.11); gradients
kept and zeroed (zero_grad(set_to_none=False)); transformers' own AdamW (one tensor at a time); bitsandbytes' 8-bit Adam
on the embeddings, too. Nothing is fitted: the guide gives the CUDA context itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_recipes.plan import replay_trace
from hf_recipes.plan.trace.result import Trace
from hf_recipes.plan.trace.trace import trace_here
from hf_recipes.recipe.recipe import Recipe

CAPABILITY = (7, 0)  # V100


def recipe_of(row: dict[str, Any]) -> Recipe:
    words = {"output_dir": "runs/bert-large", "per_device_train_batch_size": row["micro_batch"]}
    words |= {"gradient_accumulation_steps": row["accumulation"], "optim": "adamw_torch", **row["words"]}
    model = {"pretrained_model_name_or_path": "bert-large-uncased", "attn_implementation": "eager"}
    sections = {
        "task": "text-classification",
        "model": model,
        "dataset": {"path": "generated", "max_length": 512},
        "TrainingArguments": words,
    }
    return Recipe(path="bert-large", sections=sections, locations={})


def peak(row: dict[str, Any], context_mib: int) -> tuple[int, Trace]:
    """(bytes that nvidia-smi would show, the trace) for a row of published/bert_large.json."""
    with _software_of_2022():
        found = trace_here(recipe_of(row), capability=CAPABILITY, evaluation=False)
    return replay_trace(found).peak + context_mib * 2**20, found


class AdamW2022(torch.optim.Optimizer):
    """What transformers.AdamW, Trainer's default of then, allocates: two states, one temporary a tensor."""

    def __init__(self, params: Any, lr: float = 1e-3, eps: float = 1e-8, **_: Any) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
                state["exp_avg"].mul_(0.9).add_(param.grad, alpha=0.1)
                state["exp_avg_sq"].mul_(0.999).addcmul_(param.grad, param.grad, value=0.001)
                denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
                param.addcdiv_(state["exp_avg"], denominator, value=-group["lr"])


class SoftmaxOfTorch110(torch.autograd.Function):
    """What its derivative kept: input and output."""

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        result = torch.ops.aten._softmax(scores, -1, False)
        ctx.save_for_backward(scores, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        scores, result = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(gradient, result, -1, scores.dtype)


def attention_of_2022(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers 4.16's BertSelfAttention between the projections; `attention_mask` of today is not used."""
    scores = torch.matmul(query, key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    mask = torch.zeros(query.shape[0], 1, 1, key.shape[2], dtype=torch.float32, device=query.device)
    scores = (scores + mask).float()  # autocast: softmax is one of those that run in fp32
    weights = torch.nn.functional.dropout(SoftmaxOfTorch110.apply(scores), p=dropout, training=module.training)
    return torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous(), weights


@contextmanager
def _software_of_2022() -> Iterator[None]:
    import transformers.models.bert.modeling_bert as bert
    from bitsandbytes.optim import GlobalOptimManager

    zero_model, zero_optimizer = torch.nn.Module.zero_grad, torch.optim.Optimizer.zero_grad
    override, adamw = GlobalOptimManager.register_module_override, torch.optim.AdamW
    torch.nn.Module.zero_grad = lambda self, set_to_none=False: zero_model(self, set_to_none=False)
    torch.optim.Optimizer.zero_grad = lambda self, set_to_none=False: zero_optimizer(self, set_to_none=False)
    torch.optim.AdamW = AdamW2022
    GlobalOptimManager.register_module_override = lambda *_: None
    attention, bert.eager_attention_forward = bert.eager_attention_forward, attention_of_2022
    try:
        yield
    finally:
        torch.nn.Module.zero_grad, torch.optim.Optimizer.zero_grad = zero_model, zero_optimizer
        torch.optim.AdamW = adamw
        bert.eager_attention_forward = attention
        GlobalOptimManager.register_module_override = override
