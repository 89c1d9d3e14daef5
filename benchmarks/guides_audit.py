"""The claims of the five guides beside what plan says: writes docs/guides-audit.md.

    python benchmarks/guides_audit.py            trace every setting (minutes, no GPU, no network), then write the page
    python benchmarks/guides_audit.py --page     write the page from the record as it is

The guides themselves are not in the repository: their words stand as quotes in guides_claims.py. What is traced goes to
benchmarks/results/guides_audit.json, and every figure of the page is formatted from it or computed by `arithmetic`.
tests/test_guides_audit.py holds the page to the record and traces a few settings again.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any

from hf_recipes.catalog import gpus
from hf_recipes.catalog.presets import PRESETS
from hf_recipes.errors import RecipeError
from hf_recipes.plan import replay_trace, trace_recipe
from hf_recipes.recipe.read import read_recipe
from hf_recipes.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/guides_audit.json"
PAGE = ROOT / "docs/guides-audit.md"
GIB, GB = 2**30, 10**9
ADA, AMPERE, A100 = (8, 9), (8, 6), (8, 0)

FP32: dict[str, Any] = {}
FP16, BF16 = {"fp16": True}, {"bf16": True}
CKPT = {"activation_checkpointing": True}


def _own(task: str, model: dict[str, Any], length: int, batch: int, words: dict[str, Any], **more: Any) -> Recipe:
    """A guide's own way: Trainer, plain loss. Nothing of the data is read by a trace."""
    named = {"output_dir": "runs/audit", "per_device_train_batch_size": batch, "per_device_eval_batch_size": 8, **words}
    sections = {
        "task": task,
        "model": model,
        "dataset": {"path": "generated", "max_length": length},
        "TrainingArguments": named,
        **more,
    }
    return Recipe(path="guide.yaml", sections=sections, locations={})


def _gpt(preset: str, batch: int, length: int, words: dict[str, Any], **model: Any) -> Recipe:
    return _own("causal-lm", {"preset": preset, **model}, length, batch, words)


