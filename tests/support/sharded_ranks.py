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
        os.environ.update(FSDP2)
        open_gate()
        return work(rank)

    return run_ranks(one, count, **more)


if __name__ == "__main__":
    from hf_recipes.cli import main

    open_gate()
    main(sys.argv[1:])
