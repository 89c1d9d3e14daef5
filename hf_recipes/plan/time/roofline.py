"""The least time that traced work can take on a GPU and its machine. Imports neither torch nor transformers.

The GPU: matrix products take the longer of their arithmetic and their traffic, all other kernels their traffic. The
machine: each operation takes its Python and its launch. The two run side by side, so the longer one counts.
"""

from __future__ import annotations

from hf_recipes.catalog.gpus import Gpu
from hf_recipes.plan.trace.result import Work

FORMULA = 2  # of step_seconds: records with another one are not used
# Seconds of one operation from eager PyTorch under Trainer, forward and backward: small recipes on an H100's machine
# took 32 to 56 us (recipes/results/lab, checked by a test; a bare kernel in a loop 10 us).
HOST_SECONDS = 35e-6


def roofline_seconds(work: Work, gpu: Gpu, *, tf32: bool = False, share: float = 1.0) -> float | None:
    """Seconds of one phase at the GPU's rates; None where its bandwidth or its rate has no source. `share`: of the
    tokens that the work was traced with."""
    full = (gpu.tf32_flops if tf32 else None) or gpu.fp32_flops
    half = gpu.half_flops
    other = work.flops - work.half_flops
    if gpu.bandwidth is None or (other > 0 and full is None) or (work.half_flops > 0 and half is None):
        return None
    products = other / full if full and other > 0 else 0.0
    products += work.half_flops / half if half and work.half_flops else 0.0
    products = max(products, work.matmul_bytes / gpu.bandwidth)
    seconds = products + (work.bytes_moved - work.matmul_bytes) / gpu.bandwidth
    return max(seconds * share, work.kernels * HOST_SECONDS)
