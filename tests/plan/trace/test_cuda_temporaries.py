"""What ATen's CUDA code makes for itself inside an operation: by the operation itself on meta tensors."""

import pytest
import torch
from torch.nn import functional as F

from hf_recipes.plan.trace.cuda_workspaces import PASSING, CudaWorkspaces
from hf_recipes.plan.trace.trace import STEPS, trace_here
from hf_recipes.plan.trace.tracker import Tracker
from tests.support.tiny_recipes import LLAMA, tiny

T4, A100 = (7, 5), (8, 0)


def taken(work, capability=T4) -> dict[str, list[int]]:
    """Operation -> bytes of each tensor that its kernel makes for itself."""
    found: dict[str, list[int]] = {}
    with Tracker(device="meta", workspaces=CudaWorkspaces(capability)) as seen, torch.device("meta"):
        work()
    for storage in seen.storages:
        if storage.part == "workspaces" and storage.op.endswith(" workspace") and "cuBLAS" not in storage.op:
            found.setdefault(storage.op.removesuffix(" workspace"), []).append(storage.size)
    return found


def test_softmax_backward_makes_one_more_matrix_of_scores_in_the_gradients_dtype():
    for dtype, width in ((torch.float16, 2), (torch.float32, 4)):
        scores = torch.empty(2, 4, 64, 64, dtype=dtype, device="meta", requires_grad=True)
        found = taken(lambda scores=scores: scores.softmax(-1).sum().backward())
        assert found == {"_softmax_backward_data": [2 * 4 * 64 * 64 * width]}
    upcast = torch.empty(2, 4, 64, 64, dtype=torch.float16, device="meta", requires_grad=True)
    found = taken(lambda: torch.softmax(upcast, -1, dtype=torch.float32).sum().backward())
    assert found == {"_softmax_backward_data": [2 * 4 * 64 * 64 * 4]}


def test_a_log_softmax_takes_a_copy_only_of_what_is_not_contiguous():
    logits = torch.empty(32, 100, device="meta", requires_grad=True)
    labels = torch.zeros(32, dtype=torch.long, device="meta")
    assert taken(lambda: F.cross_entropy(logits, labels).backward()) == {}
    turned = torch.empty(100, 32, device="meta", requires_grad=True)
    assert taken(lambda: F.log_softmax(turned.t(), -1)) == {"_log_softmax": [100 * 32 * 4]}


@pytest.mark.parametrize(("rows", "columns", "blocks"), [(65_536, 256, 0), (70_000, 256, 2188), (70_000, 2048, 0)])
def test_layer_norms_backward_sums_blocks_of_rows_where_there_are_many_and_they_are_short(rows, columns, blocks):
    norm = torch.nn.LayerNorm(columns, device="meta")
    given = torch.empty(rows, columns, device="meta", requires_grad=True)
    gradient = torch.empty(rows, columns, device="meta")
    found = taken(lambda: norm(given).backward(gradient), A100)
    assert found == ({"native_layer_norm_backward": [blocks * columns * 4] * 2} if blocks else {})


def test_group_norms_backward_takes_sums_of_channels_and_groups_in_fp32():
    norm = torch.nn.GroupNorm(4, 16, device="meta", dtype=torch.float16)
    given = torch.empty(3, 16, 50, device="meta", dtype=torch.float16, requires_grad=True)
    found = taken(lambda: norm(given).backward(torch.empty_like(given)))
    assert found["native_group_norm_backward"] == [3 * 16 * 4] * 3 + [3 * 4 * 4] * 2


def test_a_sum_into_chosen_rows_sorts_their_indices_and_plain_writing_does_not():
    table, values = torch.empty(50, 8, device="meta"), torch.empty(7, 8, device="meta")
    chosen = torch.zeros(7, dtype=torch.long, device="meta")
    assert taken(lambda: table.index_put_((chosen,), values, accumulate=True)) == {"index_put_": [7 * 8] * 4}
    assert taken(lambda: table.index_put_((chosen,), values)) == {}


def test_long_rows_are_sorted_with_an_index_for_each_value_and_short_ones_in_place():
    assert taken(lambda: torch.empty(4, 4096).sort()) == {}
    assert taken(lambda: torch.empty(5000).sort()) == {"sort": [5000 * 8]}
    assert taken(lambda: torch.empty(4, 5000).sort()) == {"sort": [20_000 * 8, 20_000 * 8, 20_000 * 4]}
    assert taken(lambda: torch.empty(200, 5000).sort()) == {"sort": [1_000_000 * 8]}


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_dropout_cumsum_and_topk_take_nothing_of_their_own(approximate):
    given = torch.empty(64, 64, device="meta", requires_grad=True)
    found = taken(lambda: F.gelu(F.dropout(given), approximate=approximate).cumsum(-1).topk(2).values.sum().backward())
    assert found == {}


def test_eager_attention_is_planned_with_the_matrix_that_a_gpus_softmax_makes(monkeypatch):
    recipe = tiny("causal-lm", LLAMA, fp16=True, per_device_train_batch_size=8, model={"attn_implementation": "eager"})
    scores = 8 * LLAMA["num_attention_heads"] * 64 * 64 * 4

    def matrices() -> int:
        found = trace_here(recipe, capability=T4, length=64, evaluation=False)
        return sum(change == scores for _, change in found.events)

    with_it = matrices()
    monkeypatch.delitem(PASSING, "_softmax_backward_data")
    assert with_it - matrices() == STEPS * LLAMA["num_hidden_layers"]
