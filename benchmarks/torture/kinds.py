"""The runs that are interrupted: small models with random weights, 21 rows, a dozen steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STEPS, SAVES = 15, 2
COMMON = {
    "output_dir": "out",
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 3,
    "save_steps": SAVES,
    "save_total_limit": 2,
    "disable_tqdm": True,
}
BEST = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": "all-linear"}
TWO = "Trainer: 2 processes (gloo)"  # killed both at once, or one of them alone
CLOCK = "Trainer: the clock is set back or forward between sessions"
RAISED = "Trainer: max_steps raised after the end"
FIRST_STEPS = 9  # of RAISED, before it is raised to STEPS

RUNS: dict[str, dict[str, Any]] = {
    "Trainer: dropout, evaluation, best model": {
        "task": "text-classification",
        "TrainingArguments": {**COMMON, **BEST},
    },
    "Trainer: early stopping": {
        "task": "text-classification",
        "EarlyStoppingCallback": {"early_stopping_patience": 3},
        "TrainingArguments": {**COMMON, **BEST, "max_steps": 30, "learning_rate": 0.02},
    },
    "Trainer: learning rate falls on a plateau": {
        "task": "text-classification",
        "TrainingArguments": {
            **COMMON,
            **BEST,
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0, "threshold": 0.05},
        },
    },
    "Trainer: 1.6 epochs, accumulation that does not divide, one checkpoint kept": {
        "task": "text-classification",
        "TrainingArguments": {
            **COMMON,
            "max_steps": -1,
            "num_train_epochs": 1.6,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "save_steps": 1,
            "save_total_limit": 1,
        },
    },
    "Trainer: length groups, 8-bit Adam": {
        "task": "text-classification",
        "TrainingArguments": {**COMMON, "train_sampling_strategy": "group_by_length", "optim": "adamw_bnb_8bit"},
    },
    "SFTTrainer: LoRA, packing": {
        "task": "chat",
        "LoraConfig": LORA,
        "SFTConfig": {**COMMON, "packing": True, "max_length": 32},
    },
    "SFTTrainer: persistent workers": {
        "task": "chat",
        "SFTConfig": {**COMMON, "dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    },
    CLOCK: {
        "task": "text-classification",
        "TrainingArguments": {**COMMON, **BEST, "dataloader_num_workers": 1},
    },
    RAISED: {
        "task": "text-classification",
        "resume_allow": ["recipe"],
        "TrainingArguments": {**COMMON, "lr_scheduler_type": "constant"},
    },
    TWO: {
        "task": "text-classification",
        "TrainingArguments": {**COMMON, "per_device_train_batch_size": 1, "use_cpu": True},
    },
}


def prepare(folder: Path, run: dict[str, Any]) -> None:
    """A small model with random weights, its tokenizer, 21 rows, and the recipe."""
    from tests.support.tiny_models import CHATML, TEXTS, bpe, save_bert, save_llama, wordpiece, write_rows

    texts = [" ".join(TEXTS[i % 4].split()[: 3 + i % 7]) for i in range(21)]
    if run["task"] == "chat":
        save_llama(folder / "model", bpe(chat=CHATML))
        turns = [[("user", text[:9]), ("assistant", text)] for text in texts]
        rows = [{"messages": [{"role": role, "content": text} for role, text in turn]} for turn in turns]
        words = {"attention_dropout": 0.1}
    else:
        save_bert(folder / "model", wordpiece(sorted({word for text in texts for word in text.split()})))
        rows = [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts)]
        words = {"hidden_dropout_prob": 0.1}
    write_rows(folder / "rows.jsonl", rows)
    files = {"train": "rows.jsonl", "validation": "rows.jsonl"}
    model = {"pretrained_model_name_or_path": "model", **words}
    words = {"disable_guards": ["overlap", "truncation", "end_token"], "dataset": {"path": "json", "data_files": files}}
    recipe = {**run, "model": model, **words}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
