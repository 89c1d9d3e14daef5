"""Rules about fp16, bf16, Gemma and fp32 master weights."""

import pytest

from hf_recipes.recipe.rules import precision
from tests.support.rule_recipes import TRAINER


def test_fp16_and_bf16_exclude_each_other(ask, arguments):
    """transformers 5.23 training_args.py:1785: "At most one of fp16 and bf16 can be True, but not both"."""
    assert ask("fp16: true\nbf16: true")[0] == ["5: fp16 and bf16 are both true; keep one; bf16 where the GPU has it"]
    assert ask("bf16_full_eval: true\nfp16_full_eval: true")[0] == [
        "6: fp16_full_eval and bf16_full_eval are both true; keep one; bf16 where the GPU has it"
    ]
    with pytest.raises(ValueError, match="At most one of fp16 and bf16 can be True"):
        arguments(fp16=True, bf16=True)


@pytest.mark.parametrize(
    "model",
    [
        "google/gemma-3-270m",  # by the table of shapes
        "google/gemma-2-2b",  # by its name
        "someone/MyGemma3n-E2B-tuned",
        "{preset: gemma-270m}",
        "{config: {model_type: gemma2}}",
    ],
)
def test_fp16_is_refused_for_gemma_2_and_3(ask, model):
    """transformers#39972 and unsloth#4014: activations of about 800,000 are inf in fp16."""
    top = "tokenizer: {pretrained_model_name_or_path: google/gemma-3-270m}" if model.startswith("{") else ""
    assert ask("fp16: true", top, task="causal-lm", model=model)[0] == [
        "5: fp16: true with a Gemma: activations of Gemma 2 and 3 pass 65504, the largest fp16 (transformers#39972); "
        "write bf16: true (fp32 where the GPU has no bf16)"
    ]
    assert ask("bf16: true", top, task="causal-lm", model=model)[0] == []


def test_fp16_is_refused_for_a_gemma_by_its_local_config(ask, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "gemma3_text", "max_position_embeddings": 64}')
    errors, _ = ask(
        "fp16: true", "dataset: {path: json, max_length: 65}", task="causal-lm", model=str(tmp_path / "mine")
    )
    assert [error.split(": ")[1] for error in errors] == ["fp16", "dataset.max_length"]


def test_an_older_or_unknown_gemma_in_fp16_is_warned_about_and_other_models_are_not(ask):
    warning = ["5: fp16: true with a Gemma may overflow to NaN; write bf16: true"]
    assert ask("fp16: true", task="causal-lm", model="google/gemma-2b") == ([], warning)  # generation 1
    assert ask("fp16: true", task="causal-lm", model="google/gemma-4-E2B") == ([], warning)
    assert ask("fp16: true", task="causal-lm", model="Qwen/Qwen3-0.6B") == ([], [])


def test_the_loss_scaler_takes_neither_fp16_nor_bf16_weights(ask):
    """torch/amp/grad_scaler.py: "Attempting to unscale FP16 gradients."; bf16: pytorch#127176 (CUDA only)."""
    model = "{pretrained_model_name_or_path: gpt2, dtype: float16}"
    assert ask("fp16: true", task="causal-lm", model=model)[0] == [
        "2: dtype: float16 with fp16: true: torch refuses to unscale fp16 gradients; "
        "write dtype: float32 (autocast), or master_weights: true with fp16: true (O2)"
    ]
    assert ask("", task="causal-lm", model=model)[0] == [
        "2: dtype: float16 trains fp16 weights without fp32 masters: Adam turns to NaN; "
        "write dtype: float32 (autocast), or master_weights: true with fp16: true (O2)"
    ]
    model = "{pretrained_model_name_or_path: gpt2, dtype: bfloat16}"
    assert ask("fp16: true", task="causal-lm", model=model)[0] == [
        "2: fp16: true scales the loss, and torch's scaler cannot unscale the gradients of bfloat16 weights; "
        "write bf16: true instead of fp16: true, or dtype: float32"
    ]
    import torch

    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((weight * 2).sum().float()).backward()
    with pytest.raises(ValueError, match=r"Attempting to unscale FP16 gradients\."):
        scaler.unscale_(torch.optim.SGD([weight]))


