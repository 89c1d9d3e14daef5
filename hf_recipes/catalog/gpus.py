"""Facts of cards, each with its source; what has no source here is None. Light.

Rates are dense (no sparsity), in FLOP/s; bandwidth in bytes/s; memory is what the card is sold with, `visible` what
torch can see of it, which is 1 to 9 % less: the sold size would call "fits" what does not. Tensor-core rates are those
with fp32 accumulation, which is what cuBLAS uses for training: a GeForce has half its fp16 rate then. Adding a card is
one entry.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from hf_recipes.common.text import GIB
from hf_recipes.errors import RecipeError

TERA = 10**12


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card."""

    name: str  # as a user types it
    title: str  # the driver's name of it, whole: the present card is recognised by it
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

    @property
    def bf16(self) -> bool:
        """Tensor cores that compute in bf16."""
        return self.capability is None or self.capability >= (8, 0)

    @property
    def seen_bytes(self) -> int:
        """The memory that torch can see, context included."""
        return self.memory_bytes if self.visible_bytes is None else self.visible_bytes


GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper v2.0, table 9 and appendix A"
AD102 = "NVIDIA Ada GPU Architecture whitepaper v2.01, appendix A"
TU102 = "NVIDIA Turing GPU Architecture whitepaper (reference card)"
A100 = "NVIDIA A100 Tensor Core GPU Architecture whitepaper; A100 datasheet"
V100 = "NVIDIA A100 Tensor Core GPU Architecture whitepaper, its column V100"
H100 = "NVIDIA H100 datasheet and Hopper architecture whitepaper"
BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix; not looked up again"
# Where only fp32 was found. 70/35, 165.2/82.6, 71/35.6: the whitepapers' GeForce cards all have these ratios.
GEFORCE = "fp32 = cores x 2 x boost clock of NVIDIA's product page; tensor cores in GeForce's ratio, 2 to 1"
# Datasheets of workstation cards state tensor rates with sparsity: half of them is dense, 4 to 1 to fp32.
WORKSTATION = "datasheet; its tensor rate is with sparsity, half of it is here"
APPLE = "Apple's specifications: unified memory and its bandwidth; no rates are published"
LIKE = "assumed as of"


def _gpu(
    name: str,
    title: str,
    gib: int,
    visible: float | None,
    visible_source: str,
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
        visible_bytes=None if visible is None else int(visible * GIB),
        visible_source=visible_source,
        capability=capability,
        bandwidth=None if bandwidth is None else bandwidth * 1e9,
        half_flops=None if half is None else half * TERA,
        tf32_flops=None if tf32 is None else tf32 * TERA,
        fp32_flops=None if fp32 is None else fp32 * TERA,
        source=source,
        **more,
    )


