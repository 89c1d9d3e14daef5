"""More published shapes for `check` and `plan` offline: data only, joined into presets.SHAPES. Light.

Each is upstream's config words as the model's own config.json states them, written from memory of those files, since no
Hub is reachable here. What holds them is the published number of parameters, which tests/catalog/test_presets.py
counts on meta; it does not hold what has no parameters (heads, positions, windows).
"""

from __future__ import annotations

from typing import Any

# Words of a published config.json that upstream's modeling file reads though its config class has no such field.
READ_BY_GETATTR = {"deberta-v2": {"position_buckets", "norm_rel_ebd", "share_att_key"}}

# What is published with a model's weights, its tied matrices once.
CONFIG = "config.json of the model; its parameters as published with its weights"


def _llama(
    vocab: int, hidden: int, inner: int, layers: int, heads: int, kv: int, positions: int, theta: float, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": tied,
    }


def _qwen(
    kind: str, vocab: int, hidden: int, inner: int, layers: int, heads: int, kv: int, positions: int, tied: bool
) -> dict[str, Any]:
    found = {**_llama(vocab, hidden, inner, layers, heads, kv, positions, 1e6, tied), "model_type": kind}
    found["rms_norm_eps"] = 1e-6
    return {**found, "head_dim": 128} if kind == "qwen3" else found


def _mistral(vocab: int, theta: float, window: int | None) -> dict[str, Any]:
    found = _llama(vocab, 4096, 14336, 32, 32, 8, 32768, theta, False)
    return {**found, "model_type": "mistral", "sliding_window": window}


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "tie_word_embeddings": True,
    }


def _opt(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
    }


def _pythia(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    }


def _bert(kind: str, vocab: int, width: int, layers: int, heads: int, positions: int, types: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
    }


_GEMMA_3_1B: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
    "tie_word_embeddings": True,
}
_GEMMA_2_2B: dict[str, Any] = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_PHI_3_MINI: dict[str, Any] = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
}
_DEBERTA_V3_BASE: dict[str, Any] = {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_MODERNBERT_BASE: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
}
_ELECTRA_BASE = {**_bert("electra", 30522, 768, 12, 12, 512, 2), "embedding_size": 768}

# names -> (config, parameters, class that they are counted for)
LM, BODY = "AutoModelForCausalLM", "AutoModel"
MORE: dict[tuple[str, ...], tuple[dict[str, Any], int, str]] = {
    ("google/gemma-3-1b-pt", "google/gemma-3-1b-it"): (_GEMMA_3_1B, 999_885_952, LM),
    ("google/gemma-2-2b", "google/gemma-2-2b-it"): (_GEMMA_2_2B, 2_614_341_888, LM),
    ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"): (
        _llama(32000, 4096, 11008, 32, 32, 32, 4096, 1e4, False), 6_738_415_616, LM),
    ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"): (
        _llama(128256, 4096, 14336, 32, 32, 8, 8192, 5e5, False), 8_030_261_248, LM),
    ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"): (
        _mistral(32000, 1e4, 4096), 7_241_732_096, LM),
    ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"): (
        _mistral(32768, 1e6, None), 7_248_023_552, LM),
    ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"): (
        _qwen("qwen2", 151936, 896, 4864, 24, 14, 2, 32768, True), 494_032_768, LM),
    ("Qwen/Qwen2.5-1.5B-Instruct",): (
        _qwen("qwen2", 151936, 1536, 8960, 28, 12, 2, 32768, True), 1_543_714_304, LM),
    ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"): (
        _qwen("qwen2", 151936, 2048, 11008, 36, 16, 2, 32768, True), 3_085_938_688, LM),
    ("Qwen/Qwen2.5-7B-Instruct",): (
        _qwen("qwen2", 152064, 3584, 18944, 28, 28, 4, 32768, False), 7_615_616_512, LM),
    ("Qwen/Qwen2.5-1.5B",): (_qwen("qwen2", 151936, 1536, 8960, 28, 12, 2, 131072, True), 1_543_714_304, LM),
    ("Qwen/Qwen2.5-7B",): (_qwen("qwen2", 152064, 3584, 18944, 28, 28, 4, 131072, False), 7_615_616_512, LM),
    ("Qwen/Qwen3-0.6B",): (
        _qwen("qwen3", 151936, 1024, 3072, 28, 16, 8, 40960, True), 596_049_920, LM),
    ("Qwen/Qwen3-1.7B",): (
        _qwen("qwen3", 151936, 2048, 6144, 28, 16, 8, 40960, True), 1_720_574_976, LM),
    ("Qwen/Qwen3-4B",): (
        _qwen("qwen3", 151936, 2560, 9728, 36, 32, 8, 40960, True), 4_022_468_096, LM),
    ("Qwen/Qwen3-8B",): (
        _qwen("qwen3", 151936, 4096, 12288, 36, 32, 8, 40960, False), 8_190_735_360, LM),
    ("microsoft/Phi-3-mini-4k-instruct",): (_PHI_3_MINI, 3_821_079_552, LM),
    ("HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"): (
        _llama(49152, 960, 2560, 32, 15, 5, 8192, 1e5, True), 361_821_120, LM),
    ("HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"): (
        _llama(49152, 2048, 8192, 24, 32, 32, 8192, 13e4, True), 1_711_376_384, LM),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0",): (
        _llama(32000, 2048, 5632, 22, 32, 4, 2048, 1e4, False), 1_100_048_384, LM),
    ("distilgpt2", "distilbert/distilgpt2"): (_gpt2(768, 6, 12), 81_912_576, LM),
    ("gpt2-medium", "openai-community/gpt2-medium"): (_gpt2(1024, 24, 16), 354_823_168, LM),
    ("gpt2-large", "openai-community/gpt2-large"): (_gpt2(1280, 36, 20), 774_030_080, LM),
    ("gpt2-xl", "openai-community/gpt2-xl"): (_gpt2(1600, 48, 25), 1_557_611_200, LM),
    ("facebook/opt-125m",): (_opt(768, 12, 12), 125_239_296, LM),
    ("facebook/opt-1.3b",): (_opt(2048, 24, 32), 1_315_758_080, LM),
    ("EleutherAI/pythia-160m",): (_pythia(768, 12, 12), 162_322_944, LM),
    ("EleutherAI/pythia-1.4b",): (_pythia(2048, 24, 16), 1_414_647_808, LM),
    ("roberta-base", "FacebookAI/roberta-base"): (_bert("roberta", 50265, 768, 12, 12, 514, 1), 124_645_632, BODY),
    ("roberta-large", "FacebookAI/roberta-large"): (_bert("roberta", 50265, 1024, 24, 16, 514, 1), 355_359_744, BODY),
    ("distilroberta-base", "distilbert/distilroberta-base"): (
        _bert("roberta", 50265, 768, 6, 12, 514, 1), 82_118_400, BODY),
    ("xlm-roberta-base", "FacebookAI/xlm-roberta-base"): (
        _bert("xlm-roberta", 250002, 768, 12, 12, 514, 1), 278_043_648, BODY),
    ("bert-base-multilingual-cased", "google-bert/bert-base-multilingual-cased"): (
        _bert("bert", 119547, 768, 12, 12, 512, 2), 177_853_440, BODY),
    ("google/electra-base-discriminator",): (_ELECTRA_BASE, 108_891_648, BODY),
    ("microsoft/deberta-v3-base",): (_DEBERTA_V3_BASE, 183_831_552, BODY),
    ("answerdotai/ModernBERT-base",): (_MODERNBERT_BASE, 149_014_272, BODY),
}  # fmt: skip
