"""What an operation on meta tensors gave before: the second of two equal layers asks torch nothing new.

torch runs many meta kernels in Python (torch/_refs, torch/_decomp): broadcasting, promotion, strides. That is most of
a trace's time. What comes out depends on the arguments' shapes, strides and dtypes and on plain values alone, so it is
remembered for one trace. Only operations that write nothing and return new storages are, and a few in place; what they
return is looked at the first time (`_is_new`). Views, scalars, subclasses and other devices are always torch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_VALUES = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
VIEWS = ("_unsafe_view", "_reshape_alias", "lift_fresh", "lift")  # which their schemas do not call so
IN_PLACE = ("add_", "sub_", "mul_", "div_", "addcmul_", "addcdiv_", "lerp_", "copy_", "zero_", "fill_", "masked_fill_")

Form = tuple[torch.Size, tuple[int, ...], torch.dtype]  # of a tensor
Cost = tuple[int, int, bool]  # floating point operations, bytes that are moved, whether in half precision


@dataclass(frozen=True, slots=True)
class Known:
    """`forms`: of each result, None for none of it; `many`: how they are returned; in place, the first argument is."""

    forms: tuple[Form | None, ...]
    many: type | None
    in_place: bool
    cost: Cost

    def result(self, args: tuple[Any, ...]) -> Any:
        """New tensors of the remembered forms."""
        if self.in_place:
            return args[0]
        if self.many is None:
            return _new(self.forms[0])
        return self.many(map(_new, self.forms))


def key_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """All that the result depends on; None where it may depend on more. `func`: one that `can_be_known`."""
    try:
        named = tuple((name, _key(kwargs[name])) for name in sorted(kwargs)) if kwargs else ()
        return (id(func), torch.get_default_dtype(), named, *map(_key, args))
    except TypeError:
        return None


def learn(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, cost: Cost) -> Known | None:
    """What to remember of the first result; None where it is not new storage that its form describes."""
    if func._overloadpacket.__name__ in IN_PLACE:
        return Known(forms=(), many=None, in_place=True, cost=cost) if result is args[0] else None
    results = (result,) if isinstance(result, torch.Tensor) else result
    if type(results) not in (tuple, list):
        return None
    taken = {one.untyped_storage()._cdata for one in _tensors((*args, *kwargs.values()))}
    for one in results:
        if one is not None and not _is_new(one, taken):
            return None
    forms = tuple(None if one is None else (one.shape, one.stride(), one.dtype) for one in results)
    return Known(forms=forms, many=None if results is not result else type(result), in_place=False, cost=cost)


def _is_new(one: Any, taken: set[int]) -> bool:
    """Whether `empty_strided` makes the same: a plain tensor at the beginning of a storage of its own. Adds the storage
    to `taken`."""
    if type(one) is not torch.Tensor or not one.is_meta or one.layout is not torch.strided or one.storage_offset():
        return False
    storage = one.untyped_storage()
    if storage._cdata in taken or one.is_conj() or one.is_neg():
        return False
    taken.add(storage._cdata)
    return _make((one.shape, one.stride(), one.dtype)).untyped_storage().nbytes() == storage.nbytes()


def _make(form: Form) -> torch.Tensor:
    return torch.empty_strided(form[0], form[1], dtype=form[2], device="meta")


def _new(form: Form | None) -> torch.Tensor | None:
    return None if form is None else _make(form)


def _key(value: Any) -> Any:
    """Raises TypeError for what is not known by its form."""
    kind = type(value)
    if kind in _PLAIN:
        if not value.is_meta or not value.dim():  # a scalar may be a number in disguise, which promotes otherwise
            raise TypeError
        return value.shape, value.stride(), value.dtype
    if kind in (list, tuple):
        return tuple(map(_key, value))
    if kind in _VALUES:
        return kind, value  # 1, 1.0 and True are equal, and give different dtypes
    raise TypeError


def _tensors(values: Any) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def can_be_known(func: Any) -> bool:
    """By its schema: it writes into none of its arguments and returns none of them, or is one of IN_PLACE."""
    schema = func._schema
    pure = not any(one.alias_info for one in (*schema.arguments, *schema.returns))
    name = func._overloadpacket.__name__
    return bool(schema.returns) and (pure or name in IN_PLACE) and name not in VIEWS
