"""The simulated autocast is the installed torch's: its lists by the header, a CPU's by what it does there."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hf_recipes.plan.trace import autocast
from hf_recipes.plan.trace.autocast import Simulation, replace_autocast
from hf_recipes.plan.trace.tracker import Tracker

HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"


def listed(name: str) -> set[str]:
    """The operators of one of the header's lists."""
    found = re.search(rf"#define {name}\(_\)(.*?)\n\n", HEADER.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return set(re.findall(r"_\(\s*(?:ADD_NS\()?(\w+)", found.group(1)))


def test_the_lists_are_those_of_the_installed_torch():
    assert set(autocast.LOWER) == listed("AT_FORALL_LOWER_PRECISION_FP")
    assert set(autocast.FP32) == listed("AT_FORALL_FP32")
    by_dtype = listed("AT_FORALL_FP32_SET_OPT_DTYPE") | listed("AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE")
    assert set(autocast.FP32_SET_OPT_DTYPE) == by_dtype
    assert set(autocast.PROMOTE) == listed("AT_FORALL_PROMOTE")


WEIGHT = torch.nn.Parameter(torch.ones(4, 4))
CALLS = {
    "linear": lambda x, half: F.linear(x, WEIGHT.to(x.device)),
    "matmul": lambda x, half: x @ x,
    "softmax": lambda x, half: half.softmax(-1),
    "layer_norm": lambda x, half: F.layer_norm(half, (4,), WEIGHT[0].to(x.device).to(half.dtype)),
    "mse_loss": lambda x, half: F.mse_loss(half, half),
    "cross_entropy": lambda x, half: F.cross_entropy(half, torch.zeros(4, dtype=torch.long, device=half.device)),
    "gelu": lambda x, half: F.gelu(half),
    "pow": lambda x, half: half**2,
    "sum": lambda x, half: half.sum(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_planned_cpu_gives_the_dtype_that_autocast_on_a_cpu_gives(name):
    x = torch.ones(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        real = CALLS[name](x, x.to(torch.bfloat16)).dtype
    tracker = Tracker(device="meta")
    simulation = Simulation(tracker, None)
    with replace_autocast(simulation, "cpu"), simulation, tracker, torch.autocast("cpu", dtype=torch.bfloat16):
        meta = x.to("meta")
        assert CALLS[name](meta, meta.to(torch.bfloat16)).dtype == real


ON_A_CARD = {
    "linear": torch.float16,
    "matmul": torch.float16,
    "softmax": torch.float32,
    "layer_norm": torch.float32,
    "mse_loss": torch.float32,
    "cross_entropy": torch.float32,
    "gelu": torch.float16,
    "pow": torch.float32,
    "sum": torch.float32,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_planned_gpu_gives_the_dtype_that_the_lists_say(name):
    tracker = Tracker(device="meta")
    simulation = Simulation(tracker, (8, 6))
    with replace_autocast(simulation, "cuda"), simulation, tracker, torch.autocast("cuda", dtype=torch.float16):
        meta = torch.ones(4, 4, device="meta")
        assert CALLS[name](meta, meta.half()).dtype == ON_A_CARD[name]
    assert torch.autocast.__name__ == "autocast" and not torch.is_autocast_enabled("cuda")


def test_a_trained_weight_is_cast_once_and_a_frozen_one_each_time():
    for trained, copies in ((True, 1), (False, 3)):
        tracker = Tracker(device="meta")
        simulation = Simulation(tracker, (8, 6))
        weight = torch.nn.Parameter(torch.ones(8, 8, device="meta"), requires_grad=trained)
        with replace_autocast(simulation, "cuda"), simulation, tracker:
            x = torch.ones(2, 8, device="meta", dtype=torch.float16)
            with torch.autocast("cuda", dtype=torch.float16):
                for _ in range(3):
                    F.linear(x, weight)
        assert sum(storage.part == "AMP copies" for storage in tracker.storages) == copies
        assert not simulation._copies, "forgotten where autocast ends"