def _gemma(batch: int, length: int, words: dict[str, Any], **model: Any) -> Recipe:
    """Gemma's shape with 31 blocks instead of 18: the nearest to the guide's 341.8M parameters."""
    config = {**PRESETS["gemma-270m"].config, "num_hidden_layers": 31}
    config["layer_types"] = (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"]
    return _own("causal-lm", {"config": config, **model}, length, batch, words)


def _phi(batch: int, length: int, words: dict[str, Any], dtype: str) -> Recipe:
    model = {"pretrained_model_name_or_path": "microsoft/phi-2", "dtype": dtype}
    lora = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
    return _own("causal-lm", model, length, batch, words, LoraConfig=lora)


def _bert(batch: int, length: int, words: dict[str, Any], **model: Any) -> Recipe:
    named = {"pretrained_model_name_or_path": "google-bert/bert-base-uncased", **model}
    words = {"per_device_eval_batch_size": 2 * batch, **words}
    return _own("text-classification", named, length, batch, words)


def _file(name: str, *overrides: str) -> Recipe:
    return read_recipe(f"recipes/{name}.yaml", list(overrides))


def settings() -> dict[str, tuple[Recipe, tuple[int, int]]]:
    """Everything that is traced: name -> (recipe, compute capability)."""
    found: dict[str, tuple[Recipe, tuple[int, int]]] = {}
    for batch, length in ((32, 128), (16, 128), (16, 192), (16, 256), (16, 320), (16, 384), (16, 448)):
        found[f"gemma_{batch}x{length}"] = _gemma(batch, length, BF16), ADA
    found["gemma_16x384_pure"] = _gemma(16, 384, {}, dtype="bfloat16"), ADA
    found["gemma_16x448_pure"] = _gemma(16, 448, {}, dtype="bfloat16"), ADA
    found["gemma_fp32"] = _gemma(16, 384, FP32), ADA
    found["gemma_ours_16x384"] = _file("gemma-270m-optimized"), ADA
    found["gemma_ours_16x448"] = _file("gemma-270m-optimized", "SFTConfig.max_length=448"), ADA
    found["gemma_ours_16x256"] = _file("gemma-270m-conservative"), ADA
    original = ["per_device_train_batch_size=32", "gradient_accumulation_steps=32", "max_length=128"]
    found["gemma_ours_32x128"] = _file("gemma-270m-optimized", *(f"SFTConfig.{one}" for one in original)), ADA
    for batch in (8, 16, 32):
        found[f"medium_fp32_{batch}"] = _gpt("gpt-medium", batch, 1024, FP32), ADA
        found[f"medium_fp16_ckpt_{batch}"] = _gpt("gpt-medium", batch, 1024, {**FP16, **CKPT}), ADA
        found[f"small_fp32_{batch}"] = _gpt("gpt-small", batch, 512, FP32), ADA
        found[f"small_fp16_ckpt_{batch}"] = _gpt("gpt-small", batch, 512, {**FP16, **CKPT}), ADA
    found["medium_fp32_8_eager"] = _gpt("gpt-medium", 8, 1024, FP32, attn_implementation="eager"), ADA
    for batch in (4, 5, 6, 16):
        found[f"medium_fp16_{batch}"] = _gpt("gpt-medium", batch, 1024, FP16), ADA
    found["medium_ours"] = _file("gpt-medium-wikitext103"), ADA
    for batch in (32, 48, 64):
        found[f"small_fp16_{batch}"] = _gpt("gpt-small", batch, 512, FP16), ADA
        words = f"SFTConfig.per_device_train_batch_size={batch}"
        found[f"small_ours_{batch}"] = _file("gpt-small-wikitext103", words), ADA
    found["tiny"] = _file("gpt-tiny-wikitext2"), ADA
    found["gpt300_fp16_32"] = _gpt("gpt-300m", 32, 2048, FP16), A100
    found["gpt300_fp16_4"] = _gpt("gpt-300m", 4, 2048, FP16), A100
    found["gpt300_fp32_4"] = _gpt("gpt-300m", 4, 2048, FP32), A100
    found["gpt300_fp16_ckpt_32"] = _gpt("gpt-300m", 32, 2048, {**FP16, **CKPT}), A100
    found["gpt300_fp16_128"] = _gpt("gpt-300m", 128, 2048, FP16), A100
    found["gpt300_ours_32"] = _file("gpt-300m-4xa100"), A100
    found["gpt300_ours_128"] = _file("gpt-300m-4xa100", "SFTConfig.per_device_train_batch_size=128"), A100
    bnb = {"optim": "adamw_bnb_8bit"}
    for length in (128, 256, 512):
        found[f"bert_fp16_80x{length}"] = _bert(80, length, FP16), AMPERE
        found[f"bert_fp16_64x{length}_8bit"] = _bert(64, length, {**FP16, **bnb}), AMPERE
    found["bert_fp16_64x128"] = _bert(64, 128, FP16), AMPERE
    found["bert_fp16_80x128_eager"] = _bert(80, 128, FP16, attn_implementation="eager"), AMPERE
    found["bert_fp16_64x128_8bit_eager"] = _bert(64, 128, {**FP16, **bnb}, attn_implementation="eager"), AMPERE
    found["bert_fp32_80x128"] = _bert(80, 128, FP32), AMPERE
    found["bert_fp32_64x128_8bit"] = _bert(64, 128, bnb), AMPERE
    found["bert_ours_64"] = _file("rtx3070"), AMPERE
    found["bert_ours_48"] = _file("rtx3070-out-of-memory"), AMPERE
    for level, batch, length in (("high", 8, 2048), ("balanced", 4, 1024), ("low", 2, 768)):
        for dtype, words in (("bfloat16", {**BF16, **CKPT}), ("float32", {**BF16, **CKPT})):
            found[f"phi_{level}_{dtype}"] = _phi(batch, length, words, dtype), AMPERE
        found[f"phi_{level}_ours"] = _file(f"phi2-a10g-{level}"), AMPERE
    found["phi_balanced_no_ckpt"] = _phi(4, 1024, BF16, "bfloat16"), AMPERE
    for level, batch, length in (("high", 3, 1024), ("balanced", 2, 1024), ("low", 2, 768), ("safe", 1, 768)):
        found[f"phi_m3_{level}_ours"] = _file(f"phi2-m3-{level}"), AMPERE
        found[f"phi_m3_{level}_fp16"] = _phi(batch, length, CKPT, "float16"), AMPERE
        found[f"phi_m3_{level}_fp32"] = _phi(batch, length, CKPT, "float32"), AMPERE
    return found


def observe(recipe: Recipe, capability: tuple[int, int]) -> dict[str, Any]:
    """One trace as the record keeps it: bytes, FLOPs of an optimizer step, and how exact it is."""
    seen = trace_recipe(recipe, capability=capability)
    return {
        "allocated": seen.allocated,
        "reserved": replay_trace(seen).peak,
        "phase": seen.phase,
        "at": seen.at,
        "parts": dict(seen.parts),
        "parameters": seen.parameters,
        "trainable": seen.trainable,
        "micro_batch": seen.micro_batch,
        "length": seen.length,
        "accumulation": seen.accumulation,
        "flops": seen.flops,
        "capability": list(capability),
        "attention": dict(seen.attention),
        "estimate": list(seen.estimate),
    }


def record() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (recipe, capability) in settings().items():
        started = time.monotonic()
        try:
            found[name] = observe(recipe, capability)
        except RecipeError as problem:
            found[name] = {"refused": str(problem)}
        state = found[name].get("refused") or f"{found[name]['reserved'] / GIB:.2f} GiB"
        print(f"{name:32} {time.monotonic() - started:5.1f} s  {state}", flush=True)
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"


def _flops(rate: float) -> str:
    for scale, name in ((1e15, "P"), (1e12, "T"), (1e9, "G")):
        if rate >= scale:
            return f"{rate / scale:.3g} {name}FLOP"
    return f"{rate / 1e6:.3g} MFLOP"


def figures(seen: dict[str, Any]) -> dict[str, str]:
    """Every {name} of guides_claims.py as text: from the traces, and by arithmetic on the guides' own numbers."""
    found: dict[str, str] = {}
    for name, one in seen.items():
        if "refused" in one:
            found[name] = found[f"{name}.of8"] = found[f"n.{name}"] = "refused by plan"
            continue
        found[name] = _gib(one["reserved"])
        found[f"{name}.of8"] = f"{one['reserved'] / (8 * GIB):.0%} of 8 GiB"
        found[f"n.{name}"] = f"{one['parameters']:,}"
    for name, preset in PRESETS.items():
        found[f"n.preset.{name}"] = f"{preset.parameters:,}"
    for name, gpu in gpus.known_gpus().items():
        found[f"usable.{name}"] = _gib(gpus.usable_bytes(gpu))
    for part, size in seen["medium_fp32_8"]["parts"].items():
        found[f"part.{part}"] = f"{size / GB:.2f} GB"
    return found | _gemma_figures(seen) | _gpt_figures(seen) | _bert_figures(seen)


def _gemma_figures(seen: dict[str, Any]) -> dict[str, str]:
    pure, fp32 = seen["gemma_16x384_pure"]["parts"], seen["gemma_fp32"]["parts"]
    between = pure["weights"] + pure["optimizer"]
    return {
        "gemma.weights_pure": f"{pure['weights'] / 1e6:.0f} MB",
        "gemma.weights_fp32": f"{fp32['weights'] / 1e6:,.0f} MB",
        "gemma.between": _gib(between),
        "gemma.between.of8": f"{between / (8 * GIB):.1%} of 8 GiB",
        "gemma.ratio": f"{seen['gemma_16x448']['reserved'] / seen['gemma_16x384']['reserved']:.2f}",
    }


WIKITEXT_WORDS = 103_227_021  # of WikiText-103's training part, as its authors count them (arXiv 1609.07843, table 1)


def _gpt_figures(seen: dict[str, Any]) -> dict[str, str]:
    scores = 8 * 12 * 1024 * 1024 * 4
    blocks, embedding, stated = 197_198_080, 51_463_168, 300_124_416
    tokens_step, speed, seconds = 512 * 2048, 49_300, 72 * 3600 + 14 * 60
    small, large = seen["small_fp16_32"], seen["gpt300_fp16_4"]
    token_small = small["flops"] / (small["micro_batch"] * small["length"] * small["accumulation"])
    token_large = large["flops"] / (large["micro_batch"] * large["length"] * large["accumulation"])
    slow, fast = (token_small * WIKITEXT_WORDS / (hours * 3600) for hours in (6, 4))
    peak, four = (
        gpus.known_gpus()["rtx-4080"].half_flops or math.nan,
        4 * (gpus.known_gpus()["a100-40gb"].half_flops or math.nan),
    )
    losses = (10.82, 5.15, 3.88, 3.23, 2.99, 2.87, 2.85, 2.923, 2.847)
    return {
        "scores.layer": f"{scores / GB:.2f} GB",
        "scores.all": f"{12 * scores / GB:.2f} GB",
        "wiki.words": f"{WIKITEXT_WORDS:,}",
        "wiki.flops_token": _flops(token_small),
        "wiki.rate_slow": _flops(slow) + "/s",
        "wiki.rate_fast": _flops(fast) + "/s",
        "wiki.share_slow": f"{slow / peak:.1%}",
        "wiki.share_fast": f"{fast / peak:.1%}",
        "gpt300.sum": f"{blocks:,} + 2 x {embedding:,} = {blocks + 2 * embedding:,}",
        "gpt300.rest": str(blocks % 24),
        "gpt300.embedding": f"50257 x 1024 = {50257 * 1024:,}",
        "gpt300.tied": f"{embedding / stated:.1%}",
        "gpt300.batch": f"128 x 4 x 4 = {128 * 4 * 4:,}",
        "gpt300.fp16_saves": f"{1 - seen['gpt300_fp16_4']['reserved'] / seen['gpt300_fp32_4']['reserved']:.0%}",
        "gpt300.tokens": f"{100_000 * tokens_step / 1e9:.1f}B",
        "gpt300.times": f"{100_000 * tokens_step / 12.8e9:.1f}",
        "gpt300.steps": f"{12.8e9 / tokens_step:,.0f}",
        "gpt300.processed": f"{speed * seconds / 1e9:.2f}B",
        "gpt300.flops_token": _flops(token_large),
        "gpt300.rate": _flops(token_large * speed) + "/s",
        "gpt300.share": f"{token_large * speed / four:.0%}",
        "gpt300.step_seconds": f"{tokens_step / speed:.1f} s",
        "gpt300.days": f"{100_000 * tokens_step / speed / 86400:.1f} days",
        "gpt300.phase1": f"{2_000 / (14 * 3600):.3f}",
        "gpt300.phase2": f"{8_000 / (4 * 3600):.3f}",
        "gpt300.fp32_bytes": f"{stated * 4 / GB:.2f} GB",
        "gpt300.ours_bytes": f"{seen['gpt300_fp16_4']['parameters'] * 4 / GB:.2f} GB",
        "gpt300.ln": f"{math.log(50257):.3f}",
    } | {f"exp.{loss}": f"{math.exp(loss):,.2f}" for loss in losses}


def _bert_figures(seen: dict[str, Any]) -> dict[str, str]:
    full, small = seen["bert_fp16_64x128"], seen["bert_fp16_64x128_8bit"]
    epoch = full["flops"] / (full["micro_batch"] * full["accumulation"]) * 20_000
    rate, peak = epoch / (35 * 60), gpus.known_gpus()["rtx-3070"].half_flops or math.nan
    return {
        "bert.opt32": f"{full['parts']['optimizer'] / GIB:.2f} GiB",
        "bert.opt8": f"{small['parts']['optimizer'] / GIB:.2f} GiB",
        "bert.saved": f"{1 - small['reserved'] / full['reserved']:.0%}",
        "bert.flops_epoch": _flops(epoch),
        "bert.rate": _flops(rate) + "/s",
        "bert.share": f"{rate / peak:.1%}",
        "bert.oom_batch": str(48 * 3),
        "bert.batch": str(64 * 2),
    }


HEAD = """# The guides' claims beside what plan says

Five published guides give memory, time and size of their runs. How do these compare with plan, and with arithmetic?
"GiB" is what CUDA's allocator reserves at the peak, without the context, for the plain loss of `Trainer` unless "ours"
or "our recipe" is given. A share of 8 GiB is of the sold size. Nothing here was measured on a GPU; how close plan
comes to measured peaks: [plan-accuracy.md](plan-accuracy.md). Written by `python benchmarks/guides_audit.py` from
[its record](../benchmarks/results/guides_audit.json); a test holds this page to it.
"""


def page(seen: dict[str, Any]) -> str:
    """docs/guides-audit.md. Raises KeyError for a claim that names a figure which nothing computes."""
    from guides_claims import CLAIMS  # beside this file

    known = figures(seen)

    def fill(text: str) -> str:
        return re.sub(r"\{([^}]+)\}", lambda found: known[found[1]], text)

    lines = [HEAD]
    for guide in dict.fromkeys(claim[0] for claim in CLAIMS):
        lines += [f"## {guide}", "", "| the guide says | plan or arithmetic says | why they differ |", "|---|---|---|"]
        lines += [f"| {quote} | {fill(says)} | {fill(why)} |" for one, quote, says, why in CLAIMS if one == guide]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--page" not in sys.argv:
        RECORD.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")
