"""Documents packed into one row give the logits that they have alone: none sees another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.rules.data import JOIN_DOCUMENTS
from hf_recipes.training.trainer import build_arguments, build_trainer
from tests.support.tiny_models import CHATML, SHAPE, TEXTS, bpe, prepare

KEEP_APART = (
    *("cohere", "exaone4", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_bigcode", "gpt_neox"),
    *("granite", "llama", "mistral", "mixtral", "nemotron", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3"),
    *("stablelm", "starcoder2"),
)
ROWS: dict[str, list[dict[str, Any]]] = {
    "causal-lm": [{"text": f"{text} {i} " * (1 + i % 3)} for i in range(4) for text in TEXTS],
    "chat": [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text[i:]} é"}]}
        for i in range(4)
        for text in TEXTS
    ],
}


def packed(write_recipe: Callable[..., str], task: str, model: Any, strategy: str, folder: Path) -> Any:
    """The first batch as the trainer gives it to the model."""
    recipe = read_recipe(
        write_recipe(
            f"task: {task}\nmodel: {{config: {{model_type: llama}}}}\n"
            f"dataset: {{path: json, cache_dir: {folder / 'cache'}}}\n"
            f"SFTConfig: {{output_dir: out, packing: true, packing_strategy: {strategy}, max_length: 160, "
            "use_cpu: true, bf16: false, report_to: none, per_device_train_batch_size: 2}\n"
            "BpeTrainer: {vocab_size: 384}\n"
        )
    )
    tokenizer = bpe(chat=CHATML)
    prepared = prepare(recipe, ROWS[task], tokenizer, length=160)
    args = build_arguments(recipe)
    trainer = build_trainer(recipe, args, model, tokenizer, prepared, lambda *_: {}, None, print)
    return next(iter(trainer.get_train_dataloader()))


def language_model(model_type: str, attention: str | None = None) -> Any:
    more = {"mamba2": {"num_heads": 16, "head_dim": 8, "n_groups": 1}, "jamba": {"use_mamba_kernels": False}}
    shape = {**SHAPE, "num_key_value_heads": 1, **more.get(model_type, {})}
    ends = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    config = AutoConfig.for_model(model_type, vocab_size=384, max_position_embeddings=512, **shape, **ends)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, 0.15)  # as drawn for training, attention changes little
    return model


@pytest.mark.parametrize("task", ["causal-lm", "chat"])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
@pytest.mark.parametrize(("model_type", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa")])
def test_a_packed_document_has_the_logits_that_it_has_alone(
    folder: Path, write_recipe: Callable[..., str], task: str, strategy: str, model_type: str, attention: str
) -> None:
    model = language_model(model_type, attention)
    batch = packed(write_recipe, task, model, strategy, folder)
    ids, positions = batch["input_ids"][0], batch["position_ids"][0]
    begins = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
    assert len(begins) > 4  # several documents in a row
    with torch.no_grad():
        together = model(input_ids=ids[None], position_ids=positions[None], use_cache=False).logits[0]
        apart = [model(input_ids=ids[None, a:b], use_cache=False).logits[0] for a, b in pairwise(begins)]
        joined = model(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(together, torch.cat(apart), atol=2e-5, rtol=1e-4)
    assert (joined - together).abs().max() > 1e-2  # one document is seen by the next without the positions


def apart(model: Any) -> float:
    """How far the logits of two documents in a row are from those of each alone."""
    first, second = torch.arange(1, 21)[None], torch.arange(50, 65)[None]
    positions = torch.cat([torch.arange(20), torch.arange(15)])[None]
    with torch.no_grad():
        found = model(input_ids=torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
        alone = torch.cat([model(input_ids=ids, use_cache=False).logits for ids in (first, second)], 1)
    return float((found - alone).abs().max())


@pytest.mark.parametrize("model_type", sorted(JOIN_DOCUMENTS))
def test_a_model_that_is_warned_about_sees_the_document_before(model_type: str) -> None:
    assert apart(language_model(model_type)) > 0.1


@pytest.mark.parametrize("model_type", KEEP_APART)
def test_a_model_that_the_page_names_keeps_documents_apart(model_type: str, root: Path) -> None:
    assert f"`{model_type}`" in (root / "docs/data.md").read_text(encoding="utf-8")
    assert apart(language_model(model_type)) < 1e-4
