"""What a record says of the speed: the share of time that waited for data, and MFU on a known GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_recipes.pipeline.run import run
from hf_recipes.pipeline.sessions import sum_sessions
from hf_recipes.pipeline.summary import describe_use_of_time
from hf_recipes.pipeline.utilization import count_flops, describe_utilization, with_mfu
from hf_recipes.record import Batch, DeviceFacts, RunRecord, Session, Timing, Utilization
from hf_recipes.record.file import read_record
from hf_recipes.training.data_wait import DataWait

RECIPE = """
task: causal-lm
model: {{config: {{model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 32, n_positions: 32}}}}
BpeTrainer: {{vocab_size: 400}}
dataset:
  path: text
  data_files: {{train: {root}/recipes/data/austen/persuasion.txt}}
  split: {{train: "train[:5%]"}}
TrainingArguments: {{output_dir: out, max_steps: 2}}
"""
H100 = DeviceFacts(kind="cuda", name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_bytes=85_000_000_000)


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 100, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**{**shape, "num_attention_heads": 4, "num_key_value_heads": 2, **changes}))


def arguments(**given: Any) -> Any:
    return SimpleNamespace(**{"bf16": False, "fp16": False, "tf32": None, **given})


def test_a_run_reports_its_time_waiting_for_data_and_no_mfu_on_a_cpu(
    root: Path, write_recipe: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(run(write_recipe(RECIPE.format(root=root))), strict=True)
    assert record.tokens_per_second
    assert record.data_wait is not None and 0 < record.data_wait < 1
    assert record.time.data_seconds == pytest.approx(record.data_wait * (record.time.train_seconds or 0))
    assert record.utilization == Utilization()
    assert f"{record.data_wait:.1%} of the time waiting for data" in capsys.readouterr().out
    assert "waiting for data" in Path("out/report.md").read_text(encoding="utf-8")


def test_only_the_loaders_next_is_waiting_and_nothing_is_read_ahead() -> None:
    read = []

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            read.append(number)
            yield number

    wait, source = DataWait(), slow()
    assert next(wait.measure(source)) == 0 and read == [0]
    time.sleep(0.2)  # a step: not waiting
    assert list(wait.measure(source)) == [1, 2]
    assert 0.06 <= wait.seconds < 0.2


def test_the_flops_of_a_token_are_six_for_a_trained_weight_four_for_a_frozen_one_and_attentions() -> None:
    model = llama()
    layers = 2 * (16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24)
    attention = 12 * 2 * 16 * 10
    assert count_flops(model, 10) == 6 * (layers + 100 * 16) + attention
    assert count_flops(llama(tie_word_embeddings=True), 10) == 6 * (layers + 100 * 16) + attention
    for weight in model.parameters():
        weight.requires_grad = False
    assert count_flops(model, 10) == 4 * (layers + 100 * 16) + attention


def test_an_adapters_own_weights_count_beside_the_frozen_ones() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    frozen = llama()
    for weight in frozen.parameters():
        weight.requires_grad = False
    assert count_flops(adapted, 10) == (count_flops(frozen, 10) or 0) + 2 * 6 * (16 * 4 + 4 * 16)


def test_gpt2s_layers_are_counted_and_experts_are_not_guessed() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=16))
    assert count_flops(gpt, 0) == 6 * (8 * 24 + 8 * 8 + 2 * 8 * 32 + 50 * 8)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = MixtralForCausalLM(MixtralConfig(vocab_size=50, num_key_value_heads=2, num_local_experts=2, **shape))
    assert count_flops(experts, 10) is None


def test_mfu_names_its_formula_and_the_peak_of_the_gpu_and_the_precision() -> None:
    batch = Batch(processes=2, sequences_per_step=8, tokens_per_step=80)
    found = describe_utilization(llama(), arguments(bf16=True), batch, H100)
    assert found.formula and "PaLM" in found.formula
    assert found.peak == "NVIDIA H100 80GB HBM3, 16-bit, dense: 989.4 TFLOP/s, 2 GPUs"
    sessions = (Session(tokens=1000, time=Timing(train_seconds=2.0, data_seconds=0.5)),)
    record = sum_sessions(RunRecord(task="causal-lm", sessions=sessions, utilization=found))
    assert record.utilization.mfu == 500 * (found.flops_per_token or 0) / (found.peak_flops or 1)
    assert record.data_wait == 0.25
    assert describe_use_of_time(record).startswith(", 25.0% of the time waiting for data, ")
    assert describe_utilization(llama(), arguments(tf32=True), batch, H100).peak != found.peak


def test_no_mfu_is_claimed_for_a_gpu_that_is_not_in_the_catalog() -> None:
    unknown = DeviceFacts(kind="cuda", name="NVIDIA Nonesuch", memory_bytes=10**10)
    batch = Batch(processes=1, sequences_per_step=8, tokens_per_step=80)
    found = describe_utilization(llama(), arguments(bf16=True), batch, unknown)
    assert found == Utilization()
    assert with_mfu(RunRecord(task="chat", tokens_per_second=10.0, utilization=found)).utilization.mfu is None
