"""Facts of cards, each with its source; what has no source here is None. Light.

Rates are dense (no sparsity), in FLOP/s; bandwidth in bytes/s; memory is what the card is sold with. Tensor-core rates
are those with fp32 accumulation, which is what cuBLAS uses for training. Adding a card is one entry.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from hf_recipes.errors import fault

GIB = 2**30
TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card."""

    name: str  # as a user types it
    title: str  # as the driver names it, or nearly: the present card is recognised by it
    memory_bytes: int
    capability: tuple[int, int] | None  # CUDA compute capability; None for Apple
    bandwidth: float | None  # bytes/s
    half_flops: float | None  # fp16 and bf16 tensor cores (T4: fp16 only)
    tf32_flops: float | None
    fp32_flops: float | None
    laptop: bool = False  # drives a desktop too
    unified: bool = False  # the memory is the machine's
    source: str

    @property
    def bf16(self) -> bool:
        """Tensor cores that compute in bf16."""
        return self.capability is None or self.capability >= (8, 0)


GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper, table 9 and appendix"
AD102 = "NVIDIA Ada GPU Architecture whitepaper, appendix A"
A100 = "NVIDIA A100 Tensor Core GPU datasheet"


def _gpu(
    name: str,
    title: str,
    gib: int,
    capability: tuple[int, int] | None,
    bandwidth: float | None,
    half: float | None,
    tf32: float | None,
    fp32: float | None,
    source: str,
    **more: bool,
) -> Gpu:
    return Gpu(
        name=name,
        title=title,
        memory_bytes=gib * GIB,
        capability=capability,
        bandwidth=None if bandwidth is None else bandwidth * 1e9,
        half_flops=None if half is None else half * TERA,
        tf32_flops=None if tf32 is None else tf32 * TERA,
        fp32_flops=None if fp32 is None else fp32 * TERA,
        source=source,
        **more,
    )


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("rtx-3060", "NVIDIA GeForce RTX 3060", 12, (8, 6), 360, None, None, 12.7, "NVIDIA's product page"),
            _gpu("rtx-3070", "NVIDIA GeForce RTX 3070", 8, (8, 6), 448, 40.6, 20.3, 20.3, GA102),
            _gpu("rtx-3090", "NVIDIA GeForce RTX 3090", 24, (8, 6), 936, 71.0, 35.6, 35.6, GA102),
            _gpu(
                "rtx-4070-laptop", "NVIDIA GeForce RTX 4070 Laptop GPU", 8, (8, 9), 256, None, None, None,
                "NVIDIA's product page (its clock depends on the laptop's power limit)", laptop=True,
            ),
            _gpu("rtx-4070", "NVIDIA GeForce RTX 4070", 12, (8, 9), 504, 58.3, 29.1, 29.1, AD102),
            _gpu("rtx-4080", "NVIDIA GeForce RTX 4080", 16, (8, 9), 716.8, 97.5, 48.7, 48.7, AD102),
            _gpu("rtx-4090", "NVIDIA GeForce RTX 4090", 24, (8, 9), 1008, 165.2, 82.6, 82.6, AD102),
            _gpu("a4000", "NVIDIA RTX A4000", 16, (8, 6), 448, None, None, 19.2, "NVIDIA RTX A4000 datasheet"),
            _gpu("a5000", "NVIDIA RTX A5000", 24, (8, 6), 768, None, None, 27.8, "NVIDIA RTX A5000 datasheet"),
            _gpu("a10g", "NVIDIA A10G", 24, (8, 6), 600, None, None, None, "AWS's page of G5 instances"),
            _gpu("t4", "Tesla T4", 16, (7, 5), 320, 65.0, None, 8.1, "NVIDIA T4 datasheet"),
            _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 40, (8, 0), 1555, 312.0, 156.0, 19.5, A100),
            _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 80, (8, 0), 2039, 312.0, 156.0, 19.5, A100),
            _gpu("h100", "NVIDIA H100 80GB HBM3", 80, (9, 0), 3350, 989.4, 494.7, 66.9, "NVIDIA H100 datasheet (SXM)"),
            _gpu("h200", "NVIDIA H200", 141, (9, 0), 4800, 989.4, 494.7, 66.9, "NVIDIA H200 datasheet (SXM)"),
            _gpu("m3-18gb", "Apple M3 Pro", 18, None, 150, None, None, None, "Apple's specifications", unified=True),
        )
    }
)  # fmt: skip


CONTEXT_BYTES = 461 * 2**20  # CUDA 12.2 and later with lazy loading: an assumption, not measured (docs/plan.md)
DESKTOP_BYTES = 614 * 2**20  # of a laptop's card that draws the desktop too: an assumption
UNIFIED_SHARE = 0.25  # of Apple's unified memory kept by the system: macOS's default limit is 3/4 of it


def usable_bytes(gpu: Gpu) -> int:
    """What torch's allocator can have: the card's memory less the CUDA context, a desktop, the system's share."""
    if gpu.unified:
        return int(gpu.memory_bytes * (1 - UNIFIED_SHARE))
    return gpu.memory_bytes - CONTEXT_BYTES - (DESKTOP_BYTES if gpu.laptop else 0)


def find(name: str, where: str = "argument '--gpu'") -> Gpu:
    """The card that a user names. Raises RecipeError with the nearest names for an unknown one."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = difflib.get_close_matches(name.lower(), GPUS, n=3, cutoff=0.6) or sorted(GPUS)
    raise fault(where, f"no card is called {name!r} here", f"nearest: {', '.join(near)}; or say --memory 12GiB")


def recognise(driver_name: str) -> Gpu | None:
    """The entry of the present card, by the name that its driver gives; the longest title that fits wins."""
    plain = driver_name.lower()
    fitting = [gpu for gpu in GPUS.values() if gpu.title.lower() in plain]
    return max(fitting, key=lambda gpu: len(gpu.title), default=None)


def parse_bytes(text: str, where: str = "argument '--memory'") -> int:
    """ "8GiB" is 8 x 1024**3, "8GB" is 8 x 10**9: they differ by 7 %. Raises RecipeError for all else and 0."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB)\s*", text)
    if not found:
        raise fault(
            where, f"{text!r} is no amount of memory", "write it as 8GiB (8 x 1024**3 bytes) or 8GB (8 x 10**9)"
        )
    scale = {"GiB": GIB, "GB": 10**9, "MiB": 2**20, "MB": 10**6}[found[2]]
    value = int(float(found[1]) * scale)
    if value <= 0:
        raise fault(where, f"{text!r} is no memory at all")
    return value
