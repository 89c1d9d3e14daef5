"""What each of two real FSDP2 processes holds at its peak, beside plan's one rank: `python benchmarks/rank_peaks.py`

On a CPU, with gloo and torch's own `fully_shard`; three minutes. Writes results/rank_peaks.json; tables.py makes the
table of docs/methods/plan.md of it. gloo may hold a tensor of a collective until its thread has ended it, so that one
rank may show more than the other: the lower one counts.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/rank_peaks.json"
sys.path[:0] = [str(ROOT)]

from hf_recipes.plan.trace.trace import trace_here  # noqa: E402
from hf_recipes.recipe.recipe import Recipe  # noqa: E402
from tests.support.sharded_ranks import run_fsdp  # noqa: E402
from tests.support.tiny_recipes import BERT, GEMMA, GPT2, LLAMA, tiny  # noqa: E402

WIDE = {**LLAMA, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1000}
TIED = {**WIDE, "tie_word_embeddings": True}
LORA = {"LoraConfig": {"r": 4, "target_modules": "all-linear"}}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
QLORA = {**LORA, "BitsAndBytesConfig": NF4}
SHARED = {**LORA, "BitsAndBytesConfig": {**NF4, "bnb_4bit_quant_storage": "bfloat16"}}
HALF = {"model": {"dtype": "bfloat16"}, "bf16": True}
DOUBLE = {**LORA, "BitsAndBytesConfig": {**SHARED["BitsAndBytesConfig"], "bnb_4bit_use_double_quant": True}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama, full": (WIDE, {}),
    "Llama, tied embeddings": (TIED, {}),
    "Llama, bf16": (WIDE, {"bf16": True}),
    "Llama, bf16 weights": (WIDE, HALF),
    "Llama, checkpointing": (WIDE, {"gradient_checkpointing": True}),
    "Llama, accumulation": (WIDE, {"gradient_accumulation_steps": 2}),
    "Llama, foreach AdamW": (WIDE, {"optim": "adamw_torch"}),
    "Llama, LoRA": (WIDE, {"sections": LORA}),
    "Llama, LoRA, bf16 weights": (WIDE, {"sections": LORA, **HALF}),
    "Llama, QLoRA": (WIDE, {"sections": QLORA, "bf16": True}),
    "Llama, QLoRA, bf16 storage": (WIDE, {"sections": SHARED, **HALF}),
    "Llama, QLoRA, double quantisation": (WIDE, {"sections": DOUBLE, **HALF}),
    "Llama, SFTTrainer": (WIDE, {"sft": True}),
    "Llama, SFTTrainer, LoRA": (WIDE, {"sft": True, "sections": LORA}),
    "GPT-2": (GPT2, {}),
    "Gemma 3": (GEMMA, {}),
    "BERT, classifier": (BERT, {}),
}


def recipe_of(case: str) -> Recipe:
    config, arguments = CASES[case]
    task = "text-classification" if config is BERT else "causal-lm"
    return tiny(task, config, use_cpu=True, **arguments)


def measure(case: str) -> list[int]:
    def work(rank: int) -> None:
        found = trace_here(recipe_of(case), cpu=True, real=True, evaluation=False, processes=2)
        Path(f"peak{rank}").write_text(str(found.allocated), encoding="utf-8")

    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            code, _ = run_fsdp(work)
            if code:
                raise SystemExit(f"{case}: a rank ended with {code}\n{Path('ranks.log').read_text()[-2000:]}")
            return [int(Path(f"peak{rank}").read_text()) for rank in range(2)]
        finally:
            os.chdir(home)


def main() -> None:
    warnings.simplefilter("ignore")
    rows = []
    for case in CASES:
        ranks = measure(case)
        one = trace_here(recipe_of(case), cpu=True, evaluation=False).allocated
        planned = trace_here(recipe_of(case), cpu=True, evaluation=False, processes=2).allocated
        rows.append({"case": case, "ranks": ranks, "planned": planned, "one_process": one})
        print(rows[-1], flush=True)
    lines = ",\n".join(" " + json.dumps(one) for one in rows)
    RESULT.write_text('{"rows": [\n' + lines + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
