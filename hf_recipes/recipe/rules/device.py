"""What only the machine can answer: its GPU, and the packages installed on it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from hf_recipes.errors import Diagnostic
from hf_recipes.recipe.model_facts import model_facts
from hf_recipes.recipe.rules.rule import has_section, is_true, report_argument, report_key, strings_in, text_of

if TYPE_CHECKING:
    from hf_recipes.common.device import Device
    from hf_recipes.recipe.recipe import Recipe

# The package that an optimizer needs, by the optimizer's first letters (transformers/trainer_optimizer.py):
# (import name, what pip calls it). Those not listed are torch's or transformers' own.
OPTIMIZER_PACKAGES: dict[str, tuple[str, str]] = {
    "adamw_bnb_8bit": ("bitsandbytes", "bitsandbytes"),
    "adamw_8bit": ("bitsandbytes", "bitsandbytes"),
    "ademamix": ("bitsandbytes", "bitsandbytes"),
    "lion": ("bitsandbytes", "bitsandbytes"),
    "paged": ("bitsandbytes", "bitsandbytes"),
    "rmsprop_bnb": ("bitsandbytes", "bitsandbytes"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu_fused": ("torch_npu", "torch_npu"),
    "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
EXTRAS = {"bitsandbytes": "'hf_recipes[quantization]'", "tensorboard": "'hf_recipes[tensorboard]'"}  # of setup.cfg
REPORTERS = ("wandb", "tensorboard", "trackio", "mlflow", "comet_ml", "clearml", "codecarbon", "dvclive", "swanlab")
FLASH = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn 3"),
}


def optimizer_package(optim: str) -> tuple[str, str] | None:
    """(import name, pip name) of what an optimizer needs beyond torch and transformers."""
    return next((package for start, package in OPTIMIZER_PACKAGES.items() if optim.startswith(start)), None)


def missing_packages(recipe: Recipe) -> Iterator[Diagnostic]:
    """Packages that the recipe needs and this machine lacks: a warning of `check`, an error of `run`."""
    wanted: list[tuple[str, str, tuple[str, str]]] = []
    optim = text_of(recipe, "optim") if "optim" in recipe.training else ""
    if package := optimizer_package(optim):
        wanted.append((f"{recipe.trainer}.optim", f"optim: {optim}", package))
    if has_section(recipe, "BitsAndBytesConfig"):
        wanted.append(("BitsAndBytesConfig", "BitsAndBytesConfig", ("bitsandbytes", "bitsandbytes")))
    if is_true(recipe, "use_liger_kernel"):
        liger = ("liger_kernel", "liger-kernel")
        wanted.append((f"{recipe.trainer}.use_liger_kernel", "use_liger_kernel: true", liger))
    attention = recipe.get("model.attn_implementation")
    if isinstance(attention, str) and attention in FLASH:
        wanted.append(("model.attn_implementation", f"attn_implementation: {attention}", FLASH[attention]))
    for name in strings_in(recipe.training.get("report_to")):
        if name in REPORTERS:
            wanted.append((f"{recipe.trainer}.report_to", f"report_to: {name}", (name, name.replace("_", "-"))))
    for dotted, what, (module, pip) in wanted:
        if find_spec(module) is None and not (module == "tensorboard" and find_spec("tensorboardX")):
            fix = f"pip install {EXTRAS.get(pip, pip)}"
            yield report_key(recipe, dotted, f"{what} needs {pip}, which is not installed here", fix)


def device_errors(recipe: Recipe, device: Device) -> list[Diagnostic]:
    """What this device cannot do, after recipe/defaults.py has turned off, visibly, what a CPU would ignore.

    Looked at before anything is loaded. The recipe has a known task and exactly one trainer.
    """
    return [*missing_packages(recipe), *gpu_errors(recipe, device)]


def gpu_errors(recipe: Recipe, device: Device) -> list[Diagnostic]:
    """The part of `device_errors` that the device alone decides, whatever is installed on this machine."""
    return [*_gpu_precision(recipe, device), *_kernels(recipe, device)]


def _capability(device: Device) -> str:
    return ".".join(map(str, device.capability or ())) or "unknown"


def _gpu_precision(recipe: Recipe, device: Device) -> Iterator[Diagnostic]:
    """Precisions that CUDA GPUs have since Ampere (5.23 training_args.py:1682 and _validate_args)."""
    if device.kind != "cuda":
        return
    if is_true(recipe, "tf32") and (device.capability or (0, 0)) < (8, 0):
        what = f"tf32: true needs a GPU of compute capability 8.0 or later; {device.name} has {_capability(device)}"
        yield report_argument(recipe, "tf32", what, "leave tf32 out")
    for key in ("bf16", "bf16_full_eval"):
        if recipe.training.get(key) is True and not device.bf16:
            what = (
                f"{key}: true needs a GPU of compute capability 8.0 or later; {device.name} has {_capability(device)}"
            )
            fix = "write fp16: true" if key == "bf16" else "write fp16_full_eval: true"
            yield report_argument(recipe, key, what, f"{fix} (for a Gemma, neither)")
    if recipe.trainer == "SFTConfig" and has_section(recipe, "BitsAndBytesConfig") and is_true(recipe, "fp16"):
        # trl sft_trainer.py:911 casts the adapters of a quantised model to bf16; trl#4901, pytorch#127176
        what = "fp16: true with BitsAndBytesConfig: SFTTrainer's adapters are bf16, which torch's scaler cannot unscale"
        yield report_argument(
            recipe, "fp16", what, "write bf16: true, or bf16: false without fp16 where the GPU has no bf16"
        )


def _kernels(recipe: Recipe, device: Device) -> Iterator[Diagnostic]:
    """Kernels that exist for some devices only."""
    optim = text_of(recipe, "optim") if "optim" in recipe.training else ""
    bitsandbytes = (optimizer_package(optim) or ("", ""))[0] == "bitsandbytes"
    if device.kind == "mps" and bitsandbytes and ("8bit" in optim or "paged" in optim):
        # platform table in bitsandbytes' own description: "8-bit optimizers: in progress" on MPS
        what = f"optim: {optim} has no kernel on an Apple GPU"
        yield report_argument(recipe, "optim", what, "write optim: adamw_torch_fused, or adafactor to save memory")
    for name, kind in (("adamw_torch_xla", "a TPU"), ("adamw_torch_npu_fused", "an NPU")):
        if optim == name:
            yield report_argument(recipe, "optim", f"optim: {optim} is for {kind}", "write optim: adamw_torch_fused")
    if is_true(recipe, "use_liger_kernel") and device.kind != "cuda":
        what = f"use_liger_kernel: true: Liger's Triton kernels need a CUDA GPU, this is {device.name}"
        yield report_argument(recipe, "use_liger_kernel", what, "leave use_liger_kernel out")
    dora = recipe.get("LoraConfig.use_dora") is True and recipe.get("BitsAndBytesConfig.load_in_8bit") is True
    if dora and device.kind == "cpu":
        # peft utils/integrations.py:112 moves the weight at each forward, and bitsandbytes takes its empty scales then
        what = "LoraConfig.use_dora: true with load_in_8bit: true: peft loses the weights' scales on a CPU"
        yield report_key(recipe, "LoraConfig.use_dora", what, "write load_in_4bit: true, or leave use_dora out")
    yield from _fourier(recipe, device)
    attention = recipe.get("model.attn_implementation")
    if attention == "flex_attention" and device.kind == "cpu":
        what = "attn_implementation: flex_attention has no backward pass on a CPU"
        yield report_key(recipe, "model.attn_implementation", what, "write attn_implementation: sdpa")
    old = device.kind != "cuda" or (device.capability or (0, 0)) < (8, 0)
    if isinstance(attention, str) and attention in FLASH and old:
        what = f"attn_implementation: {attention} needs a CUDA GPU of compute capability 8.0; this is {device.name}"
        yield report_key(recipe, "model.attn_implementation", what, "write attn_implementation: sdpa")


def _fourier(recipe: Recipe, device: Device) -> Iterator[Diagnostic]:
    """FNet's Fourier transform: cuFFT has no bfloat16, and half precision for powers of two only (aten/src/ATen/native/
    SpectralOps.cpp, promote_type_fft, and cuda/CuFFTUtils.h). A CPU's autocast computes it in float32."""
    facts = model_facts(recipe.section("model"))
    if facts.model_type != "fnet" or device.kind != "cuda":
        return
    for dotted, value in ((f"{recipe.trainer}.bf16", True), ("model.dtype", "bfloat16")):
        if recipe.get(dotted) == value:
            key = dotted.rpartition(".")[2]
            what = f"{key}: {str(value).lower()}: FNet's Fourier transform has no bfloat16 on a GPU"
            yield report_key(recipe, dotted, what, "train in float32: write dtype: float32 and leave bf16 out")
    width = facts.config.get("hidden_size", 768)
    if is_true(recipe, "fp16") and (not isinstance(width, int) or width & (width - 1)):
        what = (
            f"fp16: true: FNet's Fourier transform takes powers of two only in half precision, and it is {width} wide"
        )
        yield report_argument(recipe, "fp16", what, "train in float32: leave fp16 out")


