"""What an operation gave before is what torch's own meta kernels give again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_recipes.plan.trace.fast_meta import IN_PLACE, can_be_known, key_of, learn

aten = torch.ops.aten
COST = (0, 0, False)


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape or (3, 5), dtype=dtype, device="meta")


def forms(found: Any) -> list[Any]:
    parts = found if isinstance(found, tuple | list) else (found,)
    return [None if p is None else (p.shape, p.dtype, p.stride(), p.untyped_storage().nbytes()) for p in parts]


CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (aten.mul.Tensor, (tensor(2, 3, 4).transpose(1, 2), tensor(1, 4, 1)), {}),
    (aten.add.Tensor, (tensor(dtype=torch.bfloat16), tensor()), {"alpha": 2}),
    (aten.mm.default, (tensor(4, 3), tensor(6, 3).t()), {}),
    (aten.cat.default, ([tensor(2, 3), tensor(2, 5)], -1), {}),
    (aten.native_dropout.default, (tensor(), 0.1, True), {}),
    (aten.native_layer_norm.default, (tensor(2, 4, dtype=torch.float16), [4], None, None, 1e-5), {}),
    (aten._to_copy.default, (tensor(4, 6).t(),), {"dtype": torch.float16}),
    (aten.zeros_like.default, (tensor(4, 6).t(),), {"memory_format": torch.preserve_format}),
    (aten.max_pool2d_with_indices.default, (tensor(1, 2, 8, 8), [2, 2]), {}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[0]))
def test_a_result_that_is_remembered_is_torchs(case):
    func, args, kwargs = case
    key, first = key_of(func, args, kwargs), func(*args, **kwargs)
    known = learn(func, args, kwargs, first, COST)
    assert can_be_known(func) and key is not None and known is not None
    again = known.result(args)
    assert forms(again) == forms(first) and type(again) is type(first)
    assert key == key_of(func, args, kwargs)


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_the_first_argument_comes_back(name):
    others = {"zero_": (), "fill_": (1.0,), "masked_fill_": (tensor(dtype=torch.bool), 0.0)}
    pair = (tensor(), tensor(), 0.5) if name == "lerp_" else (tensor(), tensor())
    others |= {"addcmul_": pair, "addcdiv_": pair, "lerp_": (tensor(), 0.5)}
    args = (tensor(), *others.get(name, (tensor(),)))
    packet = getattr(aten, name)
    func = getattr(packet, next(o for o in packet.overloads() if o in ("default", "Tensor", "Scalar")))
    known = learn(func, args, {}, args[0], COST)
    assert known is not None and known.result(args) is args[0]


def test_other_shapes_strides_dtypes_and_values_have_other_keys():
    one = key_of(aten.mul.Tensor, (tensor(), 2.0), {})
    for args in ((tensor(3, 6), 2.0), (tensor(5, 3).t(), 2.0), (tensor(dtype=torch.float16), 2.0), (tensor(), 2)):
        assert key_of(aten.mul.Tensor, args, {}) != one
    assert key_of(aten.mul.Tensor, (tensor(), True), {}) != key_of(aten.mul.Tensor, (tensor(), 1), {})


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.view.default, (tensor(), [15])),  # a view
        (aten._unsafe_view.default, (tensor(), [15])),  # a view that its schema does not call so
        (aten.mul.Tensor, (tensor(), torch.empty((), device="meta"))),  # a scalar: a number in disguise?
        (aten.mul.Tensor, (torch.zeros(3), torch.zeros(3))),  # not on meta
        (aten.mul.Tensor, (tensor(), tensor().as_subclass(type("Mine", (torch.Tensor,), {})))),
        (aten.resize_.default, (tensor(), [2])),
    ],
)
def test_what_may_depend_on_more_is_left_to_torch(func, args):
    assert not can_be_known(func) or key_of(func, args, {}) is None


def test_a_result_that_is_an_argument_or_shares_its_storage_is_not_remembered():
    args = (tensor(), 0.0, False)
    assert learn(aten.native_dropout.default, args, {}, (args[0], tensor()), COST) is None
    assert learn(aten.mul.Tensor, (tensor(), 2), {}, tensor(6)[2:], COST) is None
