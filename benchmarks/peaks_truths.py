"""Peaks that others published for other loops and older software: each row of published/truths.json, predicted.

A source has a function here that sets up what it measured, on meta tensors, with today's torch, transformers and peft.
What cannot be the same (older model code, a loop that is not published, a remote model) is named by `cause`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from older_code import autocast_beside_fsdp, causal_loss, kbit_preparation, logits_in_fp32
from torch.nn import functional as F
from watch import watching

from hf_recipes.catalog.presets import SHAPES
from hf_recipes.plan import replay_trace
from hf_recipes.plan.fit.parallel import Layout, apply_layout
from hf_recipes.plan.trace.cuda_allocator import replay
from hf_recipes.plan.trace.meta_model import quantize_model, tensors_before_training
from hf_recipes.plan.trace.trace import trace_here
from hf_recipes.recipe.recipe import Recipe

Row = Mapping[str, Any]
STEPS = 2
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
FSDP2X = Layout(kind="fsdp2", processes=2)
MIB = 2**20

LLAMA = {"model_type": "llama", "max_position_embeddings": 8192}
QWEN = {"model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 8192}
# Shapes that the catalog lacks: of each model's config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "EleutherAI/pythia-410m-deduped": {
        "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 2048,
    },
    "google-bert/bert-base-uncased": {"model_type": "bert"},
    "distilbert-base-uncased": {"model_type": "distilbert"},
    "microsoft/biogpt": {"model_type": "biogpt"},
    "google/electra-base-generator": {
        "model_type": "electra", "embedding_size": 768, "hidden_size": 256, "intermediate_size": 1024,
        "num_attention_heads": 4, "num_hidden_layers": 12, "vocab_size": 30522,
    },
    "bigcode/gpt_bigcode-santacoder": {
        "model_type": "gpt_bigcode", "n_embd": 2048, "n_head": 16, "n_inner": 8192, "n_layer": 24,
        "n_positions": 2048, "vocab_size": 49280, "multi_query": True,
    },
    "mistralai/Mixtral-8x7B-Instruct-v0.1": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32768, "sliding_window": None,
    },
    "NousResearch/Llama-2-70b-hf": {
        **LLAMA, "vocab_size": 32000, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8,
    },
    "ibm/PowerLM-3b": {
        "model_type": "granite", "vocab_size": 49152, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 40, "num_attention_heads": 36, "num_key_value_heads": 36,
        "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    "phi-1.5 1.3 B": {
        "model_type": "phi", "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "StableLM Alpha 3 B": {
        "model_type": "gpt_neox", "vocab_size": 50688, "hidden_size": 4096, "intermediate_size": 16384,
        "num_hidden_layers": 16, "num_attention_heads": 32, "max_position_embeddings": 4096,
    },
    "Llama 2 7 B": {
        **LLAMA, "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "Llama 2 13 B": {
        **LLAMA, "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "Falcon 40 B": {
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 8192, "num_hidden_layers": 60,
        "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True, "bias": False,
    },
    "yi-6b-chat": {
        **LLAMA, "vocab_size": 64000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "Qwen-1.8B": {
        **QWEN, "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16,
    },
    "Qwen-7B": {
        **QWEN, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "Qwen-14B": {
        **QWEN, "vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 13696, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40,
    },
    "microsoft/deberta-v2-xlarge-mnli": {
        "model_type": "deberta-v2", "vocab_size": 128100, "hidden_size": 1536, "intermediate_size": 6144,
        "num_hidden_layers": 24, "num_attention_heads": 24, "attention_head_size": 64, "relative_attention": True,
        "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False, "type_vocab_size": 0, "conv_kernel_size": 3, "conv_act": "gelu",
    },
}  # fmt: skip
SAME = {"qwen-1_8b-chat": "Qwen-1.8B", "qwen-7b-chat": "Qwen-7B", "qwen-14b-chat": "Qwen-14B"}


def config_of(name: str) -> dict[str, Any]:
    """A model's config as values, model_type among them."""
    name = name.partition(" (first generation")[0]
    found = CONFIGS.get(SAME.get(name, name))
    return dict(SHAPES[name].config) if found is None else dict(found)


def predict(group: str, row: Row) -> tuple[int, int]:
    """(allocated, reserved) bytes."""
    return PREDICTIONS[group](row)


# loops of their own ---------------------------------------------------------------------------------------------------


def _run(
    capability: tuple[int, int],
    build: Callable[[], torch.nn.Module],
    step: Callable[[Any, dict[str, Any]], None],
    optimizer: Callable[[Any], Any] | None = None,
    steps: int = STEPS,
) -> tuple[int, int]:
    """What a loop of `step` allocates and reserves. A script's variables live on: `step` keeps them in its dict."""
    with watching(capability) as tracker, torch.device("meta"):
        model = build()
        model.train()
        tracker.events.clear()
        tracker.storages.clear()
        tracker._alive.clear()
        for tensor in tensors_before_training(model):
            tracker.track(tensor, "loaded")
        chosen = optimizer([p for p in model.parameters() if p.requires_grad]) if optimizer else None
        variables: dict[str, Any] = {}
        for _ in range(steps):
            if chosen is None:
                model.zero_grad()
            else:
                chosen.zero_grad()
            step(model, variables)
            if chosen is not None:
                chosen.step()
        found = replay(list(tracker.events))
        return found.allocated, found.peak


