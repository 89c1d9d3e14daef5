"""Weights and optimizer under ZeRO-2 and ZeRO-3: of DeepSpeed's own engine on two CPU processes, beside AdamW."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.forks import run_ranks
from tests.support.sharded_ranks import use_gloo_alone

pytest.importorskip("deepspeed", reason="pip install '.[test]' brings it on Linux")

SEED, ROWS = 3, torch.arange(24.0).reshape(4, 6) / 24


def _model() -> Any:
    """Odd sizes (the last part of a parameter is filled up), a tied weight, a frozen one, a buffer."""
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 7, bias=False), torch.nn.Linear(7, 3))
    model[2].weight.requires_grad_(False)
    model.register_buffer("scale", torch.ones(3))
    model.register_parameter("again", model[1].weight)
    return model


def _groups(model: Any) -> list[dict[str, Any]]:
    return [
        {"params": [model[0].weight, model[1].weight], "weight_decay": 0.1},
        {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
    ]


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(_groups(model), lr=0.1)


def _engine(stage: int) -> Any:
    import deepspeed

    model = _model()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "gradient_clipping": 0.0,
    }
    return deepspeed.initialize(model=model, optimizer=_optimizer(model), config=config)[0]


def _step(engine: Any, rank: int, number: int) -> None:
    loss = engine(ROWS[2 * rank : 2 * rank + 2] + number).square().mean()
    engine.backward(loss)
    engine.step()


def _straight(steps: int) -> tuple[Any, torch.optim.Optimizer]:
    model = _model()
    optimizer = _optimizer(model)
    for number in range(steps):
        model(ROWS + number).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def _assert_states(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["state"].keys() == expected["state"].keys()
    for number, state in expected["state"].items():
        assert found["state"][number].keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(found["state"][number][name], value, atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(found["param_groups"], expected["param_groups"], strict=True):
        assert (ours["params"], ours["lr"], ours["weight_decay"]) == (
            theirs["params"],
            theirs["lr"],
            theirs["weight_decay"],
        )


def _work(stage: int) -> Callable[[int], None]:
    def work(rank: int) -> None:
        from safetensors.torch import save_file

        from hf_recipes.checkpoints import zero

        torch.set_num_threads(1)
        os.environ["DS_ACCELERATOR"] = "cpu"
        use_gloo_alone()
        engine = _engine(stage)
        for number in range(2):
            _step(engine, rank, number)
        weights, state = zero.gather_weights(engine, engine.module), zero.WholeOptimizer(engine).state_dict()
        if rank == 0:  # what one process has after the same steps
            model, optimizer = _straight(2)
            assert weights.keys() == model.state_dict().keys()
            assert weights["again"] is weights["1.weight"]
            for name, tensor in model.state_dict().items():
                torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5)
            _assert_states(state, optimizer.state_dict())
            save_file({key: value.clone() for key, value in weights.items() if key != "again"}, "a.safetensors")
            torch.save(optimizer.state_dict(), "optimizer.pt")
        torch.distributed.barrier()
        resumed = _engine(stage)  # continues from one process's files as one process does
        zero.load_weights(resumed, resumed.module, ".")
        zero.WholeOptimizer(resumed).load_state_dict(torch.load("optimizer.pt", weights_only=True))
        for number in range(2, 4):
            _step(resumed, rank, number)
        weights, state = zero.gather_weights(resumed, resumed.module), zero.WholeOptimizer(resumed).state_dict()
        if rank == 0:
            model, optimizer = _straight(4)
            for name, tensor in model.state_dict().items():
                torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4)
            _assert_states(state, optimizer.state_dict())
        else:
            assert weights == {} and state["state"] == {}
        wrong = torch.load("optimizer.pt", weights_only=True)
        wrong["state"][0]["exp_avg"] = torch.zeros(2, 2)
        with pytest.raises(ValueError, match=r"exp_avg is \(2, 2\) for a weight of \(5, 6\)"):
            zero.WholeOptimizer(resumed).load_state_dict(wrong)
        print(f"rank {rank} done")

    return work


@pytest.mark.parametrize("stage", [2, 3])
def test_complete_weights_and_optimizer_states_leave_and_enter_deepspeeds_engine(folder: Path, stage: int) -> None:
    code, output = run_ranks(_work(stage))
    assert code == 0, output[-4000:]
    assert output.count(" done") == 2
