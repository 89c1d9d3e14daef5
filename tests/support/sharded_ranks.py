"""FSDP2 on two CPU processes: accelerate turns it on for GPU back ends only, and `open_gate` adds the CPU to them.

Nothing else is replaced: `fully_shard` on gloo is torch's own. `accelerate launch -m tests.support.sharded_ranks run R`
is `hf-recipes run R` with the gate open; `run_fsdp` does the same in forked processes, which is faster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from tests.support.forks import run_ranks

# What `accelerate launch --config_file accelerate_configs/fsdp2.yaml` sets.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


# What `accelerate launch --config_file accelerate_configs/deepspeed_zero2.yaml` sets; ZeRO-3 has another stage.
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "false",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
    "ACCELERATE_GRADIENT_CLIPPING": "auto",
    "DS_ACCELERATOR": "cpu",
}


def shard(launch: str) -> None:
    """This rank's part of a sharded launch, before accelerate looks: "FSDP2", "ZeRO-2" or "ZeRO-3"."""
    if launch == "FSDP2":
        os.environ.update(FSDP2)
        open_gate()
    else:
        os.environ.update(ZERO, ACCELERATE_DEEPSPEED_ZERO_STAGE=launch.removeprefix("ZeRO-"))
        use_gloo_alone()


def run_zero(work: Callable[[int], object], stage: int, count: int = 2, **more: Any) -> tuple[int, str]:
    """`run_ranks` with DeepSpeed's ZeRO-2 or ZeRO-3."""

    def one(rank: int) -> object:
        shard(f"ZeRO-{stage}")
        return work(rank)

    return run_ranks(one, count, **more)


def use_gloo_alone() -> None:
    """DeepSpeed would compile a kernel of its own for the sums of CPU processes."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def open_gate() -> None:
    """Lets accelerate take FSDP where it finds several CPU processes."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    upstream = AcceleratorState.__init__

    def begin(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        upstream(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = begin  # type: ignore[method-assign]


def run_fsdp(work: Callable[[int], object], count: int = 2, **more: Any) -> tuple[int, str]:
    """`run_ranks` with FSDP2: exit code and output of `work(rank)` in `count` forked processes."""

    def one(rank: int) -> object:
        shard("FSDP2")
        return work(rank)

    return run_ranks(one, count, **more)


if __name__ == "__main__":
    from hf_recipes.cli import main

    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        use_gloo_alone()
    open_gate()
    main(sys.argv[1:])
