"""What CUDA's kernels take for themselves, held to what an H100 showed (recipes/results/lab)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_recipes.catalog.gpus import context_range, find_gpu
from hf_recipes.plan.measure.gpu import RULES
from hf_recipes.plan.trace.cuda_allocator import replay, rounded
from hf_recipes.plan.trace.cuda_workspaces import CUBLASLT, CudaWorkspaces, reduction
from hf_recipes.plan.trace.tracker import Tracker


def _calibration(root: Path) -> dict:
    (path,) = (root / "recipes" / "results" / "lab").glob("nvidia-h100*hbm3.jsonl")
    found: dict = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    return found


def test_attentions_backward_takes_what_the_gpu_measured_to_the_byte(root: Path) -> None:
    held = 0
    for one in _calibration(root)["attention_backward"]:
        if "measured_bytes" not in one or one["backend"] == "DEFAULT":
            continue
        dtype = getattr(torch, one["dtype"].removeprefix("torch."))
        query, key = (torch.empty(one[name], dtype=dtype, device="meta") for name in ("query", "key"))
        sizes = RULES[one["backend"]]((query, query, key, key, query))
        assert sum(map(rounded, sizes)) == one["measured_bytes"], one
        held += 1
    assert held >= 8


def test_hopper_takes_cudnns_attention_and_cublas_its_larger_workspace(root: Path) -> None:
    found = _calibration(root)
    kernels = {one["kernel"] for one in found["attention_backward"] if one["backend"] == "DEFAULT"}
    assert kernels == {"ScaledDotProductCudnnAttentionBackward0", "ScaledDotProductEfficientAttentionBackward0"}
    assert found["cublas_bytes"] == CudaWorkspaces((9, 0)).cublas and found["capability"] == [9, 0]


def test_the_context_of_a_hopper_gpu_is_what_its_cells_had(root: Path) -> None:
    (path,) = (root / "recipes" / "results" / "lab").glob("nvidia-h100*hbm3.jsonl")
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    most = max(one["measured"]["context_bytes"] for one in lines if one.get("alone"))
    least, assumed = context_range(find_gpu("h100"))
    assert least == assumed and 0 <= assumed - most < 2**20


@pytest.mark.parametrize(
    ("rows", "outputs", "size"),
    [(16 * 256, 640, 20_971_520), (16 * 4 * 256, 256, 33_554_432), (16 * 256, 256, 8_388_608), (64, 640, 0)],
)
def test_a_sum_over_rows_takes_what_gemmas_norms_took_for_the_gpu(rows: int, outputs: int, size: int) -> None:
    assert reduction(rows * outputs, outputs, (9, 0)) == size
    workspaces = CudaWorkspaces((9, 0))
    gradient = torch.empty(rows, outputs, device="meta")
    assert workspaces(torch.ops.aten.sum, (gradient, [0], True), True)[0] == (size,)
    assert workspaces(torch.ops.aten.sum, (gradient, [1]), True)[0] == ()  # the fastest dimension


def test_an_embedding_with_many_tokens_takes_a_row_for_each_and_with_few_none() -> None:
    def taken(tokens: int) -> list[int]:
        gradient, indices = (
            torch.empty(tokens, 640, device="meta"),
            torch.empty(tokens, dtype=torch.long, device="meta"),
        )
        sizes, _ = CudaWorkspaces((9, 0))(torch.ops.aten.embedding_dense_backward, (gradient, indices, 262144), True)
        return sorted(sizes)

    assert taken(3072) == []
    assert taken(4096)[-2:] == [36_040, 11_532_800] and taken(4096).count(32_768) == 5  # as on the GPU


def test_a_product_with_a_bias_keeps_cublaslts_workspace_once_a_thread() -> None:
    workspaces = CudaWorkspaces((8, 6))
    bias, a, b = torch.empty(4, device="meta"), torch.empty(2, 3, device="meta"), torch.empty(3, 4, device="meta")
    assert workspaces(torch.ops.aten.addmm, (bias, a, b), False)[1] == (workspaces.cublas, CUBLASLT)
    assert workspaces(torch.ops.aten.addmm, (bias, a, b), False)[1] == ()
    assert workspaces(torch.ops.aten.mm, (a, b), True)[1] == (workspaces.cublas,)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_two_gradients_of_one_tensor_are_one_storage_as_autograd_sums_them_in_place(device: str) -> None:
    made = torch.empty(1000, device=device, requires_grad=True)
    with Tracker(device=device) as seen:
        middle = made * 2
        (middle.relu() + middle.tanh()).sum().backward()
    in_backward = [one.op for one in seen.storages if one.phase == "backward" and one.size == 4000]
    assert "add" in in_backward  # what the dispatch mode saw
    born = {number for number, change in seen.events if change > 0}
    sums = [number for number, one in enumerate(seen.storages) if one.op == "add" and one.phase == "backward"]
    assert sums and not born & set(sums)  # is no storage of its own


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient * 1
        gradient = gradient + gradient  # out of place, whoever dies after it
        return gradient


def test_a_sum_in_a_functions_own_backward_is_a_storage_of_its_own() -> None:
    with Tracker(device="meta") as seen:
        _Twice.apply(torch.empty(1000, device="meta", requires_grad=True)).sum().backward()
    born = {number for number, change in seen.events if change > 0}
    sums = [number for number, one in enumerate(seen.storages) if one.op == "add" and one.phase == "backward"]
    assert len(sums) == 1 and set(sums) <= born


def test_what_torch_calls_allocated_counts_full_blocks() -> None:
    mib = 2**20
    found = replay([(0, 12 * mib), (0, -12 * mib), (1, 12 * mib - 600_000)])
    assert found.allocated == 12 * mib  # the second lies in the first one's block, whose rest is too small to split
    assert replay([(0, 12 * mib), (0, -12 * mib), (1, 10 * mib)]).allocated == 12 * mib
    assert replay([(0, 40 * mib), (0, -40 * mib), (1, 12 * mib), (2, 12 * mib)]).allocated == 40 * mib