# name, driver's title, GiB sold, GiB visible and who saw it ("total capacity of" in an out-of-memory message; the least
# of several, since a newer driver keeps more), capability, GB/s, TFLOP/s half, tf32, fp32, source
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("rtx-2080-ti", "NVIDIA GeForce RTX 2080 Ti", 11, 10.73, "GitHub Morizeyao/GPT2-Chinese#104, 11 GB",
                 (7, 5), 616, 53.8, None, 13.4, TU102),
            _gpu("rtx-3060", "NVIDIA GeForce RTX 3060", 12, 11.75, "GitHub smy20011/dreambooth-gui#78",
                 (8, 6), 360, 25.4, 12.7, 12.7, GEFORCE),
            _gpu("rtx-3060-8gb", "NVIDIA GeForce RTX 3060", 8, 7.63, f"{LIKE} rtx-4060",
                 (8, 6), 240, 25.4, 12.7, 12.7, f"{GEFORCE}; 128 bit at 15 Gbit/s"),
            _gpu("rtx-3070", "NVIDIA GeForce RTX 3070", 8, 7.76, "GitHub sshan-zhao/GASDA#19",
                 (8, 6), 448, 40.6, 20.3, 20.3, GA102),
            _gpu("rtx-3080", "NVIDIA GeForce RTX 3080", 10, 9.78, "GitHub zai-org/CogVideo#34",
                 (8, 6), 760, 59.5, 29.8, 29.8, GA102),
            _gpu("rtx-3090", "NVIDIA GeForce RTX 3090", 24, 23.49, f"{LIKE} rtx-4090; 23.70 in GitHub GaoLii/DSP#10",
                 (8, 6), 936, 71.0, 35.6, 35.6, GA102),
            _gpu("rtx-4060", "NVIDIA GeForce RTX 4060", 8, 7.63, "GitHub AIRI-Institute/HairFastGAN#8",
                 (8, 9), 272, 30.2, 15.1, 15.1, GEFORCE),
            _gpu("rtx-4060-ti", "NVIDIA GeForce RTX 4060 Ti", 8, 7.63, f"{LIKE} rtx-4060",
                 (8, 9), 288, 44.1, 22.1, 22.1, GEFORCE),
            _gpu("rtx-4060-ti-16gb", "NVIDIA GeForce RTX 4060 Ti", 16, 15.61, f"{LIKE} a4000",
                 (8, 9), 288, 44.1, 22.1, 22.1, GEFORCE),
            _gpu("rtx-4070-laptop", "NVIDIA GeForce RTX 4070 Laptop GPU", 8, 7.63, f"{LIKE} rtx-4060",
                 (8, 9), 256, None, None, None,
                 "NVIDIA's product page; its rates depend on the laptop's power limit, none is stated", laptop=True),
            _gpu("rtx-4070", "NVIDIA GeForce RTX 4070", 12, 11.6, f"{LIKE} a card of 12282 MiB (meta-llama/llama#466) "
                 "that keeps as much as rtx-4060", (8, 9), 504, 58.3, 29.1, 29.1, AD102),
            _gpu("rtx-4080", "NVIDIA GeForce RTX 4080", 16, 15.61, f"{LIKE} a4000",
                 (8, 9), 716.8, 97.5, 48.7, 48.7, AD102),
            _gpu("rtx-4090", "NVIDIA GeForce RTX 4090", 24, 23.49, "GitHub Sautenich/UAV-VLA#7, driver 575",
                 (8, 9), 1008, 165.2, 82.6, 82.6, AD102),
            _gpu("rtx-5090", "NVIDIA GeForce RTX 5090", 32, 31.36, "GitHub TrajectoryCrafter/TrajectoryCrafter#20",
                 (12, 0), 1792, 209.5, 104.8, 104.8, BLACKWELL),
            _gpu("a4000", "NVIDIA RTX A4000", 16, 15.61, "GitHub DengKaiCQ/VGGT-Long#6",
                 (8, 6), 448, 76.7, 38.3, 19.2, f"NVIDIA RTX A4000 {WORKSTATION}"),
            _gpu("a5000", "NVIDIA RTX A5000", 24, 23.49, f"{LIKE} rtx-4090, which shows the same 24564 MiB",
                 (8, 6), 768, 111.1, 55.5, 27.8, f"NVIDIA RTX A5000 {WORKSTATION}"),
            _gpu("a6000", "NVIDIA RTX A6000", 48, 44.43, f"{LIKE} RTX 6000 Ada with its error correction on, GitHub "
                 "DINGYANB/MTVCrafter#21; 47.4 without", (8, 6), 768, 154.8, 77.4, 38.7,
                 f"NVIDIA RTX A6000 {WORKSTATION}; GA102 whitepaper, appendix C"),
            _gpu("a10g", "NVIDIA A10G", 24, 22.03, "the least of 22.03 to 22.49 (GitHub AUTOMATIC1111/"
                 "stable-diffusion-webui#1259); nvidia-smi 23028 MiB (GitHub modal-labs/modal-client#2797)",
                 (8, 6), 600, 70.0, 35.0, 35.0, "Baseten, 'NVIDIA A10 vs A10G': memory; rates not looked up again"),
            _gpu("l4", "NVIDIA L4", 24, 22.03, f"{LIKE} a10g, of 23028 MiB: it has 23034 (GitHub "
                 "modal-labs/modal-client#2797)", (8, 9), 300, 121.0, 60.0, 30.3, "NVIDIA L4 datasheet, halved"),
            _gpu("l40s", "NVIDIA L40S", 48, 44.43, "GitHub Wan-Video/Wan2.1#205 has 44.53; RTX 6000 Ada of the same "
                 "46068 MiB has 44.43 (GitHub DINGYANB/MTVCrafter#21)", (8, 9), 864, 362.05, 183.0, 91.6,
                 "NVIDIA L40S datasheet"),
            _gpu("t4", "Tesla T4", 16, 14.56, "GitHub Zheng-Chong/CatVTON#133", (7, 5), 320, 65.0, None, 8.1,
                 "NVIDIA T4 datasheet"),
            _gpu("v100-16gb", "Tesla V100-SXM2-16GB", 16, 15.75, "GitHub Morizeyao/GPT2-Chinese#215",
                 (7, 0), 900, 125.0, None, 15.7, V100),
            _gpu("v100-32gb", "Tesla V100-SXM2-32GB", 32, 31.74, "GitHub haotian-liu/LLaVA#812",
                 (7, 0), 900, 125.0, None, 15.7, V100),
            _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 40, 39.50, "GitHub TianheWu/CoSeR#10",
                 (8, 0), 1555, 312.0, 156.0, 19.5, A100),
            _gpu("a100-40gb-pcie", "NVIDIA A100-PCIE-40GB", 40, 39.50, f"{LIKE} a100-40gb",
                 (8, 0), 1555, 312.0, 156.0, 19.5, A100),
            _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 80, 79.14, "GitHub lianqi1008/Control-GIC#6",
                 (8, 0), 2039, 312.0, 156.0, 19.5, A100),
            _gpu("a100-80gb-pcie", "NVIDIA A100 80GB PCIe", 80, 79.14, f"{LIKE} a100-80gb",
                 (8, 0), 1935, 312.0, 156.0, 19.5, A100),
            _gpu("h100", "NVIDIA H100 80GB HBM3", 80, 79.11, "GitHub vllm-project/vllm#27508",
                 (9, 0), 3350, 989.4, 494.7, 66.9, f"{H100} (SXM)"),
            _gpu("h100-pcie", "NVIDIA H100 PCIe", 80, 79.11, f"{LIKE} h100",
                 (9, 0), 2000, 756.0, 378.0, 51.2, f"{H100} (PCIe)"),
            _gpu("h100-nvl", "NVIDIA H100 NVL", 94, 92.9, f"{LIKE} h100 in its share of what is sold",
                 (9, 0), 3900, 835.0, 417.5, 60.0, f"{H100} (NVL)"),
            _gpu("h200", "NVIDIA H200", 141, 139.72, "out-of-memory messages on 8 x H200: 139.72 to 139.81 (sold in "
                 "10**9 bytes)", (9, 0), 4800, 989.4, 494.7, 66.9, "NVIDIA H200 datasheet (SXM)"),
            _gpu("m3-8gb", "Apple M3", 8, None, "", None, 100, None, None, None, APPLE, unified=True),
            _gpu("m3-16gb", "Apple M3", 16, None, "", None, 100, None, None, None, APPLE, unified=True),
            _gpu("m3-24gb", "Apple M3", 24, None, "", None, 100, None, None, None, APPLE, unified=True),
            _gpu("m3-18gb", "Apple M3 Pro", 18, None, "", None, 150, None, None, None, APPLE, unified=True),
            _gpu("m3-36gb", "Apple M3 Pro", 36, None, "", None, 150, None, None, None, APPLE, unified=True),
        )
    }
)  # fmt: skip


