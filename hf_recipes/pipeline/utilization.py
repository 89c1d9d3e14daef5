"""Model FLOPs utilization: the arithmetic that training needs, as a share of what its GPUs can do.

The formula is that of PaLM (Chowdhery et al. 2022, appendix B), without what recomputation adds: for a token, 2 FLOPs a
weight of the linear layers in the forward pass, 2 for the gradient of its input, 2 for its own where it is trained, and
12 x layers x width x row length for attention. Only real tokens count: padding is work that nobody asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hf_recipes.catalog.gpus import Gpu, recognise_gpu
from hf_recipes.record import Batch, DeviceFacts, RunRecord, Utilization

FORMULA = "6 x trained + 4 x frozen weights of linear layers + 12 x layers x width x row length (PaLM, appendix B)"


def describe_utilization(model: Any, args: Any, batch: Batch, device: DeviceFacts) -> Utilization:
    """What a token takes and what the GPUs can do; without the speed, which comes later. Empty where the model or the
    GPU is not known well enough."""
    flops = count_flops(model, batch.tokens_per_step / max(1, batch.sequences_per_step))
    gpu = recognise_gpu(device.name, device.memory_bytes) if device.kind == "cuda" else None
    if gpu is None or flops is None:
        return Utilization()
    rate, kind = _peak(gpu, model, args)
    if rate is None:
        return Utilization()
    several = f", {batch.processes} GPUs" if batch.processes > 1 else ""
    peak = f"{gpu.title}, {kind}, dense: {rate / 1e12:g} TFLOP/s{several}"
    return Utilization(flops_per_token=flops, formula=FORMULA, peak_flops=rate * batch.processes, peak=peak)


def with_mfu(record: RunRecord) -> RunRecord:
    """With the share that the measured speed makes."""
    found, speed = record.utilization, record.tokens_per_second
    if not (speed and found.flops_per_token and found.peak_flops):
        return record
    return replace(record, utilization=replace(found, mfu=speed * found.flops_per_token / found.peak_flops))


def count_flops(model: Any, row_length: float) -> float | None:
    """FLOPs of a token, forward and backward. None for what has experts (few of which see a token), or no layers."""
    config = model.config.get_text_config()
    layers, heads = getattr(config, "num_hidden_layers", None), getattr(config, "num_attention_heads", None)
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    if experts or not isinstance(layers, int) or not isinstance(heads, int):
        return None
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    weights = 0.0
    for module in model.modules():
        weight = getattr(module, "weight", None)
        # quantised weights are packed: their shape is the layer's
        shape = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if shape == (None, None) and type(module).__name__ == "Conv1D" and weight is not None:  # GPT-2's linear layer
            shape = tuple(weight.shape)
        if weight is None or not all(isinstance(size, int) for size in shape) or hasattr(module, "base_layer"):
            continue
        weights += shape[0] * shape[1] * (6 if weight.requires_grad else 4)  # type: ignore[operator]
    return weights + 12 * layers * width * row_length


def _peak(gpu: Gpu, model: Any, args: Any) -> tuple[float | None, str]:
    """The GPU's rate for the matrix products of this run, and its name."""
    if args.bf16 or args.fp16 or str(model.dtype) in ("torch.bfloat16", "torch.float16"):
        return gpu.half_flops, "16-bit"
    if args.tf32 and gpu.tf32_flops:
        return gpu.tf32_flops, "tf32"
    return gpu.fp32_flops, "fp32"