def test_sixteen_bit_weights_under_an_adapter_are_fine_with_scaling(ask):
    lora = "LoraConfig: {r: 8}"
    model = "{pretrained_model_name_or_path: gpt2, dtype: %s}"
    assert ask("fp16: true", lora, task="causal-lm", model=model % "bfloat16") == ([], [])
    assert ask("fp16: true", lora, task="causal-lm", model=model % "float16") == ([], [])
    assert ask("bf16: true", task="causal-lm", model=model % "bfloat16") == ([], [])
    assert ask("", lora, task="causal-lm", model=model % "float16")[1] == [
        "2: dtype: float16 without fp16: true trains without loss scaling: small gradients vanish; "
        "write fp16: true beside it, or dtype: bfloat16"
    ]
    assert ask("fp16: true", task="causal-lm", model=model % "auto")[1] == [
        "2: dtype: auto with fp16: true fails at step 1 if the checkpoint is in 16 bits; write dtype: float32"
    ]


MASTERS = "master_weights: true"


@pytest.mark.parametrize(
    ("training", "top", "model", "error"),
    [
        ("", "", "gpt2", "9: master_weights is the O2 of fp16, and fp16 is not true; "
         "write fp16: true beside it, or leave master_weights out"),
        ("fp16: true", "LoraConfig: {r: 8}", "gpt2", "9: master_weights with LoraConfig: the adapter's weights are "
         "fp32 already, the base is frozen; leave master_weights out, and fp16: true is enough"),
        ("fp16: true", "", "google/gemma-2b", "9: master_weights with a Gemma: activations of Gemma 2 and 3 pass "
         "65504, the largest fp16 (transformers#39972); write bf16: true instead"),
        ("fp16: true\noptim: adafactor", "", "gpt2", "6: master_weights with optim: adafactor: only adamw_torch, "
         "adamw_torch_fused, adamw_bnb_8bit are tested on fp32 masters; use one of them"),
        ("fp16: true", "", "{pretrained_model_name_or_path: gpt2, dtype: bfloat16}", "2: master_weights with dtype: "
         "bfloat16: the model's own weights are float16 then; write dtype: float32, or leave it out"),
    ],
)  # fmt: skip
def test_master_weights_are_refused_where_they_cannot_be(ask, training, top, model, error):
    padding = "seed: 1\n" * (2 - len(training.splitlines()))
    padding = padding.replace("seed: 1\nseed: 1\n", "seed: 1\ndata_seed: 1\n")
    text = f"{training}\n{padding}".strip("\n")
    assert error in ask(text, f"{MASTERS}\n{top}", task="causal-lm", model=model)[0]


def test_master_weights_are_refused_with_quantised_and_sharded_weights(ask):
    bnb = "BitsAndBytesConfig: {load_in_4bit: true}\nLoraConfig: {r: 8}"
    errors, _ = ask("fp16: true\nfsdp: true", f"{MASTERS}\n{bnb}", **TRAINER)
    assert "9: master_weights with BitsAndBytesConfig: quantised weights are not trained, so they have no masters; " \
        "leave master_weights out" in errors  # fmt: skip
    assert (
        "9: master_weights with fsdp: it needs complete fp32 copies, fsdp shards them; write bf16: true instead"
        in errors
    )


def test_master_weights_pass_with_the_optimizers_that_are_tested(ask):
    from hf_recipes.training.master_weights import OPTIMIZERS

    assert OPTIMIZERS == precision.MASTER_OPTIMIZERS
    for optim in OPTIMIZERS:
        assert ask(f"fp16: true\noptim: {optim}", MASTERS, **TRAINER)[0] == []
    model = "{pretrained_model_name_or_path: gpt2, dtype: float16}"
    assert ask("fp16: true", MASTERS, task="causal-lm", model=model)[0] == []
