"""Settings that upstream's own classes construct, for benchmarks/recipe_fuzz.py: what `check` says of each."""

from __future__ import annotations

import collections
import json
import os
import random
import re
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def classes() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Section -> (upstream's class, keywords that it needs on a machine without a GPU)."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, EarlyStoppingCallback, GenerationConfig, TrainingArguments
    from trl import SFTConfig

    cpu = {"use_cpu": True, "bf16": False, "output_dir": "out", "report_to": "none"}
    return {
        "TrainingArguments": (TrainingArguments, cpu),
        "SFTConfig": (SFTConfig, cpu),
        "LoraConfig": (LoraConfig, {}),
        "BitsAndBytesConfig": (BitsAndBytesConfig, {}),
        "GenerationConfig": (GenerationConfig, {}),
        "EarlyStoppingCallback": (EarlyStoppingCallback, {}),
    }


NUMBERS = (0, 1, 2, 3, 7, 8, 10, 16, 64, 100, 512, 1000)
REALS = (0.0, 1e-8, 1e-5, 3e-4, 0.01, 0.05, 0.1, 0.5, 0.9, 0.999, 1.0, 2.0, 10.0)


def draw_settings(rng: random.Random, section: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Some keys of a section with values of the types that upstream declares."""
    chosen = rng.sample(sorted(fields), min(len(fields), rng.choice((1, 1, 2, 3))))
    return {key: value for key in chosen if (value := _draw_value(rng, fields[key])) is not None}


def _draw_value(rng: random.Random, field: Any) -> Any:
    kinds = [kind for kind in field.kinds if kind in ("bool", "int", "float", "str")]
    if field.choices and "str" in field.kinds:
        return rng.choice(sorted(map(str, field.choices)))
    if not kinds:
        return None
    kind = rng.choice(kinds)
    if kind == "bool":
        return rng.random() < 0.5
    if kind == "int":
        return rng.choice(NUMBERS)
    if kind == "float":
        return rng.choice(REALS)
    return None  # texts without choices are names and paths: any is taken


def recipe_of(section: str, values: dict[str, Any], keywords: dict[str, Any]) -> str:
    """A recipe around one section, as YAML (which reads JSON)."""
    trainer = section if section in ("TrainingArguments", "SFTConfig") else "TrainingArguments"
    task = "chat" if section == "SFTConfig" else "causal-lm"
    sections: dict[str, Any] = {
        "task": task,
        "model": {"pretrained_model_name_or_path": "org/model"},
        "dataset": {"path": "org/rows"},
        trainer: {"output_dir": "out", "use_cpu": True},
    }
    if section == "BitsAndBytesConfig":
        sections["LoraConfig"] = {}
    if section == "EarlyStoppingCallback":
        sections[trainer] |= {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    if section == "GenerationConfig":
        sections["sample_prompts"] = ["Once"]
    sections[section] = {
        **sections.get(section, {}),
        **{k: v for k, v in keywords.items() if k in sections.get(section, {})},
        **values,
    }
    return json.dumps(sections)


def run_settings(seed: int, count: int) -> dict[str, Any]:
    """`count` settings that upstream constructs: how many of each class, and each refusal with its reason."""
    import contextlib
    import io
    import warnings

    from hf_recipes.commands.check import check
    from hf_recipes.recipe.schema import installed

    rng = random.Random(seed)
    built, refused = collections.Counter[str](), []
    drawn = 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        every = classes()
        names = [
            *["TrainingArguments", "SFTConfig"] * 4,
            *["LoraConfig"] * 2,
            "BitsAndBytesConfig",
            "GenerationConfig",
            "EarlyStoppingCallback",
        ]
        while sum(built.values()) < count:
            drawn += 1
            section = rng.choice(names)
            cls, keywords = every[section]
            fields = installed.fields(section)
            values = draw_settings(rng, section, fields)
            if not values:
                continue
            try:
                cls(**{**keywords, **values})
            except Exception:  # upstream refuses it, in whatever way: not what is counted
                continue
            built[section] += 1
            Path("setting.yaml").write_text(recipe_of(section, values, keywords), encoding="utf-8")
            lines, errors = check("setting.yaml")
            if errors:
                why = [line.removeprefix("error: setting.yaml:1: ").removeprefix("error: ") for line in lines[:-1]]
                refused.append({"section": section, "values": values, "why": why})
        os.chdir(ROOT)
    return {"drawn": drawn, "built": dict(built), "refused": refused}


# Beginnings and ends of messages -> why check refuses what upstream constructs.
REASONS = (
    (r"it must be (at least|above|at most)|no token to predict", "out of the range in which training works"),
    (r"belongs into the accelerate file", "how a run is spread over GPUs is given to `accelerate launch`"),
    (r"needs? |takes (its|no)|wants ", "needs another key, and fails or has no effect without it"),
    (r"is refused: code from the Hub", "no code of the Hub is run"),
    (r"contradicts|freezes the adapter|ignores max_length|is one step", "means something else than it looks like"),
    (r"metrics|lists of batches", "the package's own evaluation needs the complete set"),
    (r"auto_find_batch_size", "changes the effective batch and restarts the schedule"),
    (r"saves nothing|has no effect|nothing|never", "has no effect, or saves nothing"),
)


def reason_of(message: str) -> str:
    """Why a setting is refused, in one phrase; "" if no row of REASONS knows it."""
    return next((reason for pattern, reason in REASONS if re.search(pattern, message)), "")


def describe_settings(found: dict[str, Any]) -> dict[str, Any]:
    """Counts, and the refusals by their reason with one example each."""
    reasons: dict[str, dict[str, Any]] = {}
    for one in found["refused"]:
        for why in one["why"]:
            key = _reason(why)
            reasons.setdefault(key, {"count": 0, "example": {one["section"]: one["values"]}})["count"] += 1
    built = sum(found["built"].values())
    return {
        "built": found["built"],
        "count": built,
        "accepted": built - len(found["refused"]),
        "refused": len(found["refused"]),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1]["count"])),
    }


def _reason(line: str) -> str:
    """A message without its numbers, so that equal reasons are counted as one."""
    return re.sub(r"(?<![\w.])-?\d[\d.e+-]*", "N", line)