CONTEXT_BYTES = 461 * 2**20  # CUDA 12.2 and later with lazy loading: an assumption, not measured (docs/plan.md)
# Measured in use: an H100 with torch 2.11, CUDA 13 and driver 580 (recipes/results/lab; 619 MiB when nothing has run).
MEASURED_CONTEXT = {(9, 0): 771 * 2**20}
DESKTOP_BYTES = 614 * 2**20  # of a laptop's card that draws the desktop too: an assumption
UNIFIED_SHARE = 0.25  # of Apple's unified memory kept by the system: macOS's default limit is 3/4 of it
SAME_CARD = 0.10  # a present card whose memory differs by more than this from an entry's is another one
LARGEST = 2**44  # 16 TiB: no card has a tenth of it


def usable_bytes(gpu: Gpu) -> int:
    """What torch's allocator can have: what torch sees of the card less the CUDA context, a desktop, the system's
    share."""
    if gpu.unified:
        return int(gpu.memory_bytes * (1 - UNIFIED_SHARE))
    return gpu.seen_bytes - context_bytes(gpu) - (DESKTOP_BYTES if gpu.laptop else 0)


def context_bytes(gpu: Gpu) -> int:
    """What CUDA takes for itself in each process."""
    return MEASURED_CONTEXT.get(gpu.capability or (0, 0), CONTEXT_BYTES)


