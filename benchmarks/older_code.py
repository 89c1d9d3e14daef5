"""Code of older releases whose memory differs from today's, replayed: copied from them, each with its place.

transformers 4.48.1 where nothing else is named (Apache License 2.0, as trl's).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional as F

from hf_recipes.plan.trace.upstream_patches import replace_attribute


@contextmanager
def causal_loss(dtype: torch.dtype | None = torch.float32) -> Iterator[None]:
    """loss/loss_utils.py, ForCausalLMLoss: the logits in fp32 and a shifted copy of them. `dtype` None: as
    modeling_gpt_bigcode.py and modeling_gpt_neox.py had it, without fp32."""
    from transformers.loss import loss_utils

    def loss(
        logits: torch.Tensor,
        labels: torch.Tensor,
        vocab_size: int,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        **_: Any,
    ) -> torch.Tensor:
        if dtype is not None:
            logits = logits.to(dtype)
        shift_logits = logits[..., :-1, :].contiguous()
        shift_labels = labels[..., 1:].contiguous()
        shift_logits = shift_logits.view(-1, vocab_size)
        shift_labels = shift_labels.view(-1)
        reduction = "sum" if num_items_in_batch is not None else "mean"
        found = F.cross_entropy(shift_logits, shift_labels, ignore_index=ignore_index, reduction=reduction)
        return found / num_items_in_batch if reduction == "sum" else found

    with patch.dict(loss_utils.LOSS_MAPPING, {"ForCausalLM": loss}):
        yield


@contextmanager
def logits_in_fp32() -> Iterator[None]:
    """transformers 4.45.2, modeling_granite.py: the logits become fp32 before the loss, and the others are gone."""
    from hf_recipes.models import build

    original = build.build_from_config

    def build_from_config(*arguments: Any) -> Any:
        model = original(*arguments)
        model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: output.float())
        return model

    with replace_attribute(build, "build_from_config", build_from_config):
        yield


@contextmanager
def autocast_beside_fsdp() -> Iterator[None]:
    """accelerate 1.0.1, accelerator.py, prepare_model: FSDP1's model runs under autocast, and its outputs become fp32.
    FSDP2's does not."""
    import accelerate.accelerator as upstream

    original = upstream.fsdp2_prepare_model

    def prepare(accelerator: Any, model: Any) -> Any:
        model = original(accelerator, model)
        if accelerator.native_amp:
            context = upstream.get_mixed_precision_context_manager(True, accelerator.autocast_handler)
            forward = context(model.forward.__func__)
            model.forward = MethodType(forward, model)
            model.forward = MethodType(upstream.convert_outputs_to_fp32(model.forward.__func__), model)
        return model

    with replace_attribute(upstream, "fsdp2_prepare_model", prepare):
        yield


@contextmanager
def kbit_preparation() -> Iterator[None]:
    """trl 0.13.0, trainer/sft_trainer.py: prepare_model_for_kbit_training makes all that is not quantised fp32, and
    peft_module_casting_to_bf16 (trainer/utils.py) makes the embeddings and the head bf16 again."""
    from peft import prepare_model_for_kbit_training

    from hf_recipes.models import build

    original = build.add_adapter

    def add_adapter(recipe: Any, model: Any, *rest: Any) -> Any:
        model.is_loaded_in_4bit = True
        prepared = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        adapted = original(recipe, prepared, *rest)
        for name, module in adapted.named_modules():
            weight = getattr(module, "weight", None)
            if "norm" not in name and ("lm_head" in name or "embed_tokens" in name) and weight is not None:
                module.to(torch.bfloat16)
        return adapted

    with replace_attribute(build, "add_adapter", add_adapter):
        yield
