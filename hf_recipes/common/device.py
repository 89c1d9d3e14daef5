"""The device of this process, for checks and defaults. Only `this_device` imports torch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """What this run computes on. `processes`: the ranks of the launch; `count`: the GPUs of this machine."""

    kind: str  # cpu | cuda | mps
    name: str
    count: int = 0
    capability: tuple[int, int] | None = None  # CUDA compute capability
    memory_bytes: int | None = None  # of one GPU
    bf16: bool = False  # fast bf16: tensor cores of compute capability 8.0 and later
    processes: int = 1


def processes_launched() -> int:
    """Ranks of this launch by the environment that torchrun and accelerate set (1 without a launcher)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def this_device(*, use_cpu: bool = False) -> Device:
    """The device that Trainer will take. Imports torch."""
    import torch

    processes = processes_launched()
    if not use_cpu and torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        facts = torch.cuda.get_device_properties(index)
        return Device(
            kind="cuda",
            name=facts.name,
            count=torch.cuda.device_count(),
            capability=(facts.major, facts.minor),
            memory_bytes=facts.total_memory,
            bf16=facts.major >= 8,
            processes=processes,
        )
    if not use_cpu and torch.backends.mps.is_available():
        return Device(kind="mps", name="Apple GPU (MPS)", count=1, bf16=True, processes=processes)
    return Device(kind="cpu", name=_cpu_name(), count=0, bf16=True, processes=processes)


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:  # Linux only
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def rank() -> int:
    """This process's rank by the launcher's environment; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def say(line: str = "") -> None:
    """Prints on rank 0 only, at once, and above the bars that are on a terminal."""
    if rank() != 0:
        return
    bars = sys.modules.get("tqdm")
    if bars is not None and sys.stderr.isatty():
        bars.tqdm.write(line)  # removes the bars, prints and draws them again
        sys.stdout.flush()
    else:
        print(line, flush=True)


SHARDING = {"fsdp": "ACCELERATE_USE_FSDP", "deepspeed": "ACCELERATE_USE_DEEPSPEED"}  # set by the accelerate file


def sharding(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What spreads one model over the processes: "fsdp", "deepspeed"; empty if nothing does."""
    return [name for name, variable in SHARDING.items() if environment.get(variable, "false").lower() == "true"]


def is_sharded(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the accelerate file spreads one model over the processes."""
    return bool(sharding(environment))
