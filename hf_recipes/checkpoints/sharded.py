"""A model and an optimizer whose tensors are spread over the processes (FSDP2): to files that one process reads, too.

    weights       complete safetensors, as every run writes them: plain transformers loads them, on any number of
                  processes. Gathered one tensor at a time into the CPU memory of rank 0, never onto a GPU as a whole.
    optimizer     optimizer_shards/: each rank writes its own parts as safetensors, through torch's distributed
                  checkpoint; settings.pt has what is no tensor. Nothing in them is a pickle that could hold code.

Reading knows no difference between launches: an optimizer's state has the form of `optimizer.state_dict()`, numbered
parameters, whichever launch wrote it, and each process takes its own part of it. So a run may continue with FSDP2, DDP
or one process, whatever it began with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, empty

from hf_recipes.checkpoints.folders import OPTIMIZER_SHARDS
from hf_recipes.errors import CheckpointError

SETTINGS = "settings.pt"


# --- weights ---------------------------------------------------------------------------------------------------------


def gather_weights(model: Any) -> dict[str, torch.Tensor]:
    """The complete tensors that a checkpoint has, on rank 0's CPU (with peft those of the adapter); {} on the others.
    Every rank must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    adapter = hasattr(model, "get_base_model")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapter)
    found: Any = get_model_state_dict(model, options=options)
    return dict(found)


@torch.no_grad()
def load_weights(model: Any, folder: str) -> None:
    """The weights of a checkpoint's safetensors, this rank's part of each. Raises ValueError for a checkpoint that
    lacks some, OSError and SafetensorError for a file that cannot be read."""
    from safetensors import safe_open

    ours = _saved_tensors(model)
    if find_missing(model, folder) and not hasattr(model, "get_base_model"):
        _copy_all(ours, _read_as_transformers(model, folder))
        return
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name in ours:
                    _copy(ours[name], file.get_tensor(name))


def find_missing(model: Any, folder: str) -> list[str]:
    """The names of a model's tensors that a checkpoint's files do not have. transformers writes some models (experts
    that are one tensor in memory) under the names and in the pieces of the published files."""
    from safetensors import safe_open

    there: set[str] = set()
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            there.update(file.keys())
    ours = _saved_tensors(model)
    tied = {_memory(ours[name]) for name in there & ours.keys()}  # one name is written of several
    return sorted(name for name, tensor in ours.items() if name not in there and _memory(tensor) not in tied)


def _memory(tensor: torch.Tensor) -> Any:
    local = _local(tensor)
    return local.data_ptr() or id(tensor)  # an empty part has no address


