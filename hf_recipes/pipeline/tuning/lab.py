"""`hf-recipes lab --speed`: the pairs of `tune` on the shapes of known models, without files or the Hub.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_recipes.common.environment import package_versions
from hf_recipes.common.files import put
from hf_recipes.common.run_lock import make_folder
from hf_recipes.common.typed_json import to_json
from hf_recipes.errors import PlanError, RecipeError
from hf_recipes.pipeline.tuning.candidates import Candidate, Here, list_candidates
from hf_recipes.pipeline.tuning.search import LEAST_STEPS, Base, search
from hf_recipes.pipeline.tuning.worker import FailedTrialError, Worker
from hf_recipes.recipe.recipe import Recipe

FIRST = 180.0  # seconds for the first steps of a shape
FEWEST = 20.0  # seconds: a shape is not begun with less
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
FOUR_BIT = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
TINY = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 500, "max_position_embeddings": 64}  # fmt: skip
# What is tried first: the time may not suffice for all of it.
FIRST_TRIED = (
    "packing",
    "activation_checkpointing",
    "gradient_checkpointing",
    "use_liger_kernel",
    "attn_implementation",
)


def list_shapes(*, cpu: bool) -> dict[str, Recipe]:
    """Name -> recipe. On a CPU tiny ones, which show that the command works and nothing else."""
    if cpu:
        return {
            "tiny, LoRA": _recipe({"config": TINY, "dtype": "float32"}, 32, {}, use_cpu=True, bf16=False),
            "tiny, all weights": _recipe({"config": TINY, "dtype": "float32"}, 32, None, use_cpu=True, bf16=False),
        }
    shapes = {}
    for name, rows in (("Llama-3.2-1B", 8), ("Llama-3.1-8B", 4)):
        model = {"pretrained_model_name_or_path": f"meta-llama/{name}", "dtype": "bfloat16"}
        shapes[f"{name}, LoRA"] = _recipe(model, 1024, {}, rows=rows, bf16=True)
        shapes[f"{name}, QLoRA"] = _recipe(model, 1024, {"BitsAndBytesConfig": FOUR_BIT}, rows=rows, bf16=True)
    return shapes


def _recipe(
    model: Mapping[str, Any], length: int, adapter: Mapping[str, Any] | None, *, rows: int = 4, **arguments: Any
) -> Recipe:
    """`adapter`: sections beside LoraConfig; None trains all weights."""
    sections: dict[str, Any] = {
        "task": "causal-lm",
        "model": dict(model),
        "dataset": {"path": "generated"},
        "SFTConfig": {
            "output_dir": "runs/lab", "max_length": length, "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": 2, "learning_rate": 1e-4, "activation_checkpointing": True, **arguments,
        },
    }  # fmt: skip
    if adapter is not None:
        sections |= {"LoraConfig": LORA, **adapter}
    return Recipe(path="lab", sections=sections, locations={})


def run_speed(*, output: str, minutes: float, cpu: bool, dry: bool, say: Callable[[str], None]) -> Path | None:
    """Tries the settings on each shape for an equal part of `minutes`, and writes one record. Returns its path; None
    for a dry run. Raises PlanError where there is no GPU and not `cpu`."""
    shapes, began = list_shapes(cpu=cpu), time.monotonic()
    end = began + 60 * minutes * 0.95
    if dry:
        here = Here(kind="cuda", capability=(9, 0), attention="sdpa", packages=("flash_attn", "liger_kernel", "triton"))
        for name, recipe in shapes.items():
            say(f"{name}: about {minutes / len(shapes):.1f} minutes")
            for candidate in order_candidates(list_candidates(recipe, here, every=True)):
                say(f"  {candidate}")
        return None
    make_folder(Path(output), "argument '--output'")
    worker, found = Worker(generated=True), {}
    try:
        facts = worker.facts(next(iter(shapes.values())), FIRST)
        if facts["kind"] != "cuda" and not cpu:
            what, fix = "there is no CUDA GPU on this machine", "measure on a machine that has one, or add --cpu"
            raise PlanError.at("hf-recipes lab", what, fix)
        for number, (name, recipe) in enumerate(shapes.items()):
            left = end - time.monotonic()
            if left < FEWEST and number:
                say(f"{name}: not tried, {max(0, left):.0f} s are left")
                continue
            found[name] = _measure(worker, name, recipe, facts, left / (len(shapes) - number), left, say)
            worker.close()  # the next shape begins with an empty GPU
    finally:
        worker.close()
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": facts,
        "versions": package_versions(),
        "minutes": (time.monotonic() - began) / 60,
        "shapes": found,
    }
    path = Path(output) / f"{re.sub(r'[^a-z0-9]+', '-', str(facts['name']).lower()).strip('-')}--speed.json"
    put(path, json.dumps(record, indent=1) + "\n")
    say(f"written: {path}")
    return path


def order_candidates(candidates: list[Candidate]) -> list[Candidate]:
    """What brings most comes first."""
    names = [{key.rpartition(".")[2] for key in one.values} for one in candidates]
    ranks = [next((i for i, name in enumerate(FIRST_TRIED) if name in some), len(FIRST_TRIED)) for some in names]
    return [one for _, one in sorted(zip(ranks, candidates, strict=True), key=lambda pair: pair[0])]


def _measure(
    worker: Worker, name: str, recipe: Recipe, facts: Mapping[str, Any], share: float, left: float,
    say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """One shape, in about `share` seconds. What cannot run is an answer, too: an 8B model needs a large GPU."""
    began = time.monotonic()
    try:
        checked = worker.run(recipe, 0, check=True, seconds=max(FEWEST, left))
        base = Base(checked=checked, timed=worker.run(recipe, LEAST_STEPS, check=False, seconds=max(FEWEST, left)))
    except (FailedTrialError, RecipeError) as problem:
        say(f"{name}: {problem}")
        return {"failed": str(problem)}
    used = f", MFU {base.timed.mfu:.1%}" if base.timed.mfu is not None else ""
    say(f"{name}: {base.timed.step_seconds:.3g} s a step, {base.timed.tokens_per_second:,.0f} tokens a second{used}")
    capability = tuple(facts["capability"]) if facts["capability"] else None
    here = Here(
        kind=facts["kind"],
        capability=capability,
        attention=base.timed.attention,
        packages=facts["packages"],
        kernels=facts["kernels"],
    )
    candidates = order_candidates(list_candidates(recipe, here, every=True))
    tuned = search(recipe, candidates, worker, base=base, seconds=max(0.0, share - (time.monotonic() - began)), say=say)
    last = next((one.after for one in reversed(tuned.tried) if one.verdict == "kept" and one.after is not None), None)
    say(f"  {name}: together {tuned.times:.2f} times as fast{f', MFU {last.mfu:.1%}' if last and last.mfu else ''}")
    return {"times": tuned.times, "mfu": base.timed.mfu, "mfu_after": last.mfu if last else None, **to_json(tuned)}
