"""Recipes and devices for the tests of the rules."""

from hf_recipes.common.device import Device
from hf_recipes.recipe.recipe import Recipe

CPU = Device(kind="cpu", name="a CPU", bf16=True)


T4 = Device(kind="cuda", name="Tesla T4", count=1, capability=(7, 5), bf16=False)


A100 = Device(kind="cuda", name="NVIDIA A100", count=1, capability=(8, 0), bf16=True)


MPS = Device(kind="mps", name="Apple GPU (MPS)", count=1, bf16=True)


def recipe_of(sections, **more):
    base = {"task": "chat", "model": {"pretrained_model_name_or_path": "gpt2"}, "dataset": {"path": "json"}}
    return Recipe(path="a.yaml", sections={**base, **sections}, locations={}, **more)


SFT = {"task": "causal-lm", "trainer": "SFTConfig", "model": "gpt2"}


TRAINER = {"task": "causal-lm", "model": "gpt2"}


def tiny_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=64, n_positions=16))


def handlers():
    from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS

    return _OPTIMIZER_HANDLERS