def _read_as_transformers(model: Any, folder: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by the model's own names, on the CPU. Raises ValueError where some are missing."""
    variable = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # with it only rank 0 reads
    before = os.environ.pop(variable, None)
    try:
        complete, info = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    finally:
        if before is not None:
            os.environ[variable] = before
    if info["missing_keys"]:
        raise ValueError(f"it has no {', '.join(sorted(info['missing_keys'])[:3])}")
    return dict(complete.state_dict())


def _copy_all(ours: Mapping[str, torch.Tensor], complete: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in ours.items():
        _copy(tensor, complete[name])


def _saved_tensors(model: Any) -> dict[str, torch.Tensor]:
    """What save_pretrained writes, by the names that it writes; each shares its memory with the model's parameter."""
    if hasattr(model, "get_base_model"):
        from peft import get_peft_model_state_dict

        found: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
        return found
    return dict(model.state_dict())


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(target: torch.Tensor, complete: torch.Tensor) -> None:
    if target.shape != complete.shape:
        raise ValueError(f"a tensor of {tuple(complete.shape)} is here one of {tuple(target.shape)}")
    _local(target).copy_(_local(_like(target, complete)))


def _like(target: Any, complete: torch.Tensor) -> torch.Tensor:
    """This rank's part of a complete tensor, as `target` is spread. No rank waits for another."""
    if not isinstance(target, DTensor):
        return complete
    found: torch.Tensor = distribute_tensor(complete, target.device_mesh, target.placements, src_data_rank=None)
    return found


# --- the optimizer ---------------------------------------------------------------------------------------------------


def save_optimizer(optimizer: Any, folder: Path, rank: int) -> None:
    """Each rank's parts into `folder`/optimizer_shards. Every rank must call it.

    Raises CheckpointError where another rank could not write, OSError where this one could not, ValueError for an
    optimizer whose state has tensors inside of lists.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    state = optimizer.state_dict()
    tensors, rest = _split(state["state"])
    place = folder / OPTIMIZER_SHARDS
    place.mkdir(parents=True, exist_ok=True)
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(place), save_distributed=True))
    except CheckpointException as failed:
        own = failed.failures.get(rank)
        if own is not None and isinstance(own[0], Exception):
            raise own[0] from None
        what = "another process could not write its part of the optimizer's state"
        raise CheckpointError.at(str(folder), what, "see its message") from None
    if rank == 0:
        spread = {name: _describe_spread(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
        torch.save({"param_groups": state["param_groups"], "rest": rest, "spread": spread}, place / SETTINGS)


def _split(state: Mapping[int, Any]) -> tuple[dict[str, torch.Tensor], dict[int, dict[str, Any]]]:
    """An optimizer's tensors by "number.name", and its other values."""
    tensors, rest = {}, {}
    for number, values in state.items():
        rest[number] = {name: value for name, value in values.items() if not torch.is_tensor(value)}
        tensors.update({f"{number}.{name}": value for name, value in values.items() if torch.is_tensor(value)})
        if any(_holds_tensor(value) for value in rest[number].values()):
            raise ValueError("this optimizer keeps lists of tensors, which are not saved in shards")
    return tensors, rest


def _holds_tensor(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(torch.is_tensor(one) or _holds_tensor(one) for one in inner)


def _describe_spread(tensor: DTensor) -> int | None:
    """The dimension in which a tensor is cut; None where each rank has all of it."""
    place = tensor.placements[0]
    return place.dim if isinstance(place, Shard) else None


def read_optimizer(folder: Path, params: list[Any]) -> dict[str, Any]:
    """The state of `save_optimizer` in the form of optimizer.state_dict(): this rank's parts where the parameters of
    that number are DTensors, complete tensors else. `params`: in the order of their numbers. Reads no code."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    place = folder / OPTIMIZER_SHARDS
    settings = torch.load(place / SETTINGS, weights_only=True, map_location="cpu")
    reader = HuggingFaceStorageReader(str(place))
    tensors = {
        name: _make_room(name, saved, settings["spread"], params)
        for name, saved in reader.read_metadata().state_dict_metadata.items()
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    state: dict[int, dict[str, Any]] = {number: dict(values) for number, values in settings["rest"].items()}
    for name, tensor in tensors.items():
        number, _, key = name.partition(".")
        state[int(number)][key] = tensor
    return {"state": state, "param_groups": settings["param_groups"]}


def _make_room(name: str, saved: Any, spread: Mapping[str, int | None], params: list[Any]) -> torch.Tensor:
    number = int(name.partition(".")[0])
    param, size, dtype = params[number] if number < len(params) else None, saved.size, saved.properties.dtype
    if not isinstance(param, DTensor):
        return torch.empty(size, dtype=dtype)
    if size == param.shape:
        return torch.empty_like(param, dtype=dtype)
    if name not in spread:
        return torch.empty(size, dtype=dtype)
    cut = spread[name]
    return empty(
        size, dtype=dtype, device_mesh=param.device_mesh, placements=[Replicate() if cut is None else Shard(cut)]
    )


def spread_optimizer(state: dict[str, Any], params: list[Any]) -> dict[str, Any]:
    """A state of complete tensors (optimizer.pt), of each this rank's part where its parameter is a DTensor."""
    found = {}
    for number, values in state["state"].items():
        param = params[number] if number < len(params) else None
        found[number] = {
            name: _like(param, value)
            if torch.is_tensor(value) and value.shape == getattr(param, "shape", None)
            else value
            for name, value in values.items()
        }
    return {**state, "state": found}
