# ruff: noqa: E501 -- a table of sentences
"""The claims of the guides in their own words, with what is computed beside them. No figure of ours is typed here: every
{name} is filled in by guides_audit.figures from the record of traces and from arithmetic on the guide's own numbers."""

from __future__ import annotations

GEMMA = "Gemma-270M memory sweep (RTX 4070 Laptop, 8 GB)"
PRESETS_GUIDE = "GPT presets for WikiText (16 GB)"
A100_GUIDE = "300M GPT on 4 x A100-40GB"
BERT_GUIDE = "RTX 3070 8 GB classification"
PHI_GUIDE = "Phi-2 LoRA (A10G and M3)"

# (guide, its words, what plan or arithmetic says, why they differ)
CLAIMS: tuple[tuple[str, str, str, str], ...] = (
    (GEMMA, "Model: 341.8M parameters", "the published shape has {n.preset.gemma-270m}; with 31 blocks {n.gemma_16x384}",
     "No published Gemma has it. 31 blocks are traced below, the nearest."),
    (GEMMA, "Model loading: 710 MB", "{gemma.weights_pure} of weights in bf16, {gemma.weights_fp32} in fp32",
     "Plausible: 16-bit weights and what else was loaded."),
    (GEMMA, "32 x 128: 22.3 %", "{gemma_32x128} = {gemma_32x128.of8}; our recipe's way {gemma_ours_32x128}",
     "A peak includes the logits of a 262,144-token vocabulary; the guide's figure does not."),
    (GEMMA, "16 x 128: 19.6 %", "{gemma_16x128} = {gemma_16x128.of8}", "As above."),
    (GEMMA, "16 x 192: 20.5 %", "{gemma_16x192} = {gemma_16x192.of8}", "As above."),
    (GEMMA, "16 x 256: 22.4 %", "{gemma_16x256} = {gemma_16x256.of8}; our recipe's way {gemma_ours_16x256}", "As above."),
    (GEMMA, "16 x 320: 23.1 %", "{gemma_16x320} = {gemma_16x320.of8}", "As above."),
    (GEMMA, "16 x 384: 24.2 %",
     "{gemma_16x384} = {gemma_16x384.of8} with bf16 autocast, {gemma_16x384_pure} in pure bf16; weights and AdamW in pure "
     "bf16 alone {gemma.between} = {gemma.between.of8}; our recipe's way {gemma_ours_16x384}",
     "The figure is what stays allocated between two steps (weights and optimizer), not the peak within one."),
    (GEMMA, "16 x 448: Out of Memory",
     "{gemma_16x448}, {gemma.ratio} times 16 x 384; with the fused head and checkpointing {gemma_ours_16x448}",
     "Out of memory is right for the plain loss, but so it is at every length of the table; no curve jumps from a quarter "
     "of a GPU to all of it in one step of 64 tokens."),
    (GEMMA, "Training memory: ~1.9 GB total; Peak usage: ~2.2 GB", "{gemma.between} between steps, {gemma_16x384} peak",
     "Six bytes a parameter: pure bf16 weights and two Adam states. The step itself is left out."),
    (GEMMA, "Safety margin: 6+ GB remaining", "the GPU has {usable.rtx-4070-laptop} to give", "Nothing remains."),
    (PRESETS_GUIDE, "tiny (~16M params)", "{n.tiny}", "Agrees."),
    (PRESETS_GUIDE, "small (~45-50M params)", "{n.small_fp16_32}", "Agrees, at the lower end."),
    (PRESETS_GUIDE, "medium (~117M params), GPT-2 Small equivalent", "{n.medium_fp16_16}",
     "The figure of GPT-2's paper; the published model, and this shape, have more."),
    (PRESETS_GUIDE, "Without Optimization: batch_size=8: ~11 GB",
     "12 x 768 at 1024 tokens in fp32: {medium_fp32_8}; 6 x 512 at 512 tokens: {small_fp32_8}",
     "Headed \"45-50M\", but its breakdown has 12 layers, 12 heads and 1024 tokens: that is the medium preset. The "
     "logits and their loss in fp32 are missing from it."),
    (PRESETS_GUIDE, "batch_size=16: ~18.6 GB -> RTX 4080 16GB (tight)", "{medium_fp32_16}; small {small_fp32_16}",
     "As above; and a GPU of 16 GB does not have 18.6 by the guide's own figure."),
    (PRESETS_GUIDE, "batch_size=32: ~33.7 GB -> RTX 3090 24GB, RTX 4090 24GB", "{medium_fp32_32}; small {small_fp32_32}",
     "As above; 33.7 GB are not in 24."),
    (PRESETS_GUIDE, "With Optimizations (checkpointing + fp16): batch_size=8: ~4.4 GB", "{medium_fp16_ckpt_8}; small "
     "{small_fp16_ckpt_8}", "Checkpointing leaves the logits as they are: they are then most of the peak."),
    (PRESETS_GUIDE, "batch_size=16: ~7.4 GB", "{medium_fp16_ckpt_16}; small {small_fp16_ckpt_16}", "As above."),
    (PRESETS_GUIDE, "batch_size=32: ~13.5 GB -> RTX 4070 16GB", "{medium_fp16_ckpt_32}; small {small_fp16_ckpt_32}",
     "As above; and an RTX 4070 has 12 GB."),
    (PRESETS_GUIDE, "Model parameters 0.50 GB; Gradients 0.50 GB; Optimizer (AdamW) 0.99 GB",
     "{part.weights}, {part.gradients} at the peak, {part.optimizer}",
     "Right for weights and AdamW of 124M parameters; at the peak few gradients exist yet."),
    (PRESETS_GUIDE, "Activations (12 layers) 7.55 GB; Overhead 1.50 GB",
     "activations {part.activations}, logits and loss {part.logits and loss}, temporaries {part.temporaries}",
     "The guide counts attention scores, which sdpa never stores, and forgets the logits."),
    (PRESETS_GUIDE, "8 x 12 x 1024 x 1024 = 0.4 GB per layer; 4.8 GB just for attention scores!",
     "{scores.layer} a layer and {scores.all} in fp32: the arithmetic holds; eager attention takes {medium_fp32_8_eager}, "
     "sdpa {medium_fp32_8}",
     "sdpa, the default, keeps no scores; eager keeps more than the scores: their softmax and dropout masks too."),
    (PRESETS_GUIDE, "117M params, batch 16, fp16: ~9.3 GB (58% of 16GB)",
     "{medium_fp16_16}; with checkpointing {medium_fp16_ckpt_16}; {medium_fp16_5} at batch 5; our 4 x 4 {medium_ours}",
     "Impossible with the plain loss: the logits of 16 x 1024 tokens in fp32, several times, are more than that alone."),
    (PRESETS_GUIDE, "Memory usage: Option A 8-9 GB, Option C 9-13 GB (tight)", "A at 32 {small_fp16_32}; C at 16 "
     "{medium_fp16_16}", "As above."),
    (PRESETS_GUIDE, "batch_size=32: ~8 GB (50% usage)", "{small_fp16_32} with fp16 and the plain loss; fused head "
     "{small_ours_32}", "Holds only where the logits are never held whole: our recipe does so."),
    (PRESETS_GUIDE, "batch_size=48: ~11 GB (69% usage)", "{small_fp16_48}; fused head {small_ours_48}", "As above."),
    (PRESETS_GUIDE, "batch_size=64: ~14 GB (88% usage)", "{small_fp16_64}; fused head {small_ours_64}", "As above."),
    (PRESETS_GUIDE, "~4-6 hours per epoch on WikiText-103 (16 GB, batch 32); ~80-120 hours for 20 epochs",
     "{wiki.flops_token} a token; {wiki.words} words, at a token each: {wiki.rate_slow} to {wiki.rate_fast}, "
     "{wiki.share_slow} to {wiki.share_fast} of an RTX 4080's dense half-precision peak",
     "Slow for any tensor core: a lower bound from words, and even with twice the tokens it is far from what the GPU "
     "does. 20 times the epoch is right."),
    (PRESETS_GUIDE, "Expected perplexity: ~35-40 (matching GPT-2 Small)", "not a matter of memory or time: not checked",
     "GPT-2's 37.5 is zero-shot and per word; a perplexity per token is another number."),
    (A100_GUIDE, "Total Parameters: 300,124,416", "{gpt300.sum}; the preset of 24 x 1024 has {n.gpt300_fp16_32}",
     "Its addends make its total only if the tied matrix counts twice."),
    (A100_GUIDE, "24 Transformer Blocks: 197,198,080 params", "remainder when divided by 24: {gpt300.rest}",
     "24 equal blocks cannot have a number that 24 does not divide."),
    (A100_GUIDE, "Embedding Layer: 51,463,168 params", "{gpt300.embedding}", "Agrees: GPT-2's vocabulary, width 1024."),
    (A100_GUIDE, "Weight tying reduced parameters by ~17%", "{gpt300.tied} of its total",
     "True of its total, which then is the untied one: the two statements exclude each other."),
    (A100_GUIDE, "Batch Size: 512 (128 per GPU x 4 GPUs); Accumulated gradients over 4 steps",
     "{gpt300.batch} rows; a GPU would hold 128 x 2048 at once: {gpt300_fp16_128}, or {gpt300_ours_128} with the fused "
     "head and checkpointing; the GPU has {usable.a100-40gb}",
     "512 = 128 x 4 leaves no place for accumulation; 512 = 32 x 4 x 4 does, and is what the recipe takes."),
    (A100_GUIDE, "40GB VRAM each (32 x 2048 a GPU)",
     "plain {gpt300_fp16_32}, with checkpointing {gpt300_fp16_ckpt_32}, ours {gpt300_ours_32}",
     "Only with the fused head and checkpointing does it fit."),
    (A100_GUIDE, "Mixed precision reduced memory usage by ~40%", "{gpt300.fp16_saves} less at 4 x 2048: {gpt300_fp32_4} "
     "becomes {gpt300_fp16_4}", "Weights and AdamW stay in fp32 and 16-bit copies come on top; the logits' loss stays fp32."),
    (A100_GUIDE, "Total Steps: 100,000; Total Tokens Processed: 12.8B",
     "100,000 x 512 x 2048 = {gpt300.tokens}, {gpt300.times} times that; 12.8B are {gpt300.steps} steps",
     "One of the two is wrong; the time supports 12.8B."),
    (A100_GUIDE, "Training Speed: 49,300 tokens/second; 72 hours 14 minutes", "{gpt300.processed} tokens",
     "These two agree with 12.8B."),
    (A100_GUIDE, "Average GPU Utilization: 92.4%",
     "{gpt300.flops_token} a token at 49,300 tokens/s: {gpt300.rate}, {gpt300.share} of four GPUs' dense fp16 peak",
     "Utilization says that a kernel was running, not how much it computed."),
    (A100_GUIDE, "100,000 steps in 72 hours", "{gpt300.step_seconds} a step at its speed: {gpt300.days}",
     "As above: {gpt300.times} times too many steps."),
    (A100_GUIDE, "Phase 1: 2,000 steps, ~14 hours; 10,000 steps at 18h", "{gpt300.phase1} steps/s, then {gpt300.phase2}",
     "A warm-up of the learning rate does not change the speed of a step. 14 + 36 + 22 hours do make 72."),
    (A100_GUIDE, "checkpoint (1.14 GB)", "{gpt300.fp32_bytes} for its 300,124,416 in fp32, {gpt300.ours_bytes} for 24 x 1024; "
     "with AdamW three times that", "Weights only, and of fewer parameters than it states: training cannot resume from it."),
    (A100_GUIDE, "Initial loss: 9.23 (phase 1); Initial 10.82 (table)", "ln(50257) = {gpt300.ln}",
     "The table is right: random weights guess uniformly."),
    (A100_GUIDE, "Loss / perplexity 10.82 / 49,787", "{exp.10.82}", "Rounded loss; agrees within its digits."),
    (A100_GUIDE, "5.15 / 172.43", "{exp.5.15}", "Agrees."),
    (A100_GUIDE, "3.88 / 48.27", "{exp.3.88}", "Agrees within the loss's two digits."),
    (A100_GUIDE, "3.23 / 25.30", "{exp.3.23}", "Agrees within the loss's two digits."),
    (A100_GUIDE, "2.99 / 19.85", "{exp.2.99}", "Agrees within the loss's two digits."),
    (A100_GUIDE, "2.87 / 17.64", "{exp.2.87}", "Agrees."),
    (A100_GUIDE, "2.85 / 17.29", "{exp.2.85}", "Agrees: the perplexity of the training loss."),
    (A100_GUIDE, "Final perplexity: 18.62; Validation Loss: 2.923; Training Loss: 2.847", "exp(2.923) = {exp.2.923}, "
     "exp(2.847) = {exp.2.847}", "18.62 is the validation's, 17.29 the training's: two numbers under one name."),
    (BERT_GUIDE, "Before: 7.5-7.8GB VRAM (batch 80)",
     "at 128 tokens {bert_fp16_80x128} (eager {bert_fp16_80x128_eager}, fp32 {bert_fp32_80x128}); at 256 "
     "{bert_fp16_80x256}; at 512 {bert_fp16_80x512}; and the context",
     "True near 128 tokens with eager attention, as transformers 4 had by default, or in fp32; not at 256."),
    (BERT_GUIDE, "After: 6.5-7.0GB VRAM (batch 64 + 8-bit optimizer)",
     "at 128 tokens {bert_fp16_64x128_8bit} (eager {bert_fp16_64x128_8bit_eager}, fp32 {bert_fp32_64x128_8bit}); at 256 "
     "{bert_fp16_64x256_8bit}; at 512 {bert_fp16_64x512_8bit}; our recipe {bert_ours_64}; the GPU has {usable.rtx-3070}",
     "As above: about 128 tokens."),
    (BERT_GUIDE, "8-bit AdamW: 50% memory reduction",
     "optimizer {bert.opt32} becomes {bert.opt8}; the whole {bert_fp16_64x128} becomes {bert_fp16_64x128_8bit}, "
     "{bert.saved} less", "Of the optimizer's states only, and embeddings keep 32 bit: the batch does the rest."),
    (BERT_GUIDE, "O2 = more aggressive mixed precision; HuggingFace: \"O2 is recommended for Ampere GPUs\"",
     "ours (O2, 8-bit) {bert_ours_64} beside plain fp16 {bert_fp16_64x128_8bit}",
     "Without apex the key did nothing in transformers 4; Hugging Face recommends no such thing. Here O2 is real, and "
     "changes little."),
    (BERT_GUIDE, "~30-35 min/epoch (~20k samples, batch 64)",
     "{bert.flops_epoch} an epoch at 128 tokens: {bert.rate} at 35 minutes, {bert.share} of the GPU's half-precision peak",
     "Much longer rows, or the GPU waits for data: the computation of such an epoch is a minute or two."),
    (BERT_GUIDE, "per_device 48, accumulation 3: Effective batch still = 144", "48 x 3 = {bert.oom_batch}, 64 x 2 = "
     "{bert.batch}", "It was 128, not 144; 32 x 4 would keep it. {bert_ours_48} with checkpointing."),
    (BERT_GUIDE, "Current: 90.77% F1, target: 91-92%", "not a matter of memory or time: not checked",
     "The guide names no data."),
    (PHI_GUIDE, "High Memory Usage (~20GB): 8 x 2048 on a 24GB A10G",
     "bf16 weights {phi_high_bfloat16}, fp32 {phi_high_float32}, our recipe {phi_high_ours}; the GPU has {usable.a10g}",
     "Near the bf16 figure; fp32 weights do not fit."),
    (PHI_GUIDE, "Balanced (~16GB): 4 x 1024",
     "bf16 {phi_balanced_bfloat16}, fp32 {phi_balanced_float32}, ours {phi_balanced_ours}; without checkpointing "
     "{phi_balanced_no_ckpt}", "Near fp32 weights: not the same configuration as the line before."),
    (PHI_GUIDE, "Low Memory Usage (~12GB): 2 x 768", "bf16 {phi_low_bfloat16}, fp32 {phi_low_float32}, ours {phi_low_ours}",
     "Near fp32 weights, as above: each of the three is plausible, no one configuration gives all."),
    (PHI_GUIDE, "M3, High (~16GB): 3 x 1024", "fp32 {phi_m3_high_fp32}, fp16 {phi_m3_high_fp16}, ours {phi_m3_high_ours}; "
     "{usable.m3-18gb} of 18 GB for the GPU", "Estimates: CUDA's kernels stand for Apple's. fp32 weights do not leave enough."),
    (PHI_GUIDE, "M3, Balanced (~14GB): 2 x 1024", "fp32 {phi_m3_balanced_fp32}, fp16 {phi_m3_balanced_fp16}, ours "
     "{phi_m3_balanced_ours}", "As fp32 weights; the guide's \"at least 4GB free\" leaves 14."),
    (PHI_GUIDE, "M3, Low (~12GB): 2 x 768", "fp32 {phi_m3_low_fp32}, fp16 {phi_m3_low_fp16}, ours {phi_m3_low_ours}",
     "As fp32 weights."),
    (PHI_GUIDE, "M3, Safe Mode (~10GB): 1 x 768", "fp32 {phi_m3_safe_fp32}, fp16 {phi_m3_safe_fp16}, ours "
     "{phi_m3_safe_ours}", "Less than fp32 weights alone take with their step: between the two."),
    (PHI_GUIDE, "18GB total memory; keep at least 4GB free", "{usable.m3-18gb} for the GPU by the system's default limit",
     "The default limit keeps a little more for the system than the guide asks."),
)  # fmt: skip