def find(name: str, where: str = "argument '--gpu'") -> Gpu:
    """The card that a user names. Raises RecipeError with the nearest names for an unknown one."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = difflib.get_close_matches(name.lower(), GPUS, n=3, cutoff=0.6) or sorted(GPUS)
    raise RecipeError.at(
        where, f"no card is called {name!r} here", f"nearest: {', '.join(near)}; or say --memory 12GiB"
    )


def recognise(driver_name: str, memory_bytes: int | None = None) -> Gpu | None:
    """The entry of the present card, by the whole name that its driver gives ("RTX 3070 Ti" is no RTX 3070, a slice of
    an A100 no A100) and, where it is sold with several sizes, by its memory. None for a card that is not listed."""
    plain = _plain(driver_name)
    fitting = [gpu for gpu in GPUS.values() if _plain(gpu.title) == plain]
    if memory_bytes is None or not fitting:
        return fitting[0] if fitting else None
    best = min(fitting, key=lambda gpu: abs(gpu.seen_bytes - memory_bytes))
    return best if abs(best.seen_bytes - memory_bytes) <= SAME_CARD * best.seen_bytes else None


def _plain(driver_name: str) -> str:
    """Older drivers say "Tesla T4" and "GeForce RTX 3070", newer ones put "NVIDIA" before it or for "Tesla"."""
    return re.sub(r"^((nvidia|tesla) )+", "", " ".join(driver_name.lower().split()))


def parse_bytes(text: str, where: str = "argument '--memory'") -> int:
    """ "8GiB" is 8 x 1024**3, "8GB" is 8 x 10**9: they differ by 7 %. Raises RecipeError for all else and 0."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GiB|GB|MiB|MB)\s*", text)
    if not found:
        raise RecipeError.at(
            where, f"{text!r} is no amount of memory", "write it as 8GiB (8 x 1024**3 bytes) or 8GB (8 x 10**9)"
        )
    scale = {"GiB": GIB, "GB": 10**9, "MiB": 2**20, "MB": 10**6}[found[2]]
    if len(found[1]) > 32 or Fraction(found[1]) * scale > LARGEST:  # int() itself refuses thousands of digits
        raise RecipeError.at(where, f"{text[:40]!r} is more than any card has", f"the largest here has {_largest()}GiB")
    value = int(Fraction(found[1]) * scale)
    if value <= 0:
        raise RecipeError.at(where, f"{text!r} is no memory at all")
    return value


def _largest() -> int:
    return max(gpu.memory_bytes for gpu in GPUS.values()) // GIB
