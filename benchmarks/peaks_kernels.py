"""Liger-Kernel's published peaks of upstream's own modules: the set-ups of its benchmark scripts, on meta tensors.

Each returns the bytes of torch.cuda.max_memory_allocated that the script's last run would see. The scripts run their
modes "full", "forward", "backward" one after the other in one process: cuBLAS's two workspaces are there in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from watch import account_of, watching

CAPABILITY = {"A100": (8, 0), "4090": (8, 9), "H100": (9, 0)}
RUNS = 3  # the script takes ten and their median: the first differs, the others are equal


def peak(row: dict[str, Any]) -> int:
    """Bytes for a row of published/liger_kernels.json."""
    capability = next(value for name, value in CAPABILITY.items() if name in row["gpu"])
    prepare = SETUPS[row["kernel"]]
    # A row of RTX 4090 or A100 has cuBLAS's 8.125 MiB; the H100 rows have no matrix product.
    with watching(capability) as tracker, torch.device("meta"):
        once = prepare(row)
        if row["mode"] != "full" and row["kernel"] in MODES:
            warm = prepare({**row, "mode": "full"})
            warm()
            del warm
        for _ in range(RUNS):
            since = len(tracker.events)
            once()
        return account_of(tracker, since).allocated


def _mlp(row: dict[str, Any]) -> Callable[[], Any]:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    words = {name: row[name] for name in ("hidden_size", "intermediate_size", "hidden_act")}
    x = torch.randn(
        row.get("bsz", row.get("B")), row["T"], row["hidden_size"], dtype=torch.bfloat16, requires_grad=True
    )
    layer = LlamaMLP(config=LlamaConfig(**words)).to(torch.bfloat16)

    def forward() -> Any:
        return layer(x)

    def full() -> None:
        y = forward()
        y.backward(torch.randn_like(y), retain_graph=True)

    if row["mode"] == "forward":
        return forward
    if row["mode"] == "full":
        return full
    given, y = torch.randn_like(x), forward()
    return lambda: y.backward(given, retain_graph=True)


class _RMSNorm(nn.Module):
    """The script's own copy of Llama's."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        dtype = hidden.dtype
        hidden = hidden.to(torch.float32)
        variance = hidden.pow(2).mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self.eps)
        return self.weight * hidden.to(dtype)


def _norm(row: dict[str, Any]) -> Callable[[], Any]:
    """Both providers' modules are built, whichever is measured."""
    width = row.get("H", row.get("N"))
    rms = row["kernel"] == "rms_norm"
    layers = [(_RMSNorm(width) if rms else nn.LayerNorm(width, eps=1e-6)) for _ in range(2)]
    x = torch.randn(row["M"], width, dtype=getattr(torch, row["dtype"].removeprefix("torch.")))
    given = torch.randn_like(x)
    x.requires_grad_(True)

    def full() -> Any:
        y = layers[1](x)
        y.backward(given, retain_graph=True)

    return full


def _rope(row: dict[str, Any]) -> Callable[[], Any]:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    length, hidden = row.get("seq_len", row.get("T")), row.get("hidden_size", row.get("H"))
    heads, shared, width = row["num_q_heads"], row["num_kv_heads"], hidden // row["num_q_heads"]
    inverse = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
    q = torch.randn(1, length, heads, width, requires_grad=True, dtype=torch.bfloat16).transpose(1, 2)
    k = torch.randn(1, length, shared, width, requires_grad=True, dtype=torch.bfloat16).transpose(1, 2)
    dq, dk = torch.randn_like(q), torch.randn_like(k)
    places = torch.arange(length).unsqueeze(0)
    # LlamaRotaryEmbedding of transformers 4.44, of the script's day: a matrix product (today's is elementwise).
    angles = (inverse[None, :, None] @ places[:, None, :].float()).transpose(1, 2)
    both = torch.cat((angles, angles), dim=-1)
    cos, sin = both.cos().to(torch.bfloat16), both.sin().to(torch.bfloat16)
    del angles, both

    def full() -> None:
        found = apply_rotary_pos_emb(q, k, cos, sin)
        torch.autograd.grad(found, (q, k), (dq, dk), allow_unused=True, retain_graph=True)

    return full


def _cross_entropy(row: dict[str, Any]) -> Callable[[], Any]:
    loss = nn.CrossEntropyLoss()
    logits = torch.randn(row["B"] * row["T"], row["V"], requires_grad=True)
    target = torch.randint(row["V"], (row["B"] * row["T"], 1)).squeeze(1)
    return lambda: loss(logits, target).backward()


def _head(row: dict[str, Any]) -> Callable[[], Any]:
    """Both providers' heads are built."""
    heads = [nn.Linear(row["H"], row["V"], bias=False, dtype=torch.bfloat16) for _ in range(2)]
    loss = nn.CrossEntropyLoss()
    x = torch.randn(row["BT"], row["H"], requires_grad=True, dtype=torch.bfloat16)
    target = torch.randint(row["V"], (row["BT"], 1)).squeeze(1)
    return lambda: loss(heads[0](x), target).backward()


MODES = ("swiglu", "geglu", "tiled_swiglu", "tiled_geglu")
SETUPS: dict[str, Callable[[dict[str, Any]], Callable[[], Any]]] = {
    **dict.fromkeys(MODES, _mlp),
    **dict.fromkeys(("rms_norm", "layer_norm"), _norm),
    "rope": _rope,
    "cross_entropy": _cross_entropy,
    "fused_linear_cross_entropy": _head,
}