def _auto(name: str, auto: str, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    import transformers

    values = config_of(name)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    return getattr(transformers, auto).from_config(config, dtype=dtype, attn_implementation=attention)


def _ids(batch: int, length: int) -> torch.Tensor:
    return torch.zeros(batch, length, dtype=torch.long)


def _sdpa_docs(row: Row) -> tuple[int, int]:
    """fp16 weights, forward and backward, no optimizer; with labels where the figures say so."""
    labelled = "match a run with labels" in row["loop"]
    auto = "AutoModelForCausalLM" if row["head"] == "causal-lm" else "AutoModelForMaskedLM"
    capability = next(
        v for k, v in {"T4": (7, 5), "A100": (8, 0), "2060": (7, 5), "3080": (8, 6)}.items() if k in row["gpu"]
    )

    def step(model: Any, variables: dict[str, Any]) -> None:
        ids = _ids(row["batch"], row["length"])
        variables["outputs"] = model(ids, labels=ids) if labelled else model(ids)
        variables["loss"] = variables["outputs"].loss if labelled else variables["outputs"].logits.sum()
        variables["loss"].backward()

    def build() -> Any:
        model = _auto(row["model"], auto, torch.float16, row["attention"])
        _add_mask_buffers(model)
        return model

    return _run(capability, build, step, steps=3)


def _add_mask_buffers(model: Any) -> None:
    """Before transformers 4.48 each attention of GPT-2 and GPT-NeoX had its triangular mask as a buffer."""
    if model.config.model_type in ("gpt2", "gpt_neox"):
        positions = model.config.max_position_embeddings
        for number in range(model.config.num_hidden_layers):
            model.register_buffer(f"mask_{number}", torch.ones(1, 1, positions, positions, dtype=torch.bool))


def _litgpt(row: Row) -> tuple[int, int]:
    """bf16 weights, LoRA of rank 8 on queries and values (or an adapter), no checkpointing, the head in chunks of 128
    tokens. LitGPT's own models are not installed here: transformers' stand for them."""
    from peft import LoraConfig, get_peft_model

    def build() -> Any:
        model = _auto(row["model"], "AutoModelForCausalLM", torch.bfloat16)
        if row["quantization"] != "None":
            quantize_model(model, {**NF4, "bnb_4bit_use_double_quant": row["quantization"].endswith("dq")})
        targets = {"gpt_neox": ["query_key_value"], "falcon": ["query_key_value"]}.get(
            model.config.model_type, ["q_proj", "v_proj"]
        )
        return get_peft_model(model, LoraConfig(r=8, target_modules=targets), autocast_adapter_dtype=False)

    def step(model: Any, variables: dict[str, Any]) -> None:
        ids = _ids(row["micro_batch"], row["longest_row"])
        inner = model.get_base_model()
        hidden = inner.base_model(ids)[0]
        logits = [inner.get_output_embeddings()(part) for part in hidden.split(128, dim=1)]
        labels = ids.split(128, dim=1)
        losses = [
            F.cross_entropy(part.reshape(-1, part.shape[-1]), label.reshape(-1), reduction="none")
            for part, label in zip(logits, labels, strict=True)
        ]
        torch.cat(losses).mean().backward()

    return _run((8, 0), build, step, lambda trained: torch.optim.AdamW(trained, lr=1e-4))


def _optimum(row: Row) -> tuple[int, int]:
    """fp32 weights and AdamW on rows of 16 tokens."""
    auto = {
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "fill-mask": "AutoModelForMaskedLM",
    }[row["task"]]

    def step(model: Any, variables: dict[str, Any]) -> None:
        ids = _ids(row["batch"], row["length"])
        labels = torch.zeros(row["batch"], dtype=torch.long) if row["task"] == "text-classification" else ids
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    attention = "eager" if "deberta" in row["model"] else "sdpa"
    return _run((8, 0), lambda: _auto(row["model"], auto, torch.float32, attention), step, torch.optim.AdamW, 3)


# the Trainer ----------------------------------------------------------------------------------------------------------


def _trainer(
    name: str,
    length: int,
    arguments: Mapping[str, Any],
    *,
    dtype: str = "bfloat16",
    attention: str = "flash_attention_2",
    task: str = "causal-lm",
    lora: Mapping[str, Any] | None = None,
    nf4: bool = False,
    quantization: Mapping[str, Any] = MappingProxyType({}),
    layout: Layout | None = None,
    capability: tuple[int, int] = (8, 0),
) -> tuple[int, int]:
    """A recipe of this package."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config_of(name)), encoding="utf-8")
        sections: dict[str, Any] = {
            "task": task,
            "model": {
                "pretrained_model_name_or_path": folder, "dtype": dtype, "attn_implementation": attention,
            },
            "dataset": {"path": "generated", "max_length": length},
            "TrainingArguments": {"output_dir": folder, "optim": "adamw_torch", **arguments},
        }  # fmt: skip
        if lora:
            sections["LoraConfig"] = {"target_modules": "all-linear", **lora}
        if nf4:
            # FSDP shares 4-bit weights whose bytes are given a floating dtype, and no others.
            storage = {"bnb_4bit_quant_storage": "bfloat16"} if layout and layout.is_traceable else {}
            sections["BitsAndBytesConfig"] = {**NF4, **storage, **quantization}
        recipe = Recipe(path=name, sections=sections, locations={})
        rank = {"processes": layout.processes} if layout and layout.is_traceable else {}
        found = trace_here(recipe, capability=capability, evaluation=False, **rank)
    found = apply_layout(found, layout) if layout else found
    return found.allocated, replay_trace(found).peak


def _fms(row: Row) -> tuple[int, int]:
    quantised = "bnb" in row["framework"]
    names = (row["targets"] or "").split()
    if "bigcode" in row["model"]:
        names = [name for name in names if name == "c_attn"]
    else:
        names = [name for name in names if name != "c_attn"]
    arguments = {
        "per_device_train_batch_size": row["batch"],
        "gradient_checkpointing": True,
        "bf16": row["bf16_autocast"],
        "fp16": row["fp16_autocast"],
    }
    lora = {"r": int(float(row["lora_r"])), "lora_dropout": 0.1, "target_modules": names} if row["lora_r"] else None
    with ExitStack() as stack:
        stack.enter_context(causal_loss(None if "bigcode" in row["model"] else torch.float32))
        if "ibm" in row["model"]:
            stack.enter_context(logits_in_fp32())
        if row["sharding"] != "none":
            stack.enter_context(autocast_beside_fsdp())
        if row["framework"] == "baseline-peft-bnb":  # the framework's own loader does without trl's preparation
            stack.enter_context(kbit_preparation())
        return _trainer(
            row["model"],
            2048 if "santacoder" in row["model"] else 4096,
            arguments,
            dtype=row["dtype"],
            lora=lora,
            nf4=quantised,
            quantization={"bnb_4bit_use_double_quant": True},
            layout=None if row["sharding"] == "none" else Layout(kind="fsdp2", processes=int(row["gpus"])),
        )


def _qwen(row: Row) -> tuple[int, int]:
    arguments = {"gradient_accumulation_steps": 8, "gradient_checkpointing": True, "bf16": True}
    arguments |= {"per_device_train_batch_size": 1}
    if row["method"].startswith("full"):
        return _trainer(row["model"], row["length"], arguments)
    lora = {"r": 64, "lora_dropout": 0.05, "target_modules": "all-linear"}
    if "emb" in row["method"]:
        lora["modules_to_save"] = ["embed_tokens", "lm_head"]
    quantised = row["method"].startswith("Q-LoRA")
    return _trainer(row["model"], row["length"], arguments, lora=lora, nf4=quantised)


def _swift(row: Row) -> tuple[int, int]:
    arguments = {"gradient_accumulation_steps": 16, "gradient_checkpointing": True, "bf16": True}
    arguments |= {"per_device_train_batch_size": 1}
    lora = {"r": 8, "lora_dropout": 0.05, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    return _trainer(row["model"], row["length"], arguments, lora=lora)


def _fsdp_qlora(row: Row) -> tuple[int, int]:
    """Measured: FSDP on two 3090; LoRA of rank 64 on k, q, v, up, down and gate; the head's logits in fp32."""
    arguments = {"per_device_train_batch_size": row.get("batch", 1), "gradient_checkpointing": True, "bf16": True}
    lora = {"r": 64, "lora_dropout": 0.1}
    lora["target_modules"] = ["k_proj", "q_proj", "v_proj", "up_proj", "down_proj", "gate_proj"]
    return _trainer(
        row["model"],
        row.get("length", 512),
        arguments,
        attention="sdpa",
        lora=lora,
        nf4=row.get("method", "LoRA") == "QLoRA",
        layout=None if "NO_SHARD" in row.get("gpus", "") else FSDP2X,
        capability=(8, 6),
    )


def _blog(row: Row) -> tuple[int, int]:
    arguments = {"per_device_train_batch_size": row.get("batch", row.get("largest_batch")), "fp16": True}
    if row["model"] == "gpt2-xl":
        return _trainer("gpt2-xl", 1024, arguments, dtype="float32", attention="eager", capability=(7, 5))
    return _trainer(
        row["model"],
        row["length"],
        arguments,
        dtype="float32",
        attention="eager",
        task="text-classification",
        layout=Layout(kind="ddp", processes=2),
        capability=(7, 5),
    )


PREDICTIONS: dict[str, Callable[[Row], tuple[int, int]]] = {
    "sdpa_docs": _sdpa_docs,
    "fms": _fms,
    "litgpt": _litgpt,
    "qwen": _qwen,
    "optimum": _optimum,
    "fsdp_qlora": _fsdp_qlora,
    "ms_swift": _swift,
    "hf_blog": _blog,
}
