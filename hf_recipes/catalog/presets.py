"""Shapes of models as data: presets to start from scratch, and published shapes that `check` and `plan` need offline.

Nothing here imports torch or transformers. Every `config` is the keyword arguments of the upstream config class that
`model_type` names, so `AutoConfig.for_model(**config)` builds it. The vocabulary of a preset follows the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_recipes.catalog.model_shapes import SOURCE, published_shapes

GPT2_VOCAB_SIZE = 50257  # openai-community/gpt2's tokenizer: 256 bytes + 50,000 merges + <|endoftext|>


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One model family's shape. `parameters` counts each tied matrix once, for the class that `auto_class` names."""

    config: Mapping[str, Any]  # upstream's config arguments, model_type and every field that has a shape
    parameters: int
    auto_class: str = "AutoModelForCausalLM"
    source: str
    note: str = ""


def _gpt(n_embd: int, n_head: int, n_layer: int, n_inner: int, n_positions: int) -> dict[str, Any]:
    """GPT-2's architecture with the guides' dropout of 0.1; the output layer is tied to the embedding."""
    return {
        "model_type": "gpt2",
        "vocab_size": GPT2_VOCAB_SIZE,
        "n_positions": n_positions,
        "n_embd": n_embd,
        "n_layer": n_layer,
        "n_head": n_head,
        "n_inner": n_inner,
        "activation_function": "gelu_new",
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "tie_word_embeddings": True,
    }


def _bert(hidden_size: int, layers: int, heads: int, intermediate_size: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }


def _llama3(
    hidden_size: int, layers: int, heads: int, intermediate_size: int, factor: float, tied: bool
) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": hidden_size // heads,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": tied,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }


_GEMMA_3_270M: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}

_SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}

_PHI_2: dict[str, Any] = {
    "model_type": "phi",
    "vocab_size": 51200,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 2048,
    "resid_pdrop": 0.1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
    "tie_word_embeddings": False,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}

_DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
}

_GUIDE = "the guide on GPT presets for WikiText"
_GUIDE_NOTE = "n_positions is the guide's max_seq_len, n_inner its d_ff; GPT-2's vocabulary unless a tokenizer is given"

PRESETS: Mapping[str, Preset] = {
    "gpt-tiny": Preset(
        config=_gpt(n_embd=256, n_head=4, n_layer=4, n_inner=1024, n_positions=256),
        parameters=16_090_880,
        source=f"{_GUIDE}, preset tiny (~16M)",
        note=_GUIDE_NOTE,
    ),
    "gpt-small": Preset(
        config=_gpt(n_embd=512, n_head=8, n_layer=6, n_inner=2048, n_positions=512),
        parameters=44_909_056,
        source=f"{_GUIDE}, preset small, option A (~45-50M)",
        note=_GUIDE_NOTE,
    ),
    "gpt-medium": Preset(
        config=_gpt(n_embd=768, n_head=12, n_layer=12, n_inner=3072, n_positions=1024),
        parameters=124_439_808,
        source=f"{_GUIDE}, preset medium, option C, the shape of openai-community/gpt2",
        note="the guide says ~117M, the paper's figure; this shape has 124.4M, as GPT-2 small itself has",
    ),
    "gpt-300m": Preset(
        config=_gpt(n_embd=1024, n_head=16, n_layer=24, n_inner=4096, n_positions=2048),
        parameters=355_871_744,
        source="the guide for 4 x A100: 24 blocks, 2048 tokens, tied embedding of 51,463,168 = 50257 x 1024",
        note="355.9M, not the guide's 300,124,416: no 24 equal blocks have its 197,198,080 parameters (24 does not "
        "divide it), and its total counts the tied matrix twice; 24 GPT-2 blocks of width 1024 have 302,309,376",
    ),
    "gemma-270m": Preset(
        config=_GEMMA_3_270M,
        parameters=268_098_176,
        source="config.json of google/gemma-3-270m",
        note="the published shape; the guide's 341.8M parameters belong to no published Gemma and are only audited",
    ),
}

