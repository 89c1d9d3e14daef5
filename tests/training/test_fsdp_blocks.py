"""What FSDP2 needs of a model: blocks that do not overlap, and weights that have an address on every rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hf_recipes.training.fsdp_blocks import choose_blocks, give_addresses


@pytest.mark.parametrize(
    ("model_type", "shape", "expected"),
    [
        ("bert", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, ["BertLayer"]),
        ("distilbert", {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}, None),
        ("llama", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}, None),
    ],
)
def test_the_embedding_is_spread_once(model_type: str, shape: dict[str, Any], expected: list[str] | None) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    with torch.device("meta"):
        config = AutoConfig.for_model(model_type, vocab_size=64, **shape)
        model = AutoModelForSequenceClassification.from_config(config)
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=None)
    choose_blocks(plugin, model)
    assert plugin.transformer_cls_names_to_wrap == expected


def test_what_the_accelerate_file_names_is_kept() -> None:
    plugin = SimpleNamespace(transformer_cls_names_to_wrap=["MyLayer"])
    choose_blocks(plugin, None)
    assert plugin.transformer_cls_names_to_wrap == ["MyLayer"]


def test_weights_that_only_the_first_process_has_loaded_have_addresses_of_their_own() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **shape))
    model.transformer.wpe.weight.requires_grad_(False)
    give_addresses(model)
    weights = list(model.parameters())
    assert len({weight.data_ptr() for weight in weights}) == len(weights) > 10
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.transformer.wpe.weight.requires_grad
