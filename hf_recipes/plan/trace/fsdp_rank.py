"""One rank of an FSDP2 launch on meta tensors: accelerate's and torch's own code (`fully_shard`), whose collectives
allocate as they do on a GPU and send nothing.

    with fsdp_on_meta(4, {}, tracker): trainer.train()

What torch does in a stream of its own is marked in `tracker.stream`, since the allocator gives no stream the free
blocks of another. Each private name is listed in tests/support/upstream_private_points.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from hf_recipes.plan.trace.meta_model import tensors_before_training
from hf_recipes.plan.trace.upstream_patches import META, replace_attribute

if TYPE_CHECKING:
    from hf_recipes.plan.trace.tracker import Tracker

# What `accelerate launch` sets for an FSDP2 file. Whether all ranks load the weights or only the first, which sends
# them: afterwards a rank holds the same, and on meta there is nothing to send.
VARIABLES = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
EVERY_RANK_LOADS = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


@contextmanager
def fsdp_on_meta(processes: int, settings: Mapping[str, str], tracker: Tracker) -> Iterator[None]:
    """This process is rank 0 of so many, for accelerate and for torch.distributed. `settings`: FSDP_* variables of the
    launch that differ from VARIABLES."""
    import torch.distributed as dist
    import torch.distributed._tools.fake_collectives  # noqa: F401  (collectives of meta tensors)
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        with ExitStack() as stack:
            stack.enter_context(_variables({**VARIABLES, **settings, **EVERY_RANK_LOADS}))
            stack.enter_context(_first_of(processes))
            stack.enter_context(_fully_shard(tracker))
            yield
    finally:
        dist.destroy_process_group()


@contextmanager
def shards_in(tracker: Tracker) -> Iterator[None]:
    """What is on the device before the first step are a rank's shards: the model is loaded in the CPU's memory."""
    import accelerate.accelerator as accelerator

    upstream = accelerator.fsdp2_prepare_model

    def prepare(accelerator: Any, model: Any) -> Any:
        with _disable_current_modes():
            model = upstream(accelerator, model)
        for tensor in tensors_before_training(model):
            tracker.track(tensor, "loaded", part="weights")
        return model

    with replace_attribute(accelerator, "fsdp2_prepare_model", prepare):
        yield


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _first_of(processes: int) -> Iterator[None]:
    """accelerate's state of rank 0; it takes FSDP for GPUs' back ends only."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from transformers import TrainingArguments

    original, upstream = TrainingArguments.device, AcceleratorState.__init__
    state = {"num_processes": processes, "process_index": 0, "local_process_index": 0, "backend": "fake"}

    def device(args: Any) -> torch.device:
        found: torch.device = original.fget(args)  # type: ignore[attr-defined]
        PartialState._shared_state.update(state, distributed_type=DistributedType.MULTI_CPU)
        return found

    def begin(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        upstream(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    with (
        replace_attribute(TrainingArguments, "device", property(device)),
        replace_attribute(AcceleratorState, "__init__", begin),
    ):
        yield


@contextmanager
def _fully_shard(tracker: Tracker) -> Iterator[None]:
    import torch.distributed.fsdp._fully_shard._fsdp_collectives as collectives
    import torch.distributed.fsdp._fully_shard._fsdp_param_group as group
    import torch.distributed.fsdp._fully_shard._fsdp_state as state
    import torch.distributed.fsdp._fully_shard._fully_shard as shard
    from accelerate import Accelerator

    from hf_recipes.training import overrides

    streams = _streams(tracker)
    with ExitStack() as stack:
        # Weights on meta are what this is about: no room on the CPU for them, and no refusal.
        stack.enter_context(replace_attribute(overrides, "give_addresses", lambda model: None))
        stack.enter_context(replace_attribute(group.FSDPParamGroup, "_validate_no_meta_params", lambda self: None))
        stack.enter_context(replace_attribute(Accelerator, "_prepare_fsdp2", _prepare))
        stack.enter_context(replace_attribute(shard, "_get_device_from_mesh", lambda mesh: META))
        for module in (collectives, group, state):
            stack.enter_context(replace_attribute(module, "_get_device_handle", lambda device: streams))
        stack.enter_context(_state_of_double_quantised_weights())
        yield


@contextmanager
def _state_of_double_quantised_weights() -> Iterator[None]:
    """accelerate asks for the state dict, for which bitsandbytes reads a number that a meta tensor does not have."""
    try:
        from bitsandbytes.functional import QuantState
    except ImportError:
        yield
        return
    upstream = QuantState.as_dict

    def as_dict(self: Any, packed: bool = False) -> dict[str, Any]:
        offset = self.offset
        if self.nested and offset.is_meta:
            self.offset = SimpleNamespace(item=lambda: 0.0)
        try:
            found: dict[str, Any] = upstream(self, packed)
            return found
        finally:
            self.offset = offset

    with replace_attribute(QuantState, "as_dict", as_dict):
        yield


def _streams(tracker: Tracker) -> Any:
    """torch.cuda's streams for FSDP: of each the number, which storages made in it get."""
    count = 0

    class Stream(torch.cpu.Stream):
        def __init__(self, priority: int = -1) -> None:
            nonlocal count
            count += 1
            self.number = count

    @contextmanager
    def stream(wanted: Any) -> Iterator[None]:
        before, tracker.stream = tracker.stream, getattr(wanted, "number", 0)
        try:
            yield
        finally:
            tracker.stream = before

    current = torch.cpu.current_stream
    return SimpleNamespace(Stream=Stream, stream=stream, current_stream=current, Event=torch.cpu.Event)


def _prepare(accelerator: Any, *args: Any) -> tuple[Any, ...]:
    """accelerate's _prepare_fsdp2, which finds the optimizer's weights by addresses: meta tensors have none."""
    import accelerate.accelerator as upstream

    result = [
        one if isinstance(one, torch.nn.Module) else accelerator._prepare_one(one, first_pass=True) for one in args
    ]
    models = [one for one in result if isinstance(one, torch.nn.Module)]
    if not models:
        return tuple(result)
    (model,) = models
    plugin = accelerator.state.fsdp_plugin
    plugin.set_auto_wrap_policy(model)
    if plugin.activation_checkpointing:
        model = upstream.fsdp2_apply_ac(accelerator, model)
    names = {id(weight): name for name, weight in model.named_parameters()}
    groups = [group for one in result if isinstance(one, torch.optim.Optimizer) for group in one.param_groups]
    held = [[names[id(weight)] for weight in group["params"]] for group in groups]
    for group in groups:
        group["params"] = []
    accelerator._models.append(model)
    sharded = upstream.fsdp2_prepare_model(accelerator, model)
    weights = dict(sharded.named_parameters())
    for group, named in zip(groups, held, strict=True):
        group["params"] = [weights[name] for name in named]
    return tuple(sharded if isinstance(one, torch.nn.Module) else one for one in result)
