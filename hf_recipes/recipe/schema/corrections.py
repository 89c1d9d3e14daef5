"""Where upstream's sources say less than the truth: wrong annotations, choices named elsewhere, late ranges.

Rows of SFTConfig are looked up before those of TrainingArguments, whose fields it has.
tests/recipe/schema/test_schema.py holds every row to the installed classes: a row whose field is gone fails there, not
in a user's run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_recipes.recipe.schema.fields import Limits

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_MAPPING = {"kinds": ("dict",)}  # also annotated `str`: JSON text, for upstream's command line; YAML has mappings
_COUNT = Limits(least=1)
_NONE_NEGATIVE = Limits(least=0)
_POSITIVE = Limits(above=0)
_SHARE = Limits(least=0, below=1)
_PROBABILITY = Limits(least=0, most=1)
_STEPS = Limits(above=0, whole_above_one=True)

# section -> field -> attributes of Field that are put right
CORRECTIONS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "TrainingArguments": {
        "resume_from_checkpoint": {"kinds": ("bool", "str")},  # annotated str | None; Trainer.train takes True too
        "fsdp": {"kinds": ("bool", "str", "list")},  # annotated str | None; True is the only form that stays (TA:2888)
        "lr_scheduler_kwargs": _MAPPING,
        "gradient_checkpointing_kwargs": _MAPPING,
        "activation_checkpointing_kwargs": _MAPPING,
        "include_num_input_tokens_seen": {"choices": ("all", "non_padding", "no")},  # named in the help only
        "log_level": {"choices": _LEVELS},  # the metadata holds trainer_log_levels.keys(), no literal
        "log_level_replica": {"choices": _LEVELS},
        "debug": {  # "" is its default; several names stand in one string, with spaces
            "choices": ("underflow_overflow", "tpu_metrics_debug"),
            "open_choices": r"((underflow_overflow|tpu_metrics_debug)( |$))*",
        },
        "include_for_metrics": {"choices": ("inputs", "loss")},  # named in the help only
    },
    "SFTConfig": {
        "model_init_kwargs": _MAPPING,
        "dataset_kwargs": _MAPPING,
        "pad_to_multiple_of": {"choices": ("auto",)},
    },
    "LoraConfig": {
        "r": {"kinds": ("int",)},
        "lora_alpha": {"kinds": ("int", "float")},  # annotated int; it only divides r
    },
    "BitsAndBytesConfig": {  # bare signature; the choices stand in its __init__ and in bitsandbytes
        "llm_int8_skip_modules": {"items": ("str",)},
        "bnb_4bit_compute_dtype": {"kinds": ("str",), "choices": ("float32", "float16", "bfloat16")},
        "bnb_4bit_quant_type": {"choices": ("fp4", "nf4")},
        "bnb_4bit_quant_storage": {
            "kinds": ("str",),
            "choices": ("float16", "float32", "int8", "uint8", "float64", "bfloat16"),
        },
    },
    "GenerationConfig": {
        "early_stopping": {"choices": ("never",)},
        "exponential_decay_length_penalty": {"kinds": ("list",), "items": ("int", "float")},
        "sequence_bias": {"kinds": ("list", "dict")},  # a list of [ids, bias], as its keys are tuples
    },
    "model": {
        "dtype": {"kinds": ("str",), "choices": ("auto", *_DTYPES)},
        "attn_implementation": {"open_choices": r"(paged\|)?[\w.-]+/[\w.-]+(@[^:]+)?(:\w+)?"},  # a kernel of the Hub
        "device_map": {"kinds": ("str", "int", "dict")},
    },
    "tokenizer": {
        "padding_side": {"kinds": ("str",), "choices": ("right", "left")},
        "truncation_side": {"kinds": ("str",), "choices": ("right", "left")},
        "model_max_length": {"kinds": ("int",)},
        "chat_template": {"kinds": ("str", "dict", "list")},
    },
    "dataset": {
        "data_files": {"kinds": ("str", "list", "dict")},
        "split": {"kinds": ("str", "list", "dict")},
        "revision": {"kinds": ("str",)},
        "download_mode": {
            "kinds": ("str",),
            "choices": ("reuse_dataset_if_exists", "reuse_cache_if_exists", "force_redownload"),
        },
        "verification_mode": {"kinds": ("str",), "choices": ("all_checks", "basic_checks", "no_checks")},
        "features": {"kinds": ("dict",)},
        "sample_by": {"choices": ("line", "paragraph", "document")},  # of the text builder
    },
}

# section -> field -> the range in which a value means something
LIMITS: Mapping[str, Mapping[str, Limits]] = {
    "TrainingArguments": {
        "per_device_train_batch_size": _COUNT,
        "per_device_eval_batch_size": _COUNT,
        "gradient_accumulation_steps": _COUNT,
        "eval_accumulation_steps": _COUNT,
        "num_train_epochs": _POSITIVE,
        "max_steps": Limits(least=1, also=(-1,)),
        "learning_rate": _NONE_NEGATIVE,
        "warmup_steps": _NONE_NEGATIVE,
        "weight_decay": _NONE_NEGATIVE,
        "adam_beta1": _SHARE,
        "adam_beta2": _SHARE,
        "adam_epsilon": _NONE_NEGATIVE,
        "max_grad_norm": _NONE_NEGATIVE,
        "label_smoothing_factor": _SHARE,
        "neftune_noise_alpha": _NONE_NEGATIVE,
        "logging_steps": _STEPS,
        "eval_steps": _STEPS,
        "save_steps": _STEPS,
        "eval_delay": _NONE_NEGATIVE,
        "save_total_limit": _COUNT,
        "seed": Limits(least=0, most=2**32 - 1),
        "data_seed": Limits(least=0, most=2**32 - 1),
        "dataloader_num_workers": _NONE_NEGATIVE,
        "dataloader_prefetch_factor": _COUNT,
        "torch_empty_cache_steps": _COUNT,
        "ddp_timeout": _COUNT,
        "ddp_bucket_cap_mb": _COUNT,
    },
    "SFTConfig": {"max_length": _COUNT, "dataset_num_proc": _COUNT, "pad_to_multiple_of": _COUNT},
    "LoraConfig": {"r": _COUNT, "lora_alpha": _POSITIVE, "lora_dropout": _SHARE, "qalora_group_size": _COUNT},
    "BitsAndBytesConfig": {"llm_int8_threshold": _NONE_NEGATIVE},
    "EarlyStoppingCallback": {"early_stopping_patience": _COUNT, "early_stopping_threshold": _NONE_NEGATIVE},
    "GenerationConfig": {
        "max_new_tokens": _COUNT,
        "max_length": _COUNT,
        "min_new_tokens": _NONE_NEGATIVE,
        "num_beams": _COUNT,
        "temperature": _NONE_NEGATIVE,
        "top_k": _NONE_NEGATIVE,
        "top_p": _PROBABILITY,
        "min_p": _PROBABILITY,
        "repetition_penalty": _POSITIVE,
        "num_return_sequences": _COUNT,
    },
    "BpeTrainer": {
        "vocab_size": _COUNT,
        "min_frequency": _NONE_NEGATIVE,
        "limit_alphabet": _COUNT,
        "max_token_length": _COUNT,
    },
    "config": {  # of any model: fields that configs share, by their names and their aliases
        **dict.fromkeys(("vocab_size", "hidden_size", "n_embd", "intermediate_size", "head_dim", "num_labels"), _COUNT),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "max_position_embeddings", "n_positions"), _COUNT),
        **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads"), _COUNT),
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout"), _PROBABILITY),
        **dict.fromkeys(("attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"), _PROBABILITY),
    },
    "tokenizer": {"model_max_length": _COUNT},
    "dataset": {
        "num_proc": _COUNT,
        "seed": Limits(least=0, most=2**32 - 1),
        "chunksize": _COUNT,
        "test_size": _STEPS,  # a share of the rows below 1, a count of rows from 1 on
    },
}

# Arguments of upstream that a file cannot hold (tensors, callables, process groups) or that belong elsewhere.
NOT_IN_A_FILE: Mapping[str, Mapping[str, str]] = {
    "model": {
        "state_dict": "",
        "tqdm_class": "",
        "output_loading_info": "",
        "device_mesh": "",
        "distributed_config": "",
        "generation_config": "write a section GenerationConfig",
        "quantization_config": "write a section BitsAndBytesConfig",
        "adapter_kwargs": "",
        "torch_dtype": "",  # renamed: recipe/upgrade.py translates it
        "tp_plan": "",
        "tp_size": "",
    },
    "tokenizer": {"config": "", "name_or_path": "", "files_loaded": "", "processor_class": "", "max_len": ""},
    "dataset": {
        "download_config": "",
        "load_from_cache_file": "",
        "save_infos": "",
    },
}

# Keywords of tokenizer classes that AutoTokenizer.from_pretrained hands on, and that no signature of the base names.
TOKENIZER_KEYS: Mapping[str, tuple[str, ...]] = {
    "add_prefix_space": ("bool",),
    "add_bos_token": ("bool",),
    "add_eos_token": ("bool",),
    "do_lower_case": ("bool",),
    "strip_accents": ("bool",),
    "use_fast": ("bool",),
    "extra_special_tokens": ("list", "dict"),
    "legacy": ("bool",),
}

# Keys that every config takes beside its fields: older spellings that transformers 5 still reads.
CONFIG_KEYS: Mapping[str, tuple[str, ...]] = {
    "num_labels": ("int",),
    "model_type": ("str",),
    "rope_theta": ("float",),
    "rope_scaling": ("dict",),
    "attn_implementation": ("str",),
}
