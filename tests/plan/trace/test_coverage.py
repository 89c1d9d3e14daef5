"""Settings that were refused once: planned, or an estimate that says why, or refused because run ends there, too."""

import json
from pathlib import Path

import pytest
import torch

from hf_recipes.plan import replay_trace
from hf_recipes.plan.trace import stand_in_optimizers as optimizers
from hf_recipes.plan.trace.continued import LENGTHS, continue_trace, length_to_continue
from hf_recipes.plan.trace.field_effects import STAND_INS
from hf_recipes.plan.trace.refusals import describe, explain
from hf_recipes.plan.trace.trace import trace_here
from hf_recipes.plan.trace.worker import _answer
from tests.support.tiny_recipes import BERT, GPT2, LLAMA, tiny

ROOT = Path(__file__).resolve().parents[3]
NEAR = 256  # bytes
ADAPTER = {"r": 4, "target_modules": "all-linear"}
LONGFORMER = {**BERT, "model_type": "longformer", "attention_window": 16, "max_position_embeddings": 64}


def quantised(config, bits, **more):
    return tiny(
        "causal-lm", config, sections={"LoraConfig": ADAPTER, "BitsAndBytesConfig": {f"load_in_{bits}bit": True}}
    )


def test_eight_bit_is_an_upper_bound_and_on_a_cpu_what_real_tensors_hold():
    found = trace_here(quantised(LLAMA, 8))
    assert any("load_in_8bit" in reason and "an upper bound" in reason for reason in found.estimate)
    planned, real = (trace_here(quantised(LLAMA, 8), cpu=True, real=one) for one in (False, True))
    assert abs(planned.allocated - real.allocated) <= NEAR
    assert planned.parts["weights"] < trace_here(quantised(LLAMA, 8), cpu=True).parameters * 4


def test_gpt2_in_four_bits_is_planned_though_its_layers_are_no_linear_ones():
    found = trace_here(quantised({**GPT2, "vocab_size": 64}, 4))
    layers = 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256)
    assert found.estimate == () and found.parts["weights"] < 4 * found.parameters - 3 * layers


@pytest.mark.parametrize(
    ("key", "sft"), [("activation_offloading", True), ("use_liger_kernel", False), ("use_liger_kernel", True)]
)
def test_what_saves_memory_and_is_not_traced_is_counted_without_it(key, sft):
    found = trace_here(tiny("causal-lm", LLAMA, sft=sft, **{key: True}), evaluation=False)
    plain = trace_here(tiny("causal-lm", LLAMA, sft=sft), evaluation=False)
    assert found.allocated == plain.allocated
    assert any(key in reason and "an upper bound" in reason for reason in found.estimate)
    assert plain.estimate == ()


OPT = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "ffn_dim": 64,
       "word_embed_proj_dim": 32, "vocab_size": 64, "max_position_embeddings": 64}  # fmt: skip
BART = {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64,
        "max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "config", "dropped"),
    [
        ("causal-lm", OPT, {"layerdrop": 0.9}),
        ("text-classification", BART, {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9}),
    ],
)
def test_layerdrop_is_planned_as_the_step_that_keeps_every_layer(task, config, dropped):
    found, whole = (trace_here(tiny(task, one), evaluation=False) for one in ({**config, **dropped}, config))
    assert found.allocated == whole.allocated and len(found.events) == len(whole.events)


def test_a_model_that_imports_flash_attention_only_with_its_package_is_planned_without_it():
    falcon = {
        "model_type": "falcon",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 64,
    }
    found = trace_here(
        tiny("causal-lm", falcon, bf16=True, model={"attn_implementation": "flash_attention_2"}), evaluation=False
    )
    assert found.parameters and not found.estimate  # and nothing was raised


def test_flex_attention_is_planned_as_the_flash_kernel():
    flex, flash = (
        trace_here(tiny("causal-lm", LLAMA, bf16=True, model={"attn_implementation": kind}), evaluation=False)
        for kind in ("flex_attention", "flash_attention_2")
    )
    assert any("flex_attention" in reason for reason in flex.estimate)
    assert flex.allocated == pytest.approx(flash.allocated, rel=0.05)


