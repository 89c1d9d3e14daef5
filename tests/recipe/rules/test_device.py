"""What a device cannot do, which packages are missing, and what `check` leaves to the device."""

import pytest

from hf_recipes.recipe.rules import all_rules
from hf_recipes.recipe.rules.device import OPTIMIZER_PACKAGES, REPORTERS, optimizer_package
from tests.support.rule_recipes import A100, CPU, MPS, T4, handlers, recipe_of


def test_dora_on_8_bit_weights_is_refused_on_a_cpu_where_peft_loses_their_scales():
    import torch
    from bitsandbytes.nn import Linear8bitLt

    layer = Linear8bitLt(4, 4, bias=False, has_fp16_weights=False).to("cpu")
    layer(torch.ones(1, 4))
    layer.weight = layer.weight.to("cpu")  # as peft's dequantize_module_weight does on a CPU, at each forward of DoRA
    with pytest.raises(AttributeError):
        layer(torch.ones(1, 4))  # the day that this works, the rule may go
    sections = {"LoraConfig": {"use_dora": True}, "BitsAndBytesConfig": {"load_in_8bit": True}, "SFTConfig": {}}
    recipe = recipe_of(sections)
    assert [str(error) for error in all_rules.device_errors(recipe, CPU)] == [
        "a.yaml: LoraConfig.use_dora: true with load_in_8bit: true: peft loses the weights' scales on a CPU; "
        "write load_in_4bit: true, or leave use_dora out"
    ]
    assert all_rules.device_errors(recipe, A100) == []


def device_errors(device, sections):
    return [str(error) for error in all_rules.device_errors(recipe_of(sections), device)]


def test_precisions_that_the_gpu_lacks_are_refused():
    """transformers 5.23 training_args.py:1682: "--tf32 requires Ampere or a newer GPU arch"."""
    words = {"SFTConfig": {"tf32": True, "bf16": True}}
    assert device_errors(T4, words) == [
        "a.yaml: tf32: true needs a GPU of compute capability 8.0 or later; Tesla T4 has 7.5; leave tf32 out",
        "a.yaml: bf16: true needs a GPU of compute capability 8.0 or later; Tesla T4 has 7.5; "
        "write fp16: true (for a Gemma, neither)",
    ]
    assert device_errors(A100, words) == device_errors(CPU, words) == device_errors(MPS, words) == []


def test_tf32_is_really_refused_by_upstream_without_such_a_gpu(arguments):
    with pytest.raises(ValueError, match="--tf32 requires Ampere or a newer GPU arch"):
        arguments(tf32=True)


def test_kernels_that_the_device_lacks_are_refused():
    """bitsandbytes 0.50.2, platform table of its description: 8-bit optimizers on MPS "in progress"."""
    words = {"SFTConfig": {"optim": "adamw_bnb_8bit"}}
    assert device_errors(MPS, words) == [
        "a.yaml: optim: adamw_bnb_8bit has no kernel on an Apple GPU; "
        "write optim: adamw_torch_fused, or adafactor to save memory"
    ]
    assert device_errors(CPU, words) == device_errors(A100, words) == []
    assert device_errors(MPS, {"SFTConfig": {"optim": "lion_32bit"}}) == []
    assert device_errors(MPS, {"SFTConfig": {"optim": "paged_adamw_32bit"}}) != []


def test_fp16_on_quantised_weights_under_sfttrainer_is_refused_on_a_gpu():
    """trl 1.16 sft_trainer.py:911 casts the adapters to bf16; trl#4901, pytorch#127176."""
    words = {"SFTConfig": {"fp16": True}, "BitsAndBytesConfig": {"load_in_4bit": True}, "LoraConfig": {"r": 8}}
    assert device_errors(T4, words) == [
        "a.yaml: fp16: true with BitsAndBytesConfig: SFTTrainer's adapters are bf16, which torch's scaler cannot "
        "unscale; "
        "write bf16: true, or bf16: false without fp16 where the GPU has no bf16"
    ]
    assert device_errors(CPU, words) == []


def test_packages_that_are_not_installed_are_a_warning_of_check_and_an_error_of_run(ask):
    assert ask("optim: galore_adamw\noptim_target_modules: all-linear\nreport_to: [tensorboard, wandb]")[1] == [
        "5: optim: galore_adamw needs galore-torch, which is not installed here; pip install galore-torch",
        "7: report_to: wandb needs wandb, which is not installed here; pip install wandb",
    ]
    words = {"SFTConfig": {"use_liger_kernel": True}}
    assert device_errors(A100, words) == [
        "a.yaml: use_liger_kernel: true needs liger-kernel, which is not installed here; pip install liger-kernel"
    ]
    assert "a.yaml: use_liger_kernel: true: Liger's Triton kernels need a CUDA GPU, this is a CPU; " \
        "leave use_liger_kernel out" in device_errors(CPU, words)  # fmt: skip
    model = {"pretrained_model_name_or_path": "gpt2", "attn_implementation": "flash_attention_2"}
    assert device_errors(T4, {"SFTConfig": {}, "model": model}) == [
        "a.yaml: attn_implementation: flash_attention_2 needs flash-attn, which is not installed here; "
        "pip install flash-attn",
        "a.yaml: attn_implementation: flash_attention_2 needs a CUDA GPU of compute capability 8.0; this is Tesla T4; "
        "write attn_implementation: sdpa",
    ]


def test_every_optimizer_of_upstream_is_torchs_own_or_names_its_package():
    own = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    names = {str(name.value) for name in handlers()} | {"adamw_torch_xla", "adamw_torch_npu_fused"}
    assert {name for name in names if optimizer_package(name) is None} == own
    for start in OPTIMIZER_PACKAGES:
        assert any(name.startswith(start) for name in names)


def test_the_reporters_are_upstreams():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(REPORTERS) <= set(INTEGRATION_TO_CALLBACK)


def test_what_only_the_device_decides_is_listed(ask):
    recipe = recipe_of({"SFTConfig": {"tf32": True, "torch_compile": True, "optim": "adamw_bnb_8bit"}})
    assert all_rules.device_requirements(recipe) == [
        "bf16 needs compute capability 8.0 or later (RTX 30, A100 and newer); a CPU is slow in it",
        "tf32 needs a CUDA GPU of compute capability 8.0 or later; a CPU run drops it, and prints that",
        "optim: adamw_bnb_8bit has no 8-bit and no paged kernels on an Apple GPU yet",
        "torch_compile takes minutes for the first steps, and not every model compiles",
        "memory: `hf-recipes plan` shows whether model and batch fit the GPU",
    ]
    assert all_rules.device_requirements(recipe_of({"TrainingArguments": {"fp16": True}})) == [
        "fp16 needs a GPU; a CPU trains in fp32 instead, and the run prints that",
        "memory: `hf-recipes plan` shows whether model and batch fit the GPU",
    ]
