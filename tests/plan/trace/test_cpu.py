"""What plan predicts for a CPU on meta tensors is what real tensors of that run hold, and that is what torch holds."""

import pytest
import torch

from hf_recipes.plan.trace.trace import trace_here
from hf_recipes.plan.trace.tracker import Tracker
from tests.support.tiny_recipes import BERT, GEMMA, GPT2, LLAMA, MIXTRAL, QWEN_MOE, tiny

NEAR = 256  # bytes

RECIPES = {
    "gpt2": tiny("causal-lm", GPT2),
    "gpt2, AdamW by foreach on a GPU": tiny("causal-lm", GPT2, optim="adamw_torch"),
    "llama": tiny("causal-lm", LLAMA),
    "llama, accumulation": tiny("causal-lm", LLAMA, gradient_accumulation_steps=2),
    "llama, checkpointing": tiny("causal-lm", LLAMA, activation_checkpointing=True),
    "llama, bf16 autocast": tiny("causal-lm", LLAMA, bf16=True, use_cpu=True),
    "llama, pure bf16": tiny("causal-lm", LLAMA, model={"dtype": "bfloat16"}),
    "llama, LoRA": tiny("causal-lm", LLAMA, sections={"LoraConfig": {"r": 4}}),
    "llama, DoRA": tiny("causal-lm", LLAMA, sections={"LoraConfig": {"r": 4, "use_dora": True}}),
    "llama, eager": tiny("causal-lm", LLAMA, model={"attn_implementation": "eager"}),
    "gemma, adafactor": tiny("causal-lm", GEMMA, optim="adafactor"),
    "SFTTrainer, padded": tiny("causal-lm", LLAMA, sft=True, activation_checkpointing=False),
    "SFTTrainer, packed": tiny("causal-lm", LLAMA, sft=True, packing=True, packing_strategy="wrapped"),
    "chat, LoRA, checkpointing": tiny("chat", LLAMA, sft=True, sections={"LoraConfig": {"r": 4}}),
    "classifier": tiny("text-classification", BERT),
    "classifier, SGD": tiny("text-classification", BERT, optim="sgd"),
    "classifier, 8-bit Adam": tiny("text-classification", BERT, optim="adamw_bnb_8bit"),
    "classifier, O2": tiny("text-classification", BERT, sections={"master_weights": True}),
    "tagger": tiny("token-classification", BERT),
}
# The default set has one of each trainer, adapter, precision and kind of task; these are run with the slow ones.
SLOW = (
    "gpt2, AdamW by foreach on a GPU",
    "llama, pure bf16",
    "llama, DoRA",
    "llama, eager",
    "SFTTrainer, packed",
    "classifier, SGD",
    "tagger",
    "qwen3_moe, bf16 autocast",
)


def marked(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


ROUTED = {  # which rows go to which expert is data
    "mixtral": tiny("causal-lm", MIXTRAL),
    "qwen3_moe, bf16 autocast": tiny("causal-lm", QWEN_MOE, bf16=True, use_cpu=True),
}


@pytest.mark.parametrize("name", marked(RECIPES))
def test_a_planned_cpu_run_holds_what_real_tensors_hold(name):
    planned, real = trace_here(RECIPES[name], cpu=True), trace_here(RECIPES[name], cpu=True, real=True)
    assert abs(planned.allocated - real.allocated) <= NEAR
    assert planned.phase == real.phase and planned.at == real.at
    # Every position counts as labelled, and the real rows have a few that are padding.
    assert -NEAR <= planned.phases["evaluation"] - real.phases["evaluation"] <= 0.01 * real.phases["evaluation"] + NEAR
    assert (planned.parameters, planned.trainable) == (real.parameters, real.trainable)
    assert sum(planned.parts.values()) == planned.allocated
    assert planned.estimate == ()


@pytest.mark.parametrize("name", marked(ROUTED))
def test_a_mixture_of_experts_is_an_estimate_that_names_the_operation_and_what_was_done_instead(name):
    planned, real = trace_here(ROUTED[name], cpu=True), trace_here(ROUTED[name], cpu=True, real=True)
    (mark,) = planned.estimate
    assert "_grouped_mm" in mark and "the routing is not known" in mark
    assert abs(planned.allocated - real.allocated) <= NEAR
    on_gpu = trace_here(ROUTED[name])
    assert on_gpu.estimate and on_gpu.work["micro-batch"].flops > 0


def test_the_tracker_sees_the_peak_that_torchs_own_profiler_sees():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(32, 64)

    def step() -> None:
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    tracker = Tracker(device="cpu")
    states = [value for state in optimizer.state.values() for value in state.values()]
    for tensor in (inputs, *model.parameters(), *states):
        tracker.track(tensor, "there before")
    before = len(tracker.events)
    with tracker:
        step()
    live = peak = 0
    for _, change in tracker.events[before:]:
        live += change
        peak = max(peak, live)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    total = highest = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            highest = max(highest, total)
    assert highest > 100_000
    assert abs(peak - highest) <= NEAR
