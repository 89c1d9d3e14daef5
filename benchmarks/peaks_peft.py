"""peft's published peaks of Llama-3.2-3B on MetaMathQA: its own training loop (method_comparison/MetaMathQA/run.py).

The longest batch of the data is not recorded: one number, shared by all rows, which peaks.py fits once.
"""

from __future__ import annotations

from typing import Any

import torch
from watch import watching

from hf_recipes.catalog.presets import SHAPES
from hf_recipes.plan.trace.cuda_allocator import EMPTY_CACHE, replay
from hf_recipes.plan.trace.meta_model import tensors_before_training
from hf_recipes.plan.trace.tracker import UntraceableError

CAPABILITY = (8, 9)  # L40S
SHORT = 128  # tokens of the shortest batches


class Refused(Exception):
    """A method that cannot be traced; the message says which and why."""


def peak(row: dict[str, Any], length: int) -> int:
    """Bytes of torch.cuda.max_memory_reserved with a longest batch of `length` tokens. Raises Refused."""
    method = (row["peft_config"] or {}).get("peft_type", "full fine-tuning")
    try:
        return replay(_events(row, length)).peak
    except (UntraceableError, NotImplementedError, RuntimeError, ValueError) as problem:
        raise Refused(f"{method}: {(str(problem).strip().splitlines() or [''])[0][:160]}") from problem


def _events(row: dict[str, Any], length: int) -> list[tuple[int, int]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    train = row["train"]
    shape = dict(SHAPES[train["model_id"]].config)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with watching(CAPABILITY, uniform=True) as tracker, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, train["dtype"]))
        if row["peft_config"]:
            model = _with_adapter(model, row)
        tracker.events.clear()
        tracker.storages.clear()
        tracker._alive.clear()
        for tensor in tensors_before_training(model):
            tracker.track(tensor, "loaded")
        optimizer = _optimizer(model, train)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        if trained != row["trainable_params"]:
            raise Refused(f"{trained} trainable parameters here, {row['trainable_params']} published")
        model.train()
        # Batches are sorted from long to short within 20; the cache is emptied every 10: the longest batch comes right
        # after a short one and an emptied cache, while `outputs` still holds the short one's logits.
        outputs = None
        for step, tokens in enumerate((SHORT, length), 1):
            outputs = _step(model, optimizer, train["batch_size"], tokens, outputs)
            if (row["peft_config"] or {}).get("peft_type") == "ADALORA":
                model.base_model.update_and_allocate(step)
            tracker.events.append(EMPTY_CACHE)
        return list(tracker.events)


def _with_adapter(model: Any, row: dict[str, Any]) -> Any:
    import dataclasses

    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    words = dict(row["peft_config"])
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[words.pop("peft_type")]
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    words = {name: value for name, value in words.items() if name in known and value is not None}
    for name in ("rank_pattern", "auto_mapping", "peft_version"):
        words.pop(name, None)
    # Other initialisations compute on the weights; their result has the same size.
    if isinstance(words.get("init_lora_weights"), str):
        words["init_lora_weights"] = True
    if row["peft_config"]["peft_type"] == "OFT" and words.get("r"):
        words["oft_block_size"] = 0  # one follows from the other, and only one may be given
    return get_peft_model(model, kind(**words), autocast_adapter_dtype=row["train"]["autocast_adapter_dtype"])


def _optimizer(model: Any, train: dict[str, Any]) -> Any:
    words = dict(train["optimizer_kwargs"])
    if train["optimizer_type"] == "lora-fa":
        from peft.optimizers import create_lorafa_optimizer

        return create_lorafa_optimizer(model, **words)
    return getattr(torch.optim, train["optimizer_type"])(model.parameters(), **words)


def _step(model: Any, optimizer: Any, rows: int, length: int, outputs: Any) -> Any:
    """One step of the script; `outputs` is the last step's, which lives until this one's is there."""
    batch = {"input_ids": torch.zeros(rows, length, dtype=torch.long)}
    batch["attention_mask"] = torch.ones(rows, length, dtype=torch.long)
    batch["labels"] = batch["input_ids"].clone()
    optimizer.zero_grad()
    outputs = model(**batch, num_items_in_batch=rows * length)
    loss = outputs.loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return outputs
