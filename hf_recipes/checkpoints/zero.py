"""A model and an optimizer under DeepSpeed's ZeRO-2 or ZeRO-3: to the files of every other launch, and back.

DeepSpeed's own checkpoints are not written: they fit one number of processes, and reading them runs what is in a
pickle. Here a tensor is put together from its parts on all processes, one at a time, and goes to rank 0's CPU memory:

    weights       complete safetensors, of the fp32 masters
    optimizer     optimizer.pt, numbered parameters, as one process writes it

So a run may continue with ZeRO-2, ZeRO-3, FSDP2, DDP or one process, whatever it began with.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What this process has of a trained parameter. `flat`: its fp32 masters of many parameters, where this one's
    begin at `at`; they are `count` elements of the parameter, from `begin` on."""

    flat: torch.Tensor
    at: int
    begin: int
    count: int

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Of a tensor that is as long as `flat`."""
        return values.narrow(0, self.at, self.count)


def _find_part(zero: Any, param: Any) -> Part | None:
    """None where this process has none. `zero`: DeepSpeed's optimizer."""
    if hasattr(param, "ds_id"):  # ZeRO-3
        group, at, size = zero.grad_position[zero.get_param_id(param)]
        begin = size * torch.distributed.get_rank()
        count = max(0, min(size, param.ds_numel - begin))  # the last part is filled up
        return Part(flat=zero.fp32_partitioned_groups_flat[group], at=at, begin=begin, count=count) if count else None
    found = param._hp_mapping
    if found is None:
        return None
    flat = zero.single_partition_of_fp32_groups[found.param_group_index]
    here, there = found.hp_fragment_address, found.lp_fragment_address
    return Part(flat=flat, at=here.start, begin=there.start, count=there.numel)


def _shape(param: Any) -> torch.Size:
    return torch.Size(param.ds_shape if hasattr(param, "ds_id") else param.shape)


def _gather(param: Any, part: Part | None, values: torch.Tensor | None) -> torch.Tensor:
    """The complete tensor on every process, of what each has (`values`, as long as its `part.flat`)."""
    whole = torch.zeros(_shape(param).numel(), dtype=torch.float32, device=param.device)
    if part is not None and values is not None:
        whole.narrow(0, part.begin, part.count).copy_(part.of(values))
    torch.distributed.all_reduce(whole)
    return whole.reshape(_shape(param))


def _put(part: Part | None, values: torch.Tensor | None, whole: torch.Tensor) -> None:
    if part is not None and values is not None:
        part.of(values).copy_(whole.reshape(-1).narrow(0, part.begin, part.count))


# --- weights ---------------------------------------------------------------------------------------------------------


def _named_tensors(model: Any) -> dict[str, Any]:
    """Parameters and buffers by the names that save_pretrained writes; with peft those of the adapter."""
    found = model.state_dict(keep_vars=True)
    if hasattr(model, "get_base_model"):
        from peft import get_peft_model_state_dict

        return dict(get_peft_model_state_dict(model, state_dict=found))
    return dict(found)


@torch.no_grad()
def gather_weights(engine: Any, model: Any) -> dict[str, torch.Tensor]:
    """The complete tensors on rank 0's CPU; {} on the others. Every rank must call it."""
    first = torch.distributed.get_rank() == 0
    done: dict[int, torch.Tensor] = {}  # one parameter may have several names
    found = {}
    for name, param in _named_tensors(model).items():
        if id(param) not in done:
            whole = _read_whole(engine, param)
            done[id(param)] = whole.detach().to("cpu", copy=True) if first else torch.empty(0)
        found[name] = done[id(param)]
    return found if first else {}


def _read_whole(engine: Any, param: Any) -> torch.Tensor:
    if isinstance(param, torch.nn.Parameter) and param.requires_grad:
        part = _find_part(engine.optimizer, param)
        return _gather(param, part, part.flat if part is not None else None)
    if not hasattr(param, "ds_id"):
        tensor: torch.Tensor = param
        return tensor
    import deepspeed

    with deepspeed.zero.GatheredParameters([param]):
        return param.detach().clone()


@torch.no_grad()
def load_weights(engine: Any, model: Any, folder: str) -> None:
    """The weights of a checkpoint's safetensors. Every rank must call it. Raises ValueError for a checkpoint that
    lacks some, OSError and SafetensorError for a file that cannot be read."""
    from safetensors import safe_open

    ours, seen = _named_tensors(model), set[int]()
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(set(file.keys()) & ours.keys()):
                whole = file.get_tensor(name)
                if whole.shape != _shape(ours[name]):
                    raise ValueError(f"{name} is of {tuple(whole.shape)}, here of {tuple(_shape(ours[name]))}")
                _write_whole(engine, ours[name], whole)
                seen.add(id(ours[name]))
    missing = [name for name, param in ours.items() if id(param) not in seen]
    if missing:
        raise ValueError(f"it has no {', '.join(missing[:3])}")


