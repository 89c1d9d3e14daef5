"""What was meant by a value that a key does not take: "off", mostly, which each key writes in its own way."""

from __future__ import annotations

from typing import Any

_NOTHING = ("none", "never", "off", "false", "disabled", "disable", "null", "0", "")
_OFF = {  # key -> how to turn it off; for 0, -1, false, and what means nothing in other tools
    "save_steps": "write save_strategy: 'no' to save nothing but the finished model",
    "eval_steps": "write eval_strategy: 'no' to evaluate at the end only",
    "logging_steps": "write logging_strategy: 'no'",
    "save_strategy": "write save_strategy: 'no'",
    "eval_strategy": "write eval_strategy: 'no'",
    "logging_strategy": "write logging_strategy: 'no'",
    "save_total_limit": "leave it out to keep every checkpoint, or write save_strategy: 'no' to keep none",
    "num_train_epochs": "write do_train: false to evaluate only",
    "max_steps": "leave it out to train num_train_epochs, or write do_train: false to evaluate only",
    "gradient_accumulation_steps": "write 1: a step of one batch",
    "max_grad_norm": "write 0, which does not clip",
    "warmup_steps": "write 0",
    "dataloader_num_workers": "write 0: rows are loaded by the training process",
    "max_length": "write max_length: null in SFTConfig to cut no row; dataset.max_length can be left out",
    "report_to": "write report_to: none",
    "r": "leave LoraConfig out to train every weight",
    "early_stopping_patience": "leave EarlyStoppingCallback out, or write 1",
    "test_size": "give a validation split, or leave it out for 0.1",
    "per_device_eval_batch_size": "leave it out for 8",
    "neftune_noise_alpha": "leave it out",
}
_AUTO = {  # key -> what "auto" would be
    "bf16": "leave it out: SFTConfig has it where the GPU can",
    "fp16": "leave it out",
    "tf32": "leave it out",
    "gradient_accumulation_steps": "write a number; `hf-recipes plan --search` finds the batch that fits",
    "per_device_train_batch_size": "write a number; `hf-recipes plan --search` finds the largest that fits",
    "learning_rate": "write a number; 2e-4 is usual for LoRA, 2e-5 for full fine-tuning",
}


def fix_of_value(key: str, value: Any) -> str:
    """How to write what was meant by `key: value`, which is not accepted as it stands; "" where nothing is known."""
    if isinstance(value, str) and value.lower() == "auto":
        return _AUTO.get(key, "")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    nothing = value is False or (number and value in (0, -1)) or (isinstance(value, str) and value.lower() in _NOTHING)
    return _OFF.get(key, "") if nothing else ""