def device_requirements(recipe: Recipe) -> list[str]:
    """What `check` cannot know without the device, one line each, without the recipe's path."""
    lines = []
    if is_true(recipe, "bf16") or (
        recipe.trainer == "SFTConfig" and _silent(recipe, "bf16") and not is_true(recipe, "fp16")
    ):
        lines.append("bf16 needs compute capability 8.0 or later (RTX 30, A100 and newer); a CPU is slow in it")
    if is_true(recipe, "fp16") and recipe.get("master_weights") is not True:
        lines.append("fp16 needs a GPU; a CPU trains in fp32 instead, and the run prints that")
    if is_true(recipe, "tf32"):
        lines.append("tf32 needs a CUDA GPU of compute capability 8.0 or later; a CPU run drops it, and prints that")
    optim = text_of(recipe, "optim") if "optim" in recipe.training else ""
    if (optimizer_package(optim) or ("", ""))[0] == "bitsandbytes":
        lines.append(f"optim: {optim} has no 8-bit and no paged kernels on an Apple GPU yet")
    if is_true(recipe, "torch_compile"):
        lines.append("torch_compile takes minutes for the first steps, and not every model compiles")
    attention = recipe.get("model.attn_implementation")
    if isinstance(attention, str) and attention in FLASH:
        lines.append(f"attn_implementation: {attention} needs a CUDA GPU with {FLASH[attention][1]} installed")
    lines.append("memory: `hf-recipes plan` shows whether model and batch fit the GPU")
    return lines


def _silent(recipe: Recipe, key: str) -> bool:
    return recipe.training.get(key) is None