def test_longformers_first_token_attends_everywhere_and_its_tokens_alone_do_not():
    for task, more in (("text-classification", 0.02), ("token-classification", 0.0)):
        recipe = tiny(task, LONGFORMER)
        planned, real = (trace_here(recipe, cpu=True, real=one, evaluation=False) for one in (False, True))
        assert -NEAR <= planned.allocated - real.allocated <= NEAR + more * real.allocated, task


def test_fnet_in_bf16_is_planned_for_a_cpu_whose_autocast_transforms_in_fp32():
    recipe = tiny("text-classification", {**BERT, "model_type": "fnet"}, bf16=True, use_cpu=True)
    planned, real = (trace_here(recipe, cpu=True, real=one, evaluation=False) for one in (False, True))
    assert abs(planned.allocated - real.allocated) <= NEAR


def test_mica_trains_half_of_the_adapter():
    sections = {"LoraConfig": {"r": 4, "target_modules": ["q_proj", "up_proj"]}}
    plain = trace_here(tiny("causal-lm", LLAMA, sections=sections), evaluation=False)
    sections["LoraConfig"]["init_lora_weights"] = "mica"
    found = trace_here(tiny("causal-lm", LLAMA, sections=sections), evaluation=False)
    assert found.parameters == plain.parameters
    assert found.trainable == 2 * (4 * 64 + 4 * 64) < plain.trainable  # the A of both modules in both layers


# optimizers ---------------------------------------------------------------------------------------------------------

NAMES = [*optimizers.RULES, "galore_adamw_layerwise", "apollo_adamw_layerwise"]


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_without_its_package_is_an_upper_bound(name):
    low = (
        {"optim_target_modules": "all-linear", "optim_args": "rank=8"} if name.startswith(("galore", "apollo")) else {}
    )
    found = trace_here(tiny("causal-lm", LLAMA, optim=name, **low), evaluation=False)
    assert any(f"optim: {name}" in reason and "an upper bound" in reason for reason in found.estimate)


def test_every_optimizer_that_is_said_to_have_a_rule_has_one():
    assert set(optimizers.RULES) == set(STAND_INS)


def state_bytes(name, weight, rank=8, low=True):
    rule = optimizers.rule_of(name)
    options = optimizers.Options(rank=rank, block=256, cpu=False)
    states = rule.low_rank if low and rule.low_rank else rule.states
    made = [torch.zeros(shape, dtype=dtype, device="meta") for shape, dtype in states(weight, options)]
    return sum(one.nbytes for one in made)


