"""What `tune` tries: keys of the recipe that may make a step faster. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.common.text import as_yaml
from hf_recipes.recipe.global_batch import ACCUMULATION, PER_DEVICE, accumulation_of, rows_per_device
from hf_recipes.recipe.recipe import Recipe

ATTENTION = "model.attn_implementation"
WORKERS = 2


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Dotted keys with the values to try."""

    values: Mapping[str, Any]
    same_rows: bool = True  # each step learns from the same rows as before: losses can be compared step by step
    rounds: bool = False  # it computes in fewer bits: losses are compared with the tolerance of 16 bits
    leaves_traces: bool = False  # it changes the process that it runs in: the next trial needs a new one

    def __str__(self) -> str:
        return ", ".join(f"{key.rpartition('.')[2]}: {as_yaml(value)}" for key, value in self.values.items())


@dataclass(frozen=True, kw_only=True)
class Here:
    """What the machine and the recipe's model say. `attention`: the model's implementation as the recipe is."""

    kind: str  # cpu, cuda or mps
    capability: tuple[int, int] | None
    attention: str | None
    packages: Collection[str]  # of flash_attn, liger_kernel, triton and a C++ compiler ("c++")
    kernels: Collection[str] = ()  # repositories of attention kernels that are in the Hub's cache


def list_candidates(recipe: Recipe, here: Here, *, every: bool = False) -> list[Candidate]:
    """In the order in which they are tried. `every`: also those after which a step learns from other rows, or computes
    in fewer bits."""
    found = [*_micro_batches(recipe), *_checkpointing(recipe), *_optimizer(recipe), *_workers(recipe, here)]
    found += [*_attention(here), *_kernels(recipe, here), *_compile(recipe, here)]
    if every:
        found += [*_precision(recipe, here), *_other_rows(recipe)]
    return found


def _micro_batches(recipe: Recipe) -> Iterator[Candidate]:
    """The same rows a step in fewer, or more, micro-batches; a smaller one has less padding."""
    rows, steps, section = rows_per_device(recipe), accumulation_of(recipe), recipe.trainer
    sizes = [rows * 4, rows * 2, rows // 2]
    for size in sizes:
        if size and (rows * steps) % size == 0:
            keys = {f"{section}.{PER_DEVICE}": size, f"{section}.{ACCUMULATION}": rows * steps // size}
            if recipe.get("global_batch_size") is not None and recipe.training.get(ACCUMULATION) is None:
                del keys[f"{section}.{ACCUMULATION}"]  # global_batch_size decides it
            yield Candidate(values=keys)


def _checkpointing(recipe: Recipe) -> Iterator[Candidate]:
    """Without recomputation, where the memory suffices."""
    names = [name for name in ("gradient_checkpointing", "activation_checkpointing") if recipe.training.get(name)]
    if not names and recipe.trainer == "SFTConfig" and "activation_checkpointing" not in recipe.training:
        names = ["activation_checkpointing"]  # SFTConfig's default is true
    if names:
        yield Candidate(values={f"{recipe.trainer}.{name}": False for name in names})


def _optimizer(recipe: Recipe) -> Iterator[Candidate]:
    if recipe.training.get("optim") in ("adamw_torch", "adamw_hf"):
        yield Candidate(values={f"{recipe.trainer}.optim": "adamw_torch_fused"})


def _attention(here: Here) -> Iterator[Candidate]:
    others = ["sdpa", "eager"]
    if here.kind == "cuda" and "flash_attn" in here.packages:
        others.insert(0, "flash_attention_2")
    elif here.kind == "cuda":  # the Hub's build of the same kernels
        others = [*here.kernels, *others]
    for name in others:
        if here.attention is not None and name != here.attention:
            yield Candidate(values={ATTENTION: name})


def _kernels(recipe: Recipe, here: Here) -> Iterator[Candidate]:
    if here.kind == "cuda" and "liger_kernel" in here.packages and not recipe.training.get("use_liger_kernel"):
        yield Candidate(values={f"{recipe.trainer}.use_liger_kernel": True}, leaves_traces=True)


def _workers(recipe: Recipe, here: Here) -> Iterator[Candidate]:
    if not recipe.training.get("dataloader_num_workers"):
        yield Candidate(values={f"{recipe.trainer}.dataloader_num_workers": WORKERS})


def _compile(recipe: Recipe, here: Here) -> Iterator[Candidate]:
    compiler = "triton" if here.kind == "cuda" else "c++"
    if here.kind != "mps" and compiler in here.packages and not recipe.training.get("torch_compile"):
        yield Candidate(values={f"{recipe.trainer}.torch_compile": True}, leaves_traces=True)


def _precision(recipe: Recipe, here: Here) -> Iterator[Candidate]:
    if here.kind == "cuda" and (here.capability or (0, 0)) >= (8, 0) and recipe.training.get("tf32") is None:
        yield Candidate(values={f"{recipe.trainer}.tf32": True}, rounds=True, leaves_traces=True)


def _other_rows(recipe: Recipe) -> Iterator[Candidate]:
    section, packed = recipe.trainer, bool(recipe.training.get("packing"))
    if section == "SFTConfig" and not packed:
        yield Candidate(values={"SFTConfig.packing": True}, same_rows=False)
    blocks = section == "TrainingArguments" and recipe.task == "causal-lm"  # all rows have one length
    if not (packed or blocks) and recipe.training.get("train_sampling_strategy") is None:
        yield Candidate(values={f"{section}.train_sampling_strategy": "group_by_length"}, same_rows=False)