def _write_whole(engine: Any, param: Any, whole: torch.Tensor) -> None:
    if isinstance(param, torch.nn.Parameter) and param.requires_grad:
        part = _find_part(engine.optimizer, param)
        _put(part, part.flat if part is not None else None, whole)
    if not hasattr(param, "ds_id"):
        param.data.copy_(whole)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            param.data.copy_(whole)


# --- the optimizer ---------------------------------------------------------------------------------------------------


def save_optimizer(engine: Any, folder: Path) -> None:
    """optimizer.pt, written by rank 0. Every rank must call it."""
    state = WholeOptimizer(engine).state_dict()
    if torch.distributed.get_rank() == 0:
        torch.save(state, folder / OPTIMIZER)


class Group(MutableMapping[str, Any]):
    """One of the optimizer's groups, with the parameters instead of DeepSpeed's flat parts of them."""

    def __init__(self, settings: dict[str, Any], params: list[Any]) -> None:
        self.settings, self.params = settings, params

    def __getitem__(self, key: str) -> Any:
        return self.params if key == "params" else self.settings[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.settings[key] = value

    def __delitem__(self, key: str) -> None:
        del self.settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


class WholeOptimizer:
    """DeepSpeed's optimizer with the members of torch's that a checkpoint needs: states of complete tensors."""

    def __init__(self, engine: Any) -> None:
        self.zero = engine.optimizer
        self.optimizer = self.zero.optimizer  # torch's, on flat parts
        self.state = self.optimizer.state
        self.param_groups = [
            Group(settings, params)
            for settings, params in zip(self.optimizer.param_groups, self._list_params(), strict=True)
        ]

    def _list_params(self) -> list[list[Any]]:
        """The trained parameters of each group, in the order in which the optimizer was given them."""
        if not hasattr(self.zero, "fp16_groups"):  # ZeRO-2
            return [list(group) for group in self.zero.bit16_groups]
        found: list[list[Any]] = [[] for _ in self.optimizer.param_groups]
        for number, group in enumerate(self.zero.fp16_groups):
            found[self.zero.sub_group_to_group_id[number]].extend(group)
        return found

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        return enumerate(param for group in self.param_groups for param in group["params"])

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """As torch's, on rank 0's CPU; the other ranks' has no states. Every rank must call it."""
        first, states, groups, at = torch.distributed.get_rank() == 0, {}, [], 0
        for number, param in self._numbered():
            state = self._gather_state(param)
            if first and state:
                states[number] = state
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group.settings, "params": list(range(at, at + count))})
            at += count
        return {"state": states, "param_groups": groups}

    def _gather_state(self, param: Any) -> dict[str, Any]:
        part = _find_part(self.zero, param)
        sample: Any = next(iter(self.state.values()), {})  # every process has stepped, with at least one part
        flat = next(iter(self.state), None)
        own = self.state.get(part.flat, {}) if part is not None else {}
        found: dict[str, Any] = {}
        for name, value in sample.items():
            if torch.is_tensor(value) and flat is not None and value.shape == flat.shape:
                found[name] = _gather(param, part, own.get(name)).to("cpu", copy=True)
            else:
                found[name] = value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
        return found

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises ValueError for a state of other shapes."""
        states = saved["state"]
        for number, param in self._numbered():
            part, state = _find_part(self.zero, param), states.get(number)
            if state is None:
                continue
            for name, value in state.items():
                if torch.is_tensor(value) and value.dim() and value.shape != _shape(param):
                    raise ValueError(f"{name} is {tuple(value.shape)} for a weight of {tuple(_shape(param))}")
            if part is not None:
                self._put_state(part, state)
        for group, settings in zip(self.param_groups, saved["param_groups"], strict=True):
            group.settings.update({key: value for key, value in settings.items() if key != "params"})

    def _put_state(self, part: Part, state: dict[str, Any]) -> None:
        own = self.state[part.flat]
        for name, value in state.items():
            if torch.is_tensor(value) and value.dim():
                if name not in own:
                    own[name] = torch.zeros_like(part.flat, dtype=value.dtype)
                _put(part, own[name], value)
            else:
                own[name] = value.clone() if torch.is_tensor(value) else value