def test_the_states_of_one_weight_are_those_of_the_packages_code():
    weight = torch.nn.Parameter(torch.empty(128, 64, device="meta"))
    size = 128 * 64
    assert state_bytes("galore_adamw", weight) == 4 * (2 * 128 * 8 + 8 * 64)
    assert state_bytes("galore_adamw", weight, low=False) == 8 * size
    assert state_bytes("galore_adafactor", weight) == 4 * (128 + 8 + 8 * 64)
    assert state_bytes("lomo", weight) == state_bytes("grokadamw", weight) == 0
    assert state_bytes("adalomo", weight) == 4 * (128 + 64)
    assert state_bytes("stable_adamw", weight) == 8 * size
    assert state_bytes("stable_adamw", torch.nn.Parameter(weight.to(torch.bfloat16))) == 6 * size
    assert state_bytes("adamw_torch_8bit", weight) == 2 * (size + 4 * size // 256 + 4 * 256)
    assert state_bytes("adamw_torch_4bit", weight) == 2 * (size // 2 + 4 * size // 256 + 4 * 16)


def test_layerwise_and_lomo_hold_one_gradient_at_a_time():
    deep = {**LLAMA, "num_hidden_layers": 12}
    whole, one = (
        trace_here(
            tiny("causal-lm", deep, optim=name, optim_target_modules="all-linear", optim_args="rank=4"),
            micro_batch=1,
            length=8,
            evaluation=False,
        )
        for name in ("galore_adamw", "galore_adamw_layerwise")
    )
    assert one.phases["backward"] < whole.phases["backward"]


# refusals -----------------------------------------------------------------------------------------------------------


def test_plan_refuses_with_the_line_where_run_fails_too_and_advises_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny("text-classification", {**BERT, "model_type": "albert"}, gradient_checkpointing=True)
    found = asked(recipe, tmp_path)["errors"][0]
    assert found["message"].startswith("transformers rejects it: ") and "--no-plan" not in found["fix"]
    llama4 = {**LLAMA, "model_type": "llama4_text", "head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 64}
    found = asked(tiny("causal-lm", llama4, sections={"LoraConfig": ADAPTER}), tmp_path)["errors"][0]
    assert found["location"].endswith("LoraConfig") or "LoraConfig" in found["message"]
    assert "`run` ends there, too" in found["message"] and found["fix"] == "leave LoraConfig out"
    assert "AttributeError" not in found["message"] and "--no-plan" not in found["fix"]


def asked(recipe, folder):
    plain = {"path": recipe.path, "sections": recipe.sections, "locations": {}}
    request = {"kind": "trace", "recipe": plain, "length": None, "micro_batch": None, "cpu": False}
    return _answer({**request, "capability": [8, 6], "folder": str(folder)})


def test_what_only_plan_cannot_follow_is_said_so_with_the_place_and_the_way_on():
    recipe = tiny("causal-lm", LLAMA)
    try:
        {}["transformer.h.0"]
    except KeyError as problem:
        found = explain(recipe, problem)
        assert describe(problem).startswith("an error of ")
    assert found.message.startswith("plan cannot follow this model: an error of ") and "KeyError" not in found.message
    assert found.fix == "`hf-recipes run --no-plan` trains without a plan"


@pytest.mark.parametrize("kind", ["mamba", pytest.param("rwkv", marks=pytest.mark.slow)])
def test_a_model_that_computes_token_by_token_is_continued_from_short_lengths(kind):
    fields = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 100, "context_length": 512}
    if kind == "mamba":
        del fields["context_length"]
    recipe = tiny("causal-lm", {"model_type": kind, **fields})
    assert length_to_continue(recipe, None) is None and length_to_continue(recipe, 192) == 192
    assert length_to_continue(tiny("causal-lm", GPT2), 4096) is None
    short = [trace_here(recipe, length=length) for length in LENGTHS]
    found, whole = continue_trace(short, 192), trace_here(recipe, length=192)
    assert found.length == 192 and any("token by token" in reason for reason in found.estimate)
    assert sum(found.parts.values()) == found.allocated
    assert found.allocated == pytest.approx(whole.allocated, rel=0.02)
    assert found.work["micro-batch"].flops == pytest.approx(whole.work["micro-batch"].flops, rel=0.02)
    assert abs(replay_trace(found).peak - replay_trace(whole).peak) <= 20 * 2**20  # one segment of the allocator


def test_the_rules_of_states_are_those_of_the_packages_in_the_record():
    rows = json.loads((ROOT / "benchmarks/results/optimizer_states.json").read_text())["rows"]
    assert {row["optim"] for row in rows} == set(STAND_INS) - {"lomo", "galore_adamw_8bit"}
    assert [row["rule"] for row in rows] == [row["real"] for row in rows]
    layers = torch.nn.Sequential(torch.nn.Linear(128, 96), torch.nn.Linear(96, 256), torch.nn.LayerNorm(256))
    for row in rows:
        rule, options = optimizers.rule_of(row["optim"]), optimizers.Options(rank=8, block=256, cpu=True)
        low = {id(layers[0].weight), id(layers[1].weight)} if rule.low_rank else set()
        made = optimizers.StandIn(list(layers.parameters()), low, rule, options)
        for weight in layers.parameters():
            made._keep(weight)
        held = [one for state in made.state.values() for one in state.values()]
        assert sum(one.nbytes for one in held) == row["rule"], row["optim"]
