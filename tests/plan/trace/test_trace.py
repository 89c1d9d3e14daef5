"""What plan says of a recipe on a GPU: its parts, its attention, its refusals; and that it leaves nothing behind."""

import importlib
import json

import pytest
import torch

from hf_recipes.errors import ModelError
from hf_recipes.plan import PARTS, Trace, replay_trace, trace_recipe
from hf_recipes.plan.trace.trace import trace_here
from tests.support.tiny_recipes import BERT, GPT2, LLAMA, tiny

GIB = 2**30


def test_the_child_and_this_process_say_the_same_and_json_keeps_it(real_child):
    recipe = tiny("causal-lm", GPT2, fp16=True)
    found, here = trace_recipe(recipe), trace_here(recipe)
    assert (found.allocated, found.parts, found.at) == (here.allocated, here.parts, here.at)
    assert found.events == here.events
    assert Trace.from_json(here.to_json()) == here
    json.loads(found.to_json())


def test_a_published_shape_is_planned_without_weights_gpt2_at_8_x_512_in_fp16():
    recipe = tiny("causal-lm", {}, fp16=True, per_device_train_batch_size=8)
    sections = {**recipe.sections, "model": {"pretrained_model_name_or_path": "gpt2"}, "dataset": {"path": "x"}}
    found = trace_recipe(type(recipe)(path="gpt2.yaml", sections=sections, locations={}), length=512)
    assert found.parameters == found.trainable == 124_439_808
    assert found.allocated / GIB == pytest.approx(6.98, abs=0.01)
    assert replay_trace(found).peak / GIB == pytest.approx(7.36, abs=0.06)
    assert found.parts["weights"] == pytest.approx(4 * found.parameters, rel=0.001)
    assert found.parts["optimizer"] == pytest.approx(8 * found.parameters, rel=0.001)
    assert found.parts["logits and loss"] == 3 * 4 * 8 * 512 * 50257 and found.phase == "backward"
    assert found.parts["workspaces"] == 2 * 8_519_680 + 2**20  # two of cuBLAS, and cuBLASLt's for biases
    # 6 operations a parameter and token, less the embeddings' look-ups, and attention's own
    assert found.work["micro-batch"].flops == pytest.approx(6 * found.parameters * 8 * 512, rel=0.1)


def test_the_parts_sum_to_the_peak_whatever_the_recipe():
    for recipe in (
        tiny("text-classification", BERT, bf16=True, activation_checkpointing=True),
        tiny("causal-lm", LLAMA, sft=True, sections={"LoraConfig": {"r": 4}}),
    ):
        found = trace_here(recipe)
        assert sum(found.parts.values()) == found.allocated and set(found.parts) == set(PARTS)
        assert replay_trace(found).peak >= found.allocated


def test_checkpointing_and_a_smaller_micro_batch_need_less():
    plain = trace_here(tiny("causal-lm", LLAMA, bf16=True))
    checkpointed = trace_here(tiny("causal-lm", LLAMA, bf16=True, activation_checkpointing=True))
    small = trace_here(tiny("causal-lm", LLAMA, bf16=True), micro_batch=1)
    assert checkpointed.parts["activations"] < plain.parts["activations"]
    assert small.allocated < plain.allocated and small.micro_batch == 1


def test_a_padded_batch_takes_another_attention_than_a_full_one():
    assert set(trace_here(tiny("causal-lm", LLAMA, bf16=True)).attention) == {"flash"}
    padded = trace_here(tiny("causal-lm", LLAMA, sft=True, bf16=True))
    assert set(padded.attention) == {"efficient"}
    assert set(trace_here(tiny("causal-lm", GPT2, fp16=True), capability=(7, 5)).attention) == {"efficient"}
    eager = trace_here(tiny("causal-lm", LLAMA, model={"attn_implementation": "eager"}))
    assert eager.attention == {}


def test_qlora_holds_packed_weights_with_double_quantised_scales():
    config = {**LLAMA, "hidden_size": 256, "intermediate_size": 1024, "vocab_size": 128}
    quantised = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "bfloat16"}
    sections = {"BitsAndBytesConfig": quantised, "LoraConfig": {"r": 4, "target_modules": "all-linear"}}
    found = trace_here(tiny("chat", config, sft=True, model={"dtype": "bfloat16"}, sections=sections))
    linear = 2 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 1024)
    scales = linear // 64 + 4 * linear // 64 // 256
    assert linear / 2 + scales < found.parts["weights"] < linear / 2 + scales + 600_000
    assert found.parameters > linear


def test_a_quantised_models_load_leaves_its_block_and_its_originals_in_the_cache():
    config = {**LLAMA, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 128}
    quantised = {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}
    sections = {"BitsAndBytesConfig": quantised, "LoraConfig": {"r": 4, "target_modules": "all-linear"}}
    found = trace_here(tiny("chat", config, sft=True, model={"dtype": "bfloat16"}, sections=sections), length=16)
    block, freed, original = found.events[0], found.events[1], 2 * 1024 * 4096
    linear = 2 * (2 * 1024 * 1024 + 2 * 1024 * 512 + 3 * 1024 * 4096)
    assert linear / 2 < block[1] < 0.55 * linear and freed == (block[0], -block[1])
    assert [change for _, change in found.events].count(original) >= 6, "an MLP's weight of each layer, in bfloat16"
    assert found.phases["loading"] < found.allocated or found.phase == "loading"
    assert sum(found.parts.values()) == found.allocated


def test_paged_states_are_not_on_the_gpu_and_8_bit_ones_are_a_quarter():
    config = {**LLAMA, "hidden_size": 256, "intermediate_size": 1024}
    states = {
        optim: trace_here(tiny("causal-lm", config, optim=optim)).parts["optimizer"]
        for optim in ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit")
    }
    assert states["paged_adamw_8bit"] < states["adamw_bnb_8bit"] < 0.5 * states["adamw_torch_fused"]


def test_o2_keeps_masters_beside_half_weights():
    found = trace_here(tiny("text-classification", BERT, sections={"master_weights": True}))
    assert found.parts["weights"] == pytest.approx(2 * found.parameters, rel=0.1)
    assert found.parts["optimizer"] == pytest.approx(12 * found.parameters, rel=0.1)


def test_an_unknown_shape_is_refused_with_what_to_give():
    recipe = tiny("causal-lm", {})
    sections = {**recipe.sections, "model": {"pretrained_model_name_or_path": "somebody/private"}}
    with pytest.raises(ModelError) as refusal:
        trace_recipe(type(recipe)(path="a.yaml", sections=sections, locations={}))
    assert str(refusal.value) == (
        "a.yaml: the shape of 'somebody/private' is not known without the Hub; add model.config=PATH, its "
        "config.json (plan reads nothing else), or name a local folder"
    )


def test_tracing_leaves_torch_and_upstream_as_they_were():
    from accelerate.state import PartialState
    from transformers import TrainingArguments
    from trl.kernels import chunked_logprob

    names = (
        (torch, "autocast"),
        (torch.UntypedStorage, "resize_"),
        (importlib.import_module("torch.optim.optimizer"), "_get_fused_kernels_supported_devices"),
        (TrainingArguments, "device"),
        (chunked_logprob, "_addmm_fp32"),
    )
    before = [getattr(owner, name) for owner, name in names]
    trace_here(tiny("causal-lm", LLAMA, sft=True, bf16=True))
    assert [getattr(owner, name) for owner, name in names] == before
    assert PartialState._shared_state.get("device") is None
