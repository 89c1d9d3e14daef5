"""The table of GPUs: what a user types, what the driver says, and amounts of memory as they are written."""

from __future__ import annotations

import pytest

from hf_recipes.catalog.gpus import (
    GIB,
    context_bytes,
    context_range,
    find_gpu,
    format_gpus,
    known_gpus,
    parse_bytes,
    recognise_gpu,
    usable_bytes,
)
from hf_recipes.errors import RecipeError

CUDA = [gpu for gpu in known_gpus().values() if not gpu.unified]


def test_a_gpu_is_called_full_before_its_sold_size_is() -> None:
    """24 GB are sold with an A10G and 22 GiB seen by torch: by the sold size, too much would be called "fits"."""
    assert usable_bytes(find_gpu("a10g")) < 22 * GIB
    for gpu in CUDA:
        assert gpu.visible_bytes is not None and gpu.visible_source, gpu.name
        assert 0.90 * gpu.memory_bytes < gpu.visible_bytes < gpu.memory_bytes, gpu.name
        assert usable_bytes(gpu) <= gpu.visible_bytes - context_bytes(gpu), gpu.name


def test_a_context_that_is_known_counts_and_any_other_lies_between_those_of_its_capability() -> None:
    def mib(name: str) -> tuple[int, ...]:
        return tuple(size // 2**20 for size in context_range(find_gpu(name)))

    assert [mib(name) for name in ("t4", "a100-80gb", "h100")] == [(141, 141), (503, 503), (771, 771)]
    assert mib("rtx-3070") == mib("a10g") == (210, 323)  # an A4000's and an RTX 3090's
    assert mib("v100-16gb") == mib("rtx-2080-ti") == (141, 771)  # no two of their capability are known: of all
    assert all(bool(gpu.context_source) == (gpu.measured_context is not None) for gpu in CUDA)


@pytest.mark.parametrize("typed", ["rtx3070", "RTX 3070", "rtx_3070", "GeForce RTX 3070", "NVIDIA GeForce RTX 3070"])
def test_a_gpu_is_found_however_its_name_is_spelled(typed: str) -> None:
    assert find_gpu(typed) is known_gpus()["rtx-3070"]


def test_the_list_has_every_gpu_under_the_name_that_gpu_takes() -> None:
    head, *lines = format_gpus()
    assert head.split()[:2] == ["name", "memory"]
    assert [find_gpu(line.split()[0]).title in line for line in lines] == [True] * len(known_gpus())


def test_an_assumed_size_is_never_more_than_the_gpu_that_it_is_taken_from() -> None:
    for gpu in CUDA:
        _, _, name = gpu.visible_source.partition("assumed as of ")
        twin = known_gpus().get(name.split(";")[0].split(",")[0].strip())
        if twin is not None:
            assert gpu.seen_bytes <= twin.seen_bytes, gpu.name


def test_the_gpus_of_the_guides_are_there() -> None:
    geforce = "rtx-3060 rtx-3060-8gb rtx-3070 rtx-3090 rtx-4070-laptop rtx-4070 rtx-4080 rtx-4090"
    for name in f"{geforce} a4000 a5000 a10g t4 a100-40gb a100-80gb m3-18gb h100 h200".split():
        assert find_gpu(name.upper()).source


@pytest.mark.parametrize("gpu", [gpu for gpu in CUDA if gpu.half_flops and gpu.tf32_flops], ids=lambda gpu: gpu.name)
def test_rates_are_dense_and_accumulate_in_fp32(gpu) -> None:
    """GeForce: 2 to 1 over fp32; workstation GPUs 4 to 1; tf32 is half of half precision everywhere. A rate with
    sparsity, or one that accumulates in fp16, would be twice that."""
    assert gpu.half_flops / gpu.tf32_flops == pytest.approx(2, rel=0.02)
    if "GeForce" in gpu.title:
        assert gpu.half_flops / gpu.fp32_flops == pytest.approx(2, rel=0.02)
    elif gpu.title.startswith("NVIDIA RTX A"):
        assert gpu.half_flops / gpu.fp32_flops == pytest.approx(4, rel=0.02)


def test_no_gpu_before_ampere_computes_in_bf16() -> None:
    assert {gpu.name for gpu in known_gpus().values() if not gpu.bf16} == {
        "rtx-2080-ti",
        "t4",
        "v100-16gb",
        "v100-32gb",
    }


@pytest.mark.parametrize(
    ("driver_name", "memory", "name"),
    [
        ("NVIDIA GeForce RTX 3070", None, "rtx-3070"),
        ("GeForce RTX 3070", None, "rtx-3070"),
        ("NVIDIA GeForce RTX 3060", 12 * GIB, "rtx-3060"),
        ("NVIDIA GeForce RTX 3060", int(7.7 * GIB), "rtx-3060-8gb"),
        ("NVIDIA GeForce RTX 4060 Ti", int(15.7 * GIB), "rtx-4060-ti-16gb"),
        ("Tesla T4", 15 * GIB, "t4"),
        ("NVIDIA T4", None, "t4"),
        ("NVIDIA A100-SXM4-40GB", None, "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", None, "a100-80gb-pcie"),
        ("NVIDIA H100 NVL", None, "h100-nvl"),
        ("NVIDIA H100 PCIe", 80 * GIB, "h100-pcie"),
        ("NVIDIA L4", None, "l4"),
        ("NVIDIA L40S", None, "l40s"),
        ("NVIDIA GeForce RTX 3070 Ti", None, None),
        ("NVIDIA GeForce RTX 4070 SUPER", None, None),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", 6 * GIB, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10 * GIB, None),
        ("NVIDIA GeForce RTX 3060", 6 * GIB, None),
    ],
)
def test_the_present_gpu_is_recognised_by_its_full_name_and_its_memory(driver_name, memory, name) -> None:
    assert recognise_gpu(driver_name, memory) is (known_gpus()[name] if name else None)


@pytest.mark.parametrize("gpu", CUDA, ids=lambda gpu: gpu.name)
def test_every_gpu_is_recognised_as_itself(gpu) -> None:
    assert recognise_gpu(gpu.title, gpu.visible_bytes) is gpu


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("8GiB", 8 * 2**30),
        ("8GB", 8 * 10**9),
        ("8 GiB", 8 * 2**30),
        ("0.1GB", 10**8),
        ("512MiB", 2**29),
        ("1.5GiB", 3 * 2**29),
    ],
)
def test_an_amount_of_memory_is_exact(text, amount) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["8", "8g", "8G", "8gb", "-8GiB", "1e3GiB", "inf", "infGiB", "nanGB", "", "٨GiB"])
def test_an_amount_of_memory_that_is_none_is_refused_with_how_to_write_one(text) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"argument '--memory': {text!r} is not an amount of memory; "
        "write it as 8GiB (8 x 1024**3 bytes) or 8GB (8 x 10**9)"
    )


@pytest.mark.parametrize("text", ["0GiB", "0.0GB", "0.0000001MB"])
def test_zero_is_no_memory_at_all(text) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"argument '--memory': {text!r} must be more than 0; write it as 8GiB"


@pytest.mark.parametrize("text", ["99999999GiB", "9" * 400 + "GiB", "9" * 9000 + "GB"])
def test_more_memory_than_any_gpu_has_is_refused(text) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_bytes(text)
    assert str(caught.value) == (
        f"argument '--memory': {text[:40]!r} is more than any GPU has; the largest here has 141GiB"
    )
