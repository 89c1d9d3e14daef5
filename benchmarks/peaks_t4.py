"""QLoRA steps that fitcheck-llm measured on a T4 with a loop of its own: nf4, fp16, LoRA, checkpointing, AdamW.

The model is loaded in 4 bit as transformers does it, and prepare_model_for_kbit_training makes its fp32 copies: what
both leave in the allocator's cache counts in what is reserved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from watch import watching

from hf_recipes.catalog.presets import SHAPES
from hf_recipes.plan.trace.cuda_allocator import replay
from hf_recipes.plan.trace.load import replay_load
from hf_recipes.plan.trace.load_race import race_range
from hf_recipes.plan.trace.meta_model import quantize_model, tensors_before_training
from hf_recipes.plan.trace.upstream_patches import replace_attribute

CAPABILITY = (7, 5)
STEPS = 3
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float16"}


def peak(row: dict[str, Any]) -> tuple[int, int, tuple[int, int]]:
    """(allocated, reserved) bytes of a row of published/t4.json, and the least and the most that four threads' race
    leaves reserved."""
    made, load = events(row)
    found = replay(made)
    return found.allocated, found.peak, race_range(made, load)


def name(row: dict[str, Any]) -> str:
    settings = row["settings"]
    attention = settings["attention"].partition(" ")[0]
    return f"{settings['model']} {settings['batch']} x {settings['length']}, {attention}"


def events(row: dict[str, Any]) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """The row's events, and how many of them each weight's load took."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = row["settings"]
    shape = dict(SHAPES[settings["model"]].config)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    attention = settings["attention"].partition(" ")[0]
    with _repeated_keys(), watching(CAPABILITY) as tracker, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16, attn_implementation=attention)
        quantize_model(model, NF4)
        model.is_loaded_in_4bit = True
        tracker.events.clear()
        tracker.storages.clear()
        tracker._alive.clear()
        loaded = tensors_before_training(model)
        load = replay_load(tracker, model)
        for tensor in loaded:
            tracker.track(tensor, "loaded")
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
        adapter = settings["lora"]
        words = {"r": adapter["r"], "lora_alpha": adapter["alpha"], "lora_dropout": adapter["dropout"]}
        targets = [f"{one}_proj" for one in adapter["targets"]]
        model = get_peft_model(model, LoraConfig(target_modules=targets, **words))
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for _ in range(STEPS):
            ids = torch.zeros(settings["batch"], settings["length"], dtype=torch.long)
            output = model(input_ids=ids, labels=ids)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del output
        return list(tracker.events), load


@contextmanager
def _repeated_keys() -> Iterator[None]:
    """Its sdpa rows repeat keys and values, and pin the memory-efficient kernel."""
    import transformers.integrations.sdpa_attention as sdpa

    with replace_attribute(sdpa, "use_gqa_in_sdpa", lambda *_, **__: False):
        yield
