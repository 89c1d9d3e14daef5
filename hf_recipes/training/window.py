"""The micro-batches of one optimizer step, the random state before each, and upstream's sums when the step began."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """What a forward can draw from."""

    python: Any
    numpy: Any
    cpu: bytes  # torch's; no tensor: plan's tracker would count it
    cuda: torch.Tensor | None
    mps: torch.Tensor | None


def read_random_state(device: torch.device) -> RandomState:
    return RandomState(
        python=random.getstate(),
        numpy=np.random.get_state(),
        cpu=torch.get_rng_state().numpy().tobytes(),
        cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        mps=torch.mps.get_rng_state() if device.type == "mps" else None,
    )


def restore_random_state(state: RandomState, device: torch.device) -> None:
    """The inverse of `read_random_state`."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(torch.frombuffer(bytearray(state.cpu), dtype=torch.uint8))
    if state.cuda is not None:
        torch.cuda.set_rng_state(state.cuda, device)
    if state.mps is not None:
        torch.mps.set_rng_state(state.mps)


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """What upstream has summed up when an optimizer step begins."""

    loss: torch.Tensor  # since the last log line
    tokens_seen: int
    flos: int
    sft_metric_lengths: dict[str, int] | None = None  # SFTTrainer's: values per metric since the last log line
    sft_tokens: int | None = None


@dataclass(kw_only=True)
class Window:
    """The accumulation window: what `get_batch_samples` gave for one optimizer step. An empty one is before training.

    Example: with gradient_accumulation_steps: 4, `batches` has 4 entries; while the third is computed, `random_states`
    has 3, and they are what the three forwards can be repeated with.
    """

    batches: list[Any] = field(default_factory=list)
    items: Any = None  # labels of the whole step, by which its loss is divided; None where nobody counts them
    random_states: list[RandomState] = field(default_factory=list)  # before each micro-batch that has begun
    metrics_kept: int = 0  # micro-batches whose metrics SFTTrainer has kept
    before: StepSums | None = None  # None without a guard: nobody would put them back
