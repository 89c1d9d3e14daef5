"""What a model type cannot do is refused by check, and upstream refuses it."""

import json

import pytest
import torch

from hf_recipes.recipe.rules.device import gpu_errors
from hf_recipes.recipe.rules.model_limits import supports_checkpointing
from tests.support.rule_recipes import A100, CPU, recipe_of


@pytest.fixture
def saved(tmp_path):
    """The model section of a folder with a model of this type."""

    def made(kind):
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        return f"{{pretrained_model_name_or_path: {folder}}}"

    return made


def test_checkpointing_on_a_model_that_has_none_is_refused_with_its_line(ask, saved):
    from transformers import AlbertForSequenceClassification, BertForSequenceClassification

    found = ask(model=saved("albert"), training="activation_checkpointing: true")[0]
    assert found == ["5: activation_checkpointing: the model type albert does not support it; leave it out"]
    (found,) = ask(model=saved("albert"), training="gradient_checkpointing: true")[0]  # its older name
    assert found.startswith("5: ") and "the model type albert does not support it" in found
    assert ask(model=saved("bert"), training="gradient_checkpointing: true")[0] == []
    assert not AlbertForSequenceClassification.supports_gradient_checkpointing
    assert BertForSequenceClassification.supports_gradient_checkpointing


@pytest.mark.slow
def test_what_the_sources_say_of_checkpointing_is_what_the_classes_say():
    import transformers
    from transformers.models.auto import modeling_auto as auto

    names = {**auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES}
    chosen = [name for name in sorted(names) if isinstance(names[name], str)][::4]
    known = {name: supports_checkpointing(name) for name in chosen}
    seen = {
        name: bool(getattr(transformers, names[name]).supports_gradient_checkpointing)
        for name, found in known.items()
        if found is not None
    }
    assert len(seen) > 30
    assert {name: known[name] for name in seen} == seen


def test_models_that_cannot_be_quantised_are_refused_with_the_line_of_the_section(ask, saved):
    top = "LoraConfig: {target_modules: all-linear}\nBitsAndBytesConfig: {load_in_4bit: true}"
    for kind in ("rwkv", "xlnet"):
        found = ask(top=top, model=saved(kind))[0]
        assert any(f"the model type {kind} cannot be quantised" in line and line.startswith("8: ") for line in found)


def test_a_router_that_returns_a_tuple_is_no_target_of_an_adapter(ask, saved):
    model = saved("llama4_text")
    found = ask(top="LoraConfig: {target_modules: all-linear}", task="causal-lm", model=model)[0]
    assert found == [
        "7: LoraConfig.target_modules: router returns a tuple, which LoRA cannot add to; "
        "write exclude_modules: [router]"
    ]
    top = "LoraConfig: {target_modules: all-linear, exclude_modules: [router]}"
    assert ask(top=top, task="causal-lm", model=model)[0] == []
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4Router

    router = Llama4Router(Llama4TextConfig(hidden_size=8, num_local_experts=2))
    assert isinstance(router, torch.nn.Linear) and isinstance(router(torch.zeros(1, 8)), tuple)


def lines(model, device, **training):
    recipe = recipe_of({"model": model, "TrainingArguments": training})
    return [error.message for error in gpu_errors(recipe, device)]


def test_half_precision_of_fnet_is_refused_on_a_gpu_whose_fourier_transform_has_none():
    fnet = {"config": {"model_type": "fnet", "hidden_size": 768}}
    assert lines(fnet, A100, bf16=True) == ["bf16: true: FNet's Fourier transform has no bfloat16 on a GPU"]
    assert lines({**fnet, "dtype": "bfloat16"}, A100) == [
        "dtype: bfloat16: FNet's Fourier transform has no bfloat16 on a GPU"
    ]
    assert len(lines(fnet, A100, fp16=True)) == 1
    assert lines({"config": {"model_type": "fnet", "hidden_size": 512}}, A100, fp16=True) == []
    assert lines(fnet, CPU, bf16=True) == lines(fnet, A100) == []


def test_flex_attention_is_refused_on_a_cpu_which_has_no_backward_for_it():
    flex = {"pretrained_model_name_or_path": "gpt2", "attn_implementation": "flex_attention"}
    assert lines(flex, CPU) == ["attn_implementation: flex_attention has no backward pass on a CPU"]
    assert lines(flex, A100) == []
    from torch.nn.attention.flex_attention import flex_attention

    query = torch.zeros(1, 1, 16, 16, requires_grad=True)
    with pytest.raises(NotImplementedError, match="backward on CPU"):
        flex_attention(query, query, query)
