"""The states of optimizers that plan has a rule for, beside those that the packages' own code makes on a CPU.

    pip install --no-deps --target FOLDER galore-torch apollo-torch lomo-optim grokadamw
    pip install --no-deps --target FOLDER torch-optimi schedulefree torchao
    PYTHONPATH=FOLDER python benchmarks/optimizer_states.py

Two linear layers and a norm, two steps; every tensor of a state counts once. LOMO has no states, and GaLore's 8-bit
Adam runs on a GPU only. Writes results/optimizer_states.json; `python benchmarks/tables.py` makes its table of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/optimizer_states.json"
sys.path.insert(0, str(ROOT))

from hf_recipes.plan.trace.stand_in_optimizers import RULES, Options, StandIn  # noqa: E402
from hf_recipes.recipe.rules.device import optimizer_package  # noqa: E402

NOT_ON_A_CPU = ("galore_adamw_8bit", "lomo")
LOW_RANK = {"rank": 8, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 96), nn.Linear(96, 256), nn.LayerNorm(256))


def by_rule(name: str) -> int:
    model = small_model()
    low = {id(model[0].weight), id(model[1].weight)}
    optimizer = StandIn(list(model.parameters()), low, RULES[name], Options(rank=8, block=256, cpu=True))
    backward(model)
    optimizer.step()
    return sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())


def backward(model: nn.Module) -> None:
    model(torch.randn(4, 128)).square().mean().backward()


def by_package(name: str) -> int:
    model = small_model()
    weights = list(model.parameters())
    low = [model[0].weight, model[1].weight]
    rest = [weight for weight in weights if all(weight is not one for one in low)]
    groups = [{"params": rest}, {"params": low, **LOW_RANK}]
    if name == "adalomo":
        from lomo_optim import AdaLomo

        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]  # it asks for a GPU
        made = AdaLomo(model)
        return nbytes([made.exp_avg_sq, made.exp_avg_sq_row, made.exp_avg_sq_col], set())
    optimizer = make(name, weights, groups)
    backward(model)
    for _ in range(2):
        optimizer.step()
    states = [optimizer.state[weight] for weight in weights]
    if name == "grokadamw":
        states = [group["state"] for group in optimizer.param_groups]
    return nbytes(states, {weight.untyped_storage()._cdata for weight in weights})


def make(name: str, weights: list[nn.Parameter], groups: list[dict[str, Any]]) -> Any:
    """The package's optimizer, with the arguments that Trainer gives it."""
    if name == "galore_adamw":
        from galore_torch import GaLoreAdamW

        return GaLoreAdamW(groups, no_deprecation_warning=True)
    if name == "galore_adafactor":
        from galore_torch import GaLoreAdafactor

        return GaLoreAdafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False)
    if name == "apollo_adamw":
        from apollo_torch import APOLLOAdamW

        groups[1] |= {"proj": "random", "scale_type": "channel"}
        return APOLLOAdamW(groups, lr=1e-3)
    if name == "grokadamw":
        from grokadamw import GrokAdamW

        return GrokAdamW(weights)
    if name == "stable_adamw":
        from optimi import StableAdamW

        return StableAdamW(weights, lr=1e-3)
    if name.startswith("schedule_free"):
        import schedulefree

        kind = {"adamw": "AdamW", "radam": "RAdam", "sgd": "SGD"}[name.rpartition("_")[2]]
        optimizer = getattr(schedulefree, f"{kind}ScheduleFree")(weights, lr=1e-3)
        optimizer.train()
        return optimizer
    import torchao.optim

    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    return getattr(torchao.optim, f"AdamW{name[-4:]}")(weights, lr=1e-3, block_size=256)


def nbytes(value: Any, seen: set[int]) -> int:
    return sum(tensor.nbytes for tensor in tensors(value, seen))


def tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor in it once, those of a subclass by its parts; scalars are left out."""
    if hasattr(value, "__tensor_flatten__"):
        for name in value.__tensor_flatten__()[0]:
            yield from tensors(getattr(value, name), seen)
    elif isinstance(value, torch.Tensor):
        address = value.untyped_storage()._cdata
        if value.dim() and address not in seen:
            seen.add(address)
            yield value
    elif isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            yield from tensors(one, seen)
    elif hasattr(value, "ortho_matrix"):  # a projector
        yield from tensors(value.ortho_matrix, seen)


def main() -> None:
    rows = []
    for name in RULES:
        if name in NOT_ON_A_CPU:
            continue
        package = optimizer_package(name)
        assert package is not None
        rows.append(
            {
                "optim": name,
                "package": f"{package[1]} {version(package[1])}",
                "rule": by_rule(name),
                "real": by_package(name),
            }
        )
        print(rows[-1], flush=True)
    lines = ",\n".join(" " + json.dumps(row) for row in rows)
    RECORD.write_text('{"rows": [\n' + lines + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
