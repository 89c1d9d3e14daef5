"""The short way to a result gives what torch's own meta kernels give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_recipes.plan.trace.fast_meta import IN_PLACE, POINTWISE, RULES, shortcut

aten = torch.ops.aten
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OTHERS = {"add": 1, "sub": 1, "rsub": 1, "mul": 1, "div": 1, "gelu_backward": 1, "silu_backward": 1}
OTHERS |= {"tanh_backward": 1, "sigmoid_backward": 1, "add_": 1, "sub_": 1, "mul_": 1, "div_": 1}
OTHERS |= {"addcmul_": 2, "addcdiv_": 2}


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape or (3, 5), dtype=dtype, device="meta")


def facts(found: Any) -> list[Any]:
    parts = found if isinstance(found, tuple) else (found,)
    return [(part.shape, part.dtype, part.stride(), part.device.type) for part in parts]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*POINTWISE, *IN_PLACE])
def test_a_pointwise_result_is_torchs(name: str, dtype: torch.dtype) -> None:
    others: list[Any] = [tensor(dtype=dtype) for _ in range(OTHERS.get(name, 0))]
    others += [2.0] if name == "pow" else [tensor(dtype=dtype), 0.5] if name == "lerp_" else []
    first, packet = tensor(dtype=dtype), getattr(aten, name)
    found = shortcut(packet, (first, *others), {})
    assert found is not None and facts(found) == facts(packet(first, *others))
    assert (found is first) == name.endswith("_")


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_dropout_and_norms_are_torchs(dtype: torch.dtype) -> None:
    a, b = tensor(4, 3, dtype=dtype), tensor(3, 6, dtype=dtype)
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (aten.mm, (a, b)),
        (aten.mm, (a, tensor(6, 3, dtype=dtype).t())),
        (aten.addmm, (tensor(6, dtype=dtype), a, b)),
        (aten.addmm, (tensor(6, dtype=dtype), a, tensor(6, 3, dtype=dtype).t())),
        (aten.native_dropout, (tensor(2, 3, 4, dtype=dtype), 0.1, True)),
        (aten.native_dropout_backward, (a, tensor(4, 3, dtype=torch.bool), 1.1)),
    ]
    if dtype == torch.float32:
        cases += [
            (aten.native_layer_norm, (tensor(2, 3, 4), [4], tensor(4), tensor(4), 1e-5)),
            (aten.native_layer_norm, (tensor(2, 3, 4), [3, 4], None, None, 1e-5)),
        ]
    for packet, args in cases:
        found = shortcut(packet, args, {})
        assert found is not None and facts(found) == facts(packet(*args)), packet
    assert {packet for packet, _ in cases} | {aten.native_layer_norm} == {
        packet for packet in RULES if packet.__name__ not in (*POINTWISE, *IN_PLACE)
    }


@pytest.mark.parametrize(
    "args",
    [
        (tensor(), tensor(5)),  # broadcast
        (tensor(5), tensor()),
        (tensor(dtype=torch.bfloat16), tensor()),  # promoted
        (tensor(dtype=torch.int64), 2),
        (tensor().t(), tensor(5, 3)),  # other strides
        (tensor(), tensor().as_subclass(type("Mine", (torch.Tensor,), {}))),
        (torch.zeros(3), torch.zeros(3)),  # not on meta
    ],
)
def test_what_has_to_be_found_out_is_left_to_torch(args: tuple[Any, ...]) -> None:
    assert shortcut(aten.mul, args, {}) is None


def test_other_arguments_or_shapes_are_left_to_torch() -> None:
    assert shortcut(aten.div, (tensor(), tensor()), {"rounding_mode": "floor"}) is None
    assert shortcut(aten.native_dropout, (tensor(), 0.0, True), {}) is None
    assert shortcut(aten.addmm, (tensor(4, 6), tensor(4, 3), tensor(3, 6)), {}) is None
    assert shortcut(aten.mm, (tensor(4, 3), tensor(3, 6, dtype=torch.float16)), {}) is None
    assert shortcut(aten.native_layer_norm, (tensor(2, 4, dtype=torch.float16), [4], None, None, 1e-5), {}) is None
    assert shortcut(aten.cumsum, (tensor(), 0), {}) is None
