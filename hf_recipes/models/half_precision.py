"""Casts a model to fp16 as apex's O2 did: fp16 parameters, norms that compute in fp32, heads that return fp32.

The part of training/master_weights.py that depends on the model; others need only `prepare_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_recipes.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The last module of upstream's classifiers, whose loss is taken in the logits' dtype: an fp16 loss has an fp16
# gradient, where the first loss scale, 65536, is already infinite. Causal LMs are found by get_output_embeddings().
HEADS = ("classifier", "score", "qa_outputs", "classification_head", "logits_proj")
_PREPARED = "_hf_recipes_half_precision"


class _InFp32:
    """A view of a module for its own `forward`, as `self`: its floating tensors read as fp32."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_module":  # asked by copy and pickle before __init__
            raise AttributeError(name)
        value = getattr(self._module, name)
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class _Fp32Norm:
    """The forward of a norm layer, run in fp32 on fp32 copies of its weights; the result has the input's dtype again.

    Autograd casts the gradient back to the fp16 parameter. A plain object in the instance's `forward`: no parameter is
    renamed, so that state dicts and saved files are those of the upstream class.
    """

    def __init__(self, module: nn.Module) -> None:
        self._view = _InFp32(module)

    def __call__(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        forward = type(self._view._module).forward
        args = tuple(_to_fp32(value) for value in args)
        kwargs = {name: _to_fp32(value) for name, value in kwargs.items()}
        return forward(self._view, _to_fp32(hidden), *args, **kwargs).to(hidden.dtype)


def _to_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _fp32_output(module: nn.Module, args: Any, output: Any) -> Any:
    return _to_fp32(output)


def is_norm(module: nn.Module) -> bool:
    """Whether this is a norm layer of the kinds that upstream's language models use (LayerNorm, LlamaRMSNorm, ...)."""
    return type(module).__name__.endswith("Norm")


def prepare_model(model: PreTrainedModel) -> PreTrainedModel:
    """Casts every parameter to fp16 in place, lets norms compute in fp32 and heads return fp32 logits; returns `model`.

    Buffers keep their dtype, as `from_pretrained(dtype=float16)` leaves them (rotary frequencies are fp32). Tied
    parameters stay tied. Calling it twice changes nothing. The masters start from these rounded weights, as apex's did.

    Raises ModelError if upstream keeps parts of this model in fp32, or if a weight does not fit fp16.
    """
    if getattr(model, _PREPARED, False):
        return model
    fp32_names = set(model._keep_in_fp32_modules or ()) | set(model._keep_in_fp32_modules_strict or ())
    for name, param in model.named_parameters():
        if any(part in name for part in fp32_names):
            raise ModelError.at(
                "master_weights",
                f"transformers keeps {name} of {type(model).__name__} in float32, because it fails in float16",
                "remove master_weights and set bf16: true",
            )
        half = param.detach().to(torch.float16)
        if not torch.equal(half.isfinite(), param.detach().isfinite()):
            raise ModelError.at(
                "master_weights",
                f"{name} holds a weight above 65504, the largest number of float16",
                "remove master_weights and set bf16: true",
            )
        param.data = half
    for module in model.modules():
        if is_norm(module):
            module.forward = _Fp32Norm(module)  # type: ignore[assignment, method-assign]
    heads = [getattr(model, name, None) for name in HEADS] + [model.get_output_embeddings()]
    for head in {id(head): head for head in heads if isinstance(head, nn.Module)}.values():
        head.register_forward_hook(_fp32_output)
    model.config.dtype = torch.float16
    setattr(model, _PREPARED, True)
    return model
