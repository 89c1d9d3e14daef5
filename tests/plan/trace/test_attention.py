"""The back end of attention that plan chooses, beside the one that torch itself chooses."""

from itertools import product

import pytest
import torch

from hf_recipes.plan.trace.attention import _cpu_choice, cuda_choice

NAMES = {0: "math", 1: "flash for CPU"}  # torch.nn.attention.SDPBackend
A100 = (8, 0)
HEADS = ((4, 4, 4), (4, 1, 1), (4, 2, 2), (4, 3, 3), (4, 2, 4))
MASKS = (None, (1, 1, 6, 6), (2, 4, 6, 6), (6, 6), (2, 1, 1, 6), (2, 6, 6), (1, 1, 6, 3))


def tensors(heads: tuple[int, int, int], rows: int, turned: bool, device: str) -> tuple[torch.Tensor, ...]:
    made = [torch.zeros(2, one, rows, 8, device=device) for one in heads]
    return tuple(one.transpose(2, 3).contiguous().transpose(2, 3) for one in made) if turned else tuple(made)


@pytest.mark.parametrize(("heads", "mask"), list(product(HEADS, MASKS)))
def test_on_a_cpu_the_choice_is_torchs_own(heads, mask):
    for enable_gqa, turned, dropout in product((False, True), (False, True), (0.0, 0.1)):
        real, meta = (tensors(heads, 6, turned, device) for device in ("cpu", "meta"))
        masks = [None if mask is None else torch.zeros(mask, device=device) for device in ("cpu", "meta")]
        wanted = torch._fused_sdp_choice(*real, masks[0], dropout, False, scale=None, enable_gqa=enable_gqa)
        assert _cpu_choice(*meta, masks[1], dropout, enable_gqa) == NAMES[wanted], (enable_gqa, turned, dropout)


def test_heads_that_are_broadcast_take_math_on_a_gpu_and_grouped_ones_flash():
    query, key = (torch.zeros(2, heads, 64, 64, dtype=torch.float16, device="meta") for heads in (8, 1))

    def chosen(capability: tuple[int, int], enable_gqa: bool) -> str:
        return cuda_choice(capability, query, key, key, None, 0.0, True, True, enable_gqa)

    assert (chosen(A100, False), chosen(A100, True)) == ("math", "flash")
    assert (chosen((9, 0), False), chosen((9, 0), True)) == ("math", "cudnn")
    assert (chosen((7, 5), False), chosen((7, 5), True)) == ("math", "math")
