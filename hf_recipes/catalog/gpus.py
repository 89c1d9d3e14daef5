"""Facts of GPUs (gpus.toml, each with its source), and amounts of memory as a user writes them.

Imports neither torch nor transformers; the table is read when it is first asked for.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from hf_recipes.common.text import GIB, format_bytes
from hf_recipes.errors import PlanError

TABLE = "gpus.toml"
TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. Rates are dense, in FLOP/s; what has no source is None."""

    name: str  # as a user types it
    title: str  # the driver's full name of it: the present GPU is recognised by it
    memory_bytes: int  # as sold
    capability: tuple[int, int] | None  # CUDA compute capability; None for Apple
    bandwidth: float | None  # bytes/s
    half_flops: float | None  # fp16 and bf16 tensor cores (before Ampere: fp16 only)
    tf32_flops: float | None
    fp32_flops: float | None
    laptop: bool = False  # drives a desktop too
    unified: bool = False  # the memory is the machine's
    source: str
    visible_bytes: int | None = None  # torch.cuda's total_memory; None: not known, memory_bytes stands for it
    visible_source: str = ""
    measured_context: int | None = None  # bytes of its CUDA context, the most that is known; None: not known
    context_source: str = ""

    @property
    def bf16(self) -> bool:
        """Tensor cores that compute in bf16."""
        return self.capability is None or self.capability >= (8, 0)

    @property
    def seen_bytes(self) -> int:
        """The memory that torch can see, context included."""
        return self.memory_bytes if self.visible_bytes is None else self.visible_bytes


@cache
def known_gpus() -> Mapping[str, Gpu]:
    """Name -> GPU, in the order of gpus.toml."""
    table = tomllib.loads((files("hf_recipes.catalog") / TABLE).read_text(encoding="utf-8"))
    return MappingProxyType({row["name"]: _gpu(**row) for row in table["gpu"]})


def _gpu(
    *,
    name: str,
    title: str,
    memory_gib: int,
    source: str,
    visible_gib: float | None = None,
    visible_source: str = "",
    context_mib: int | None = None,
    context_source: str = "",
    compute_capability: str | None = None,
    bandwidth_gb_s: float | None = None,
    half_tflops: float | None = None,
    tf32_tflops: float | None = None,
    fp32_tflops: float | None = None,
    **flags: Any,
) -> Gpu:
    """A row of gpus.toml in bytes and FLOP/s. Raises TypeError for a field that a Gpu has not."""
    major, _, minor = (compute_capability or "").partition(".")
    return Gpu(
        name=name,
        title=title,
        memory_bytes=memory_gib * GIB,
        visible_bytes=None if visible_gib is None else int(visible_gib * GIB),
        visible_source=visible_source,
        measured_context=None if context_mib is None else context_mib * 2**20,
        context_source=context_source,
        capability=None if compute_capability is None else (int(major), int(minor)),
        bandwidth=None if bandwidth_gb_s is None else bandwidth_gb_s * 1e9,
        half_flops=None if half_tflops is None else half_tflops * TERA,
        tf32_flops=None if tf32_tflops is None else tf32_tflops * TERA,
        fp32_flops=None if fp32_tflops is None else fp32_tflops * TERA,
        source=source,
        **flags,
    )


DESKTOP_BYTES = 614 * 2**20  # of a laptop's GPU that draws the desktop too: an assumption
UNIFIED_SHARE = 0.25  # of Apple's unified memory kept by the system: macOS's default limit is 3/4 of it
SAME_GPU = 0.10  # a present GPU whose memory differs by more than this from a row's is another one
LARGEST = 2**44  # 16 TiB: no GPU has a tenth of it


def usable_bytes(gpu: Gpu) -> int:
    """What torch's allocator can have in any case: what torch sees of the GPU less the largest CUDA context that it may
    have, a desktop, the system's share."""
    if gpu.unified:
        return int(gpu.memory_bytes * (1 - UNIFIED_SHARE))
    return gpu.seen_bytes - context_bytes(gpu) - (DESKTOP_BYTES if gpu.laptop else 0)


def context_bytes(gpu: Gpu) -> int:
    """The most that CUDA takes for itself in each process."""
    return context_range(gpu)[1]