_BERT_BASE = Preset(
    config=_bert(hidden_size=768, layers=12, heads=12, intermediate_size=3072),
    parameters=109_482_240,
    auto_class="AutoModel",
    source="config.json of google-bert/bert-base-uncased",
)
_BERT_LARGE = Preset(
    config=_bert(hidden_size=1024, layers=24, heads=16, intermediate_size=4096),
    parameters=335_141_888,
    auto_class="AutoModel",
    source="config.json of google-bert/bert-large-uncased",
)
_DISTILBERT_BASE = Preset(
    config=_DISTILBERT,
    parameters=66_362_880,
    auto_class="AutoModel",
    source="config.json of distilbert/distilbert-base-uncased",
)
_GPT2 = Preset(
    config=_gpt(n_embd=768, n_head=12, n_layer=12, n_inner=3072, n_positions=1024),
    parameters=124_439_808,
    source="config.json of openai-community/gpt2",
)
_GEMMA = Preset(config=_GEMMA_3_270M, parameters=268_098_176, source="config.json of google/gemma-3-270m")

_LLAMA_1B = Preset(
    config=_llama3(hidden_size=2048, layers=16, heads=32, intermediate_size=8192, factor=32.0, tied=True),
    parameters=1_235_814_400,
    source="config.json of meta-llama/Llama-3.2-1B",
)
_LLAMA_3B = Preset(
    config=_llama3(hidden_size=3072, layers=28, heads=24, intermediate_size=8192, factor=32.0, tied=True),
    parameters=3_212_749_824,
    source="config.json of meta-llama/Llama-3.2-3B",
)
_LLAMA_8B = Preset(
    config=_llama3(hidden_size=4096, layers=32, heads=32, intermediate_size=14336, factor=8.0, tied=False),
    parameters=8_030_261_248,
    source="config.json of meta-llama/Llama-3.1-8B",
)


def _more() -> dict[str, Preset]:
    """The rows of catalog/model_shapes.json, one Preset for all names of a model."""
    found: dict[str, Preset] = {}
    for shape in published_shapes():
        one = Preset(config=shape.config, parameters=shape.parameters, auto_class=shape.counted_as, source=SOURCE)
        found |= dict.fromkeys(shape.names, one)
    return found


# Published shapes of the models that the recipes and the guides name, so that a file can be checked offline.
SHAPES: Mapping[str, Preset] = {
    "bert-base-uncased": _BERT_BASE,
    "google-bert/bert-base-uncased": _BERT_BASE,
    "bert-large-uncased": _BERT_LARGE,
    "google-bert/bert-large-uncased": _BERT_LARGE,
    "distilbert-base-uncased": _DISTILBERT_BASE,
    "distilbert/distilbert-base-uncased": _DISTILBERT_BASE,
    "sentence-transformers/all-MiniLM-L6-v2": Preset(
        config=_bert(hidden_size=384, layers=6, heads=12, intermediate_size=1536),
        parameters=22_713_216,
        auto_class="AutoModel",
        source="config.json of sentence-transformers/all-MiniLM-L6-v2",
    ),
    "gpt2": _GPT2,
    "openai-community/gpt2": _GPT2,
    "microsoft/phi-2": Preset(config=_PHI_2, parameters=2_779_683_840, source="config.json of microsoft/phi-2"),
    "google/gemma-3-270m": _GEMMA,
    "google/gemma-3-270m-it": _GEMMA,
    "HuggingFaceTB/SmolLM2-135M": Preset(
        config={**_SMOLLM2_135M, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None},
        parameters=134_515_008,
        source="config.json of HuggingFaceTB/SmolLM2-135M",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Preset(
        config=_SMOLLM2_135M, parameters=134_515_008, source="config.json of HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
    "meta-llama/Llama-3.2-1B": _LLAMA_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_1B,
    "meta-llama/Llama-3.2-3B": _LLAMA_3B,
    "meta-llama/Llama-3.2-3B-Instruct": _LLAMA_3B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    **_more(),
}