def context_range(gpu: Gpu) -> tuple[int, int]:
    """The least and the most that CUDA may take for itself. A context grows with the GPU's multiprocessors: of a GPU
    whose context is not known it is between those of its compute capability, if two are known, else of all."""
    if gpu.measured_context is not None:
        return gpu.measured_context, gpu.measured_context
    known = [one for one in known_gpus().values() if one.measured_context is not None]
    alike = {one.measured_context for one in known if one.capability == gpu.capability}
    found = alike if len(alike) > 1 else {one.measured_context for one in known}
    sizes = sorted(size for size in found if size is not None)
    return sizes[0], sizes[-1]


def find_gpu(name: str, location: str = "argument '--gpu'") -> Gpu:
    """The GPU that a user names. Raises PlanError with the nearest names for an unknown one."""
    known = known_gpus()
    spelled = {_spelling(one): one for one in known} | {
        _spelling(gpu.title): gpu.name for gpu in reversed([*known.values()])
    }
    if name.lower() in known:
        return known[name.lower()]
    if _spelling(name) in spelled:
        return known[spelled[_spelling(name)]]
    near = [one for one in known if _spelling(one).startswith(_spelling(name))][:5] if _spelling(name) else []
    near = near or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    names = f"nearest: {', '.join(near)}; all: --gpu list" if near else "--gpu list shows all that are known"
    raise PlanError.at(location, f"unknown GPU {name!r}", f"{names}; or give --memory 12GiB")


def recognise_gpu(driver_name: str, memory_bytes: int | None = None) -> Gpu | None:
    """The row of the present GPU, by the full name that its driver gives ("RTX 3070 Ti" is no RTX 3070, a slice of
    an A100 no A100) and, where it is sold with several sizes, by its memory. None for a GPU that is not listed."""
    plain = _plain(driver_name)
    fitting = [gpu for gpu in known_gpus().values() if _plain(gpu.title) == plain]
    if memory_bytes is None or not fitting:
        return fitting[0] if fitting else None
    best = min(fitting, key=lambda gpu: abs(gpu.seen_bytes - memory_bytes))
    return best if abs(best.seen_bytes - memory_bytes) <= SAME_GPU * best.seen_bytes else None


def _spelling(name: str) -> str:
    """ "RTX 3070", "rtx3070" and "rtx_3070" are rtx-3070."""
    return re.sub(r"[^a-z0-9]", "", _plain(name).removeprefix("geforce "))


def format_gpus() -> list[str]:
    """Every GPU that is known, one a line: its name, memory, what a run can use of it, compute capability."""
    lines = [f"{'name':<20} {'memory':>10} {'usable':>10} {'capability':>11}  full name"]
    for gpu in known_gpus().values():
        capability = "-" if gpu.capability is None else "{}.{}".format(*gpu.capability)
        sizes = f"{format_bytes(gpu.memory_bytes):>10} {format_bytes(usable_bytes(gpu)):>10}"
        lines.append(f"{gpu.name:<20} {sizes} {capability:>11}  {gpu.title}")
    return lines


def _plain(driver_name: str) -> str:
    """Older drivers say "Tesla T4" and "GeForce RTX 3070", newer ones put "NVIDIA" before it or for "Tesla"."""
    return re.sub(r"^((nvidia|tesla) )+", "", " ".join(driver_name.lower().split()))


def parse_bytes(text: str, location: str = "argument '--memory'") -> int:
    """ "8GiB" is 8 x 1024**3, "8GB" is 8 x 10**9: they differ by 7 %. Raises PlanError for all else and 0."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GiB|GB|MiB|MB)\s*", text)
    if not found:
        raise PlanError.at(
            location, f"{text!r} is not an amount of memory", "write it as 8GiB (8 x 1024**3 bytes) or 8GB (8 x 10**9)"
        )
    scale = {"GiB": GIB, "GB": 10**9, "MiB": 2**20, "MB": 10**6}[found[2]]
    if len(found[1]) > 32 or Fraction(found[1]) * scale > LARGEST:  # int() itself refuses thousands of digits
        raise PlanError.at(location, f"{text[:40]!r} is more than any GPU has", f"the largest here has {_largest()}GiB")
    value = int(Fraction(found[1]) * scale)
    if value <= 0:
        raise PlanError.at(location, f"{text!r} must be more than 0", "write it as 8GiB")
    return value


def _largest() -> int:
    return max(gpu.memory_bytes for gpu in known_gpus().values()) // GIB
